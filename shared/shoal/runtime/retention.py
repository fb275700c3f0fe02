"""What goes from a folded log: messages that are old enough *and* covered by two checkpoints, and no others."""

import asyncio
from typing import Final

import structlog

from shoal.bus.ending import end
from shoal.bus.protocol import Bus
from shoal.runtime.checkpoints import Checkpoints
from shoal.wire.streams import KEPT_S

_LOOK_S: Final = 10.0

log = structlog.get_logger()


async def retain(bus: Bus, stream: str, checkpoints: Checkpoints, now_ms: int, kept_s: float = KEPT_S) -> int:
    """Purge what is older than `kept_s` seconds and folded into the older of two checkpoints; returns up to where.

    `now_ms`: the broker's time, as the newest folded message tells it. 0 when nothing may go.
    """
    generations = (await checkpoints.manifest())[0].generations
    if len(generations) < 2:
        return 0
    try:
        young = await _first_since(bus, stream, now_ms - int(kept_s * 1000))
    except TimeoutError:
        return 0  # the broker has other things to do; there will be a next time
    up_to = min(young - 1, *(each.sequence for each in generations))
    if up_to < await bus.first_sequence(stream):
        return 0
    await bus.purge(stream, up_to)
    log.info("old messages removed", stream=stream, up_to=up_to)
    return up_to


async def _first_since(bus: Bus, stream: str, since_ms: int) -> int:
    """Return the sequence of the first message stored since then. Raises TimeoutError."""
    reader = await bus.reader(stream, since_ms=since_ms)
    looking = asyncio.create_task(reader.batch(1))
    try:
        await asyncio.wait({looking}, timeout=_LOOK_S)
        if not looking.done():
            raise TimeoutError
        return looking.result()[0].sequence
    finally:
        await end(looking)
        await reader.close()
