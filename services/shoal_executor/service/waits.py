"""Waits of what is done to a sandbox while it lives: they are over at once when it is gone."""

import asyncio

from shoal.machine import ranges
from shoal.wire.messages import Ranges
from shoal_executor.core import Key


class Waits:
    """See the module."""

    def __init__(self) -> None:
        self._of: dict[Key, dict[int, dict[asyncio.Future[None], None]]] = {}  # in their order

    def __len__(self) -> int:
        return sum(len(waiters) for those in self._of.values() for waiters in those.values())

    async def sleep(self, key: Key, index: int, seconds: float) -> None:
        """Wait so long, or until the sandbox is gone."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(max(seconds, 0.0), _end, waiter)
        waiters = self._of.setdefault(key, {}).setdefault(index, {})
        waiters[waiter] = None
        try:
            await waiter
        finally:
            timer.cancel()
            waiters.pop(waiter, None)
            those = self._of.get(key, {})
            if not waiters and those.get(index) is waiters:
                del those[index]
                if not those:
                    del self._of[key]

    def gone(self, key: Key, indices: Ranges) -> None:
        """These are gone."""
        those = self._of.get(key)
        if those is not None:
            for index in ranges.indices(indices):
                for waiter in those.pop(index, ()):
                    _end(waiter)
            if not those:
                del self._of[key]


def _end(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
