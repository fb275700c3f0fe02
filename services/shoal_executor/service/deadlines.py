"""When a rollout's time is up, its groups end here, should no word of the scheduler's come."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from shoal_executor.core import Key

GRACE_S: Final = 2.0
"""The scheduler ends a rollout whose time is up; the executor does it only so much later."""


class Deadlines:
    """A timer for each group; `over` is called with those whose time is up."""

    def __init__(self, over: Callable[[Key], None]) -> None:
        self._over = over
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    def set(self, key: Key, deadline_ms: int) -> None:
        """Wait for a group's deadline, in ms since the epoch, unless that is done already."""
        if key not in self._timers:
            remaining = deadline_ms / 1000 - time.time() + GRACE_S
            self._timers[key] = asyncio.get_running_loop().call_later(max(remaining, 0.0), self._expire, key)

    def drop(self, key: Key) -> None:
        """A group is gone."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Wait for nothing any more."""
        for timer in self._timers.values():
            timer.cancel()

    def _expire(self, key: Key) -> None:
        self._timers.pop(key, None)
        self._over(key)
