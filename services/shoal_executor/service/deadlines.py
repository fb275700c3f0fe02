"""When a rollout's time is up, its groups end here, should no word of the scheduler's come."""

import asyncio
from collections.abc import Callable
from typing import Final

from shoal_executor.core import Key
from shoal_executor.service.clock import now_ms

GRACE_S: Final = 2
"""The scheduler ends a rollout whose time is up; the executor does it only so much later, and up to a second."""


class Deadlines:
    """One timer for all groups, by whole seconds; `over` is called with those whose time is up."""

    def __init__(self, over: Callable[[Key], None]) -> None:
        self._over = over
        self._due: dict[Key, int] = {}
        self._groups: dict[int, dict[Key, None]] = {}  # by the second in which they are due
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: Key, due_ms: int) -> None:
        """Wait for a group's deadline, in ms as `clock` counts them, unless that is done already."""
        if key in self._due:
            return
        second = self._due[key] = -(-due_ms // 1000) + GRACE_S
        groups = self._groups.get(second)
        if groups is None:
            groups = self._groups[second] = {}
            if self._timer is None or second < self._next:
                self._arm(second)
        groups[key] = None

    def drop(self, key: Key) -> None:
        """A group is gone."""
        second = self._due.pop(key, None)
        if second is not None:
            groups = self._groups[second]
            del groups[key]
            if not groups:
                del self._groups[second]

    def close(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, second: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = second
        self._timer = asyncio.get_running_loop().call_later(max(second - now_ms() / 1000, 0.0), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = now_ms() / 1000
        try:
            for second in sorted(each for each in self._groups if each <= now):
                for key in list(self._groups.get(second, ())):
                    if key in self._due:  # else one of those before took it along
                        self.drop(key)
                        self._over(key)
        finally:  # where one fails the others are told all the same, at once
            if self._groups:
                self._arm(min(self._groups))
