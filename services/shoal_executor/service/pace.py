"""How fast this executor starts sandboxes, as its beats tell placement."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.wire.messages import ExecutorBeat, ExecutorJoined
from shoal_executor.core import ExecutorCore


class Pace:
    """Counts starts, and the time in which anything was being started, without what they start from being fetched."""

    def __init__(self) -> None:
        self.started = 0
        self._busy_s = 0.0
        self._since = 0.0
        self._under_way = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Something is being started."""
        if not self._under_way:
            self._since = time.monotonic()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._busy_s += time.monotonic() - self._since

    def beat(self, joined: ExecutorJoined, core: ExecutorCore) -> ExecutorBeat:
        """Return the sign of life that says so."""
        busy_s = self._busy_s + (time.monotonic() - self._since if self._under_way else 0.0)
        return ExecutorBeat(
            joined.executor, joined.boot, core.live, core.starting, self.started, int(busy_s * 1000)
        )  # fmt: skip
