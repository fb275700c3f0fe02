"""Time as this machine has counted it since it was started. Its wall clock may be wrong, or be set, at any moment."""

import time
from typing import Final

APART_MS: Final = 5_000
"""By how much the wall clock and the broker's may differ before it is told."""
_LOOKED_MS: Final = 30_000
_AGAIN_MS: Final = 600_000


def now_ms() -> int:
    """Return the ms since this machine was started, sleep included: every process of it counts from the same moment."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Apart:
    """Finds out whether the wall clock and the broker's differ, from messages: when they were stored, and came.

    One may have been under way for long; so it goes by the one of a while for which the two differ least.
    """

    def __init__(self) -> None:
        self._since_ms: int | None = None
        self._told_ms: int | None = None
        self._least = 0

    def heard(self, stored_ms: int, wall_ms: int, now_ms: int) -> int | None:
        """Take in a message; returns by how many ms the wall clock is ahead, when that is to be told.

        `stored_ms` by the broker's clock, `wall_ms` by the wall clock, `now_ms` as counted here.
        """
        ahead = wall_ms - stored_ms
        if self._since_ms is None or abs(ahead) < abs(self._least):
            self._least = ahead
        if self._since_ms is None:
            self._since_ms = now_ms
        if now_ms - self._since_ms < _LOOKED_MS:
            return None
        least, self._since_ms = self._least, None
        if abs(least) < APART_MS or (self._told_ms is not None and now_ms - self._told_ms < _AGAIN_MS):
            return None
        self._told_ms = now_ms
        return least
