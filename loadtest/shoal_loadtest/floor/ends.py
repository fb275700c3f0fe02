"""When sandboxes of Shoal's have ended: their trainer does not wait for that, and a bare loop does."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shoal.bus.ending import end
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import Reader
from shoal.machine import ranges
from shoal.wire import subjects
from shoal.wire.codec import decode
from shoal.wire.messages import SlotsReleased
from shoal_loadtest.floor.roles import PLACEMENT_LOG


class Ends:
    """Counts the slots that come free, by rollout. Make one with `ends`."""

    def __init__(self) -> None:
        self._freed: Counter[str] = Counter()
        self._waiting: dict[str, tuple[int, asyncio.Future[None]]] = {}

    async def follow(self, reader: Reader) -> None:
        """Hear, for ever."""
        while True:
            for delivery in await reader.batch():
                match decode(delivery.payload):
                    case SlotsReleased(rollout=rollout, indices=indices):
                        self._freed[rollout] += ranges.count(indices)
                        count, waiter = self._waiting.get(rollout, (0, None))
                        if waiter is not None and self._freed[rollout] >= count and not waiter.done():
                            waiter.set_result(None)

    async def of(self, rollout: str, count: int) -> None:
        """Wait until so many sandboxes of a rollout have ended."""
        if self._freed[rollout] < count:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting[rollout] = (count, waiter)
            await waiter
            del self._waiting[rollout]
        del self._freed[rollout]


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
