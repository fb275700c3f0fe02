"""Executors that leave: one whose nodes are drained waits, with nothing on the machine, until one is not; one whose

name another has taken ends for good.
"""

import asyncio
import contextlib
from collections.abc import Collection
from typing import Final

import structlog

from shoal.bus.protocol import Bus, BusError
from shoal.wire import streams

LOOK_EVERY_S: Final = 1.0

log = structlog.get_logger()


class ReplacedError(Exception):
    """Another executor has joined under this one's name; the text says what to do."""

    def __init__(self, executor: str) -> None:
        super().__init__(
            f"another executor has joined as {executor!r}: all that this one held was given up; give each a name of "
            "its own (--executor or SHOAL_EXECUTOR)"
        )


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
