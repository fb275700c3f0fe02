"""An executor that has left because its nodes are drained: it waits, with nothing on the machine, until one is not."""

import asyncio
import contextlib
from collections.abc import Collection
from typing import Final

import structlog

from shoal.bus.protocol import Bus, BusError
from shoal.wire import streams

LOOK_EVERY_S: Final = 1.0

log = structlog.get_logger()


async def until_wanted(bus: Bus, nodes: Collection[str], stop: asyncio.Event) -> None:
    """Return when one of these nodes is drained no longer, or stop is set."""
    while not stop.is_set():
        try:
            keys = await bus.keys(streams.CLUSTER_BUCKET, streams.DRAINED_KEYS)
            if not streams.drained_nodes(keys) >= set(nodes):
                return
        except BusError as error:
            log.warning("it cannot be told whether a node is drained still", error=str(error))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOOK_EVERY_S)
