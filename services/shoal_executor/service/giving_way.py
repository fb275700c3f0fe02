"""Ends give way to starts, and then leave together.

While more sandboxes are starting than the driver starts at a time, all of them wait for the processor, and each end
takes it from somebody who waits for a first command. So ends wait, too, but neither long nor many: what they free is
wanted. Those that waited are ended at once, which costs less than one after the other: the kernel's grace periods are
shared, and so are the words about them.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from shoal.machine import ranges
from shoal.wire.messages import Ranges
from shoal_executor.core import Key

LONGEST_S: Final = 0.25
"""Seconds an end waits at most. See ADR 0024 for what this, and `MOST`, were measured with."""
MOST: Final = 8
"""How many sandboxes wait for their end at most, for each one that is started at a time."""


class GivingWay:
    """See the module. `end` is called with what is to be ended now.

    `at_once`: how many sandboxes the driver starts at a time; 0 if no start waits for another.
    """

    def __init__(self, end: Callable[[Key, Ranges], None], at_once: int = 0) -> None:
        self._end = end
        self.at_once = at_once
        self._starting = 0
        self._waiting: dict[Key, Ranges] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def starting(self, count: int) -> Iterator[Callable[[int], None]]:
        """So many are being started. What this yields is called with how many of them are up, or have failed."""
        left = count

        def done(some: int) -> None:
            nonlocal left
            left -= some
            self._change(-some)

        self._change(count)
        try:
            yield done
        finally:
            done(left)

    @property
    def _crowded(self) -> bool:
        return 0 < self.at_once < self._starting

    def _change(self, by: int) -> None:
        self._starting += by
        if self._waiting and not self._crowded:
            self._let_go()

    def add(self, key: Key, indices: Ranges) -> None:
        """Have these ended, when they may take the processor for it."""
        if not self._crowded:
            self._end(key, indices)
            return
        self._waiting[key] = ranges.union(self._waiting.get(key, ()), indices)
        self._count += ranges.count(indices)
        if self._count > MOST * self.at_once:
            self._let_go()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LONGEST_S, self._let_go)

    def _let_go(self) -> None:
        waiting = self._waiting
        self.close()
        for key, indices in waiting.items():
            self._end(key, indices)

    def close(self) -> None:
        """Forget what waits: all there is comes to its end."""
        self._waiting, self._count = {}, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
