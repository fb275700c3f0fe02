"""When sandboxes of Shoal's have ended: their trainer does not wait for that, and a bare loop does."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from shoal.bus.ending import end
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import Reader
from shoal.machine import ranges
from shoal.wire import subjects
from shoal.wire.codec import decode
from shoal.wire.messages import SlotsReleased
from shoal_loadtest.floor.bare import Missing
from shoal_loadtest.floor.roles import PLACEMENT_LOG

_PATIENCE_S: Final = 120.0


class Ends:
    """Counts the slots that come free, by rollout. Make one with `ends`."""

    def __init__(self) -> None:
        self._freed: Counter[str] = Counter()
        self._changed: dict[str, asyncio.Event] = {}

    async def follow(self, reader: Reader) -> None:
        """Hear, for ever."""
        while True:
            for delivery in await reader.batch():
                message = decode(delivery.payload)
                if isinstance(message, SlotsReleased):
                    self._freed[message.rollout] += ranges.count(message.indices)
                    if message.rollout in self._changed:
                        self._changed[message.rollout].set()

    async def of(self, rollout: str, count: int) -> None:
        """Wait until so many sandboxes of a rollout have ended. Raises Missing when they do not."""
        changed = self._changed[rollout] = asyncio.Event()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while self._freed[rollout] < count:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            ended = self._freed[rollout]
            raise Missing(f"of {count} sandboxes of Shoal's {ended} had ended {_PATIENCE_S:g} s later") from None
        finally:
            del self._changed[rollout], self._freed[rollout]


@asynccontextmanager
async def ends(url: str) -> AsyncIterator[Ends]:
    """Hear of all slots that come free from now on."""
    bus = await JetStreamBus.connect(url, name="floor")
    try:
        reader = await bus.reader(PLACEMENT_LOG, after=None, filters=[subjects.placement_release(0)])
        found = Ends()
        following = asyncio.create_task(found.follow(reader), name="ends")
        try:
            yield found
        finally:
            await end(following)
    finally:
        await bus.close()
