"""Signs of life: placement hears each second how an executor does, and what snapshots it has at hand."""

import asyncio
from typing import Final

from shoal.blobs.cache import Cache
from shoal.wire import subjects
from shoal.wire.messages import ExecutorHolds, ExecutorJoined
from shoal_executor.service.known import Known
from shoal_executor.service.outgoing import Outgoing
from shoal_executor.service.pace import Pace

BEAT_S: Final = 1.0
JOIN_EVERY_BEATS: Final = 5
_HOLDS: Final = 128
"""Blobs that placement is told of, when they change."""


async def beat(
    cell: int, joined: ExecutorJoined, known: Known, pace: Pace, cache: Cache | None, outgoing: Outgoing
) -> None:  # fmt: skip
    """Say for ever that this executor lives, as long as its journal does. Raises OSError, or ends this process."""
    nodes = subjects.placement_node(cell)
    beats = number = 0
    held: tuple[str, ...] = ()
    while True:
        await asyncio.sleep(BEAT_S)
        beats += 1
        known.look()
        holds = cache.holds()[:_HOLDS] if cache is not None else ()
        if holds != held:
            held = holds
            outgoing.send(nodes, ExecutorHolds(joined.executor, joined.boot, holds))
        if outgoing.is_stored(number):  # else one word of life is enough, when there is room for it
            sign = pace.beat(joined, known.core)
            number = outgoing.send(nodes, joined if beats % JOIN_EVERY_BEATS == 0 else sign)
