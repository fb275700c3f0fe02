"""Ends give way to starts.

While more sandboxes are starting than the driver starts at a time, all of them wait for the processor, and each end
takes it from somebody who waits for a first command. So ends wait, too, but neither long nor many: what they free is
wanted.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

LONGEST_S: Final = 0.25
"""Seconds an end waits at most. See ADR 0024 for what this, and `MOST`, were measured with."""
MOST: Final = 4
"""How many ends wait at most, for each sandbox that is started at a time."""


class GivingWay:
    """See the module. `at_once`: how many sandboxes the driver starts at a time; 0 if no start waits for another."""

    def __init__(self, at_once: int = 0) -> None:
        self._at_once = at_once
        self._starting = 0
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

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
        return 0 < self._at_once < self._starting

    def _change(self, by: int) -> None:
        self._starting += by
        while self._waiting and not self._crowded:
            self._let_one_go()

    def _let_one_go(self) -> None:
        future, _ = self._waiting.popitem(last=False)
        if not future.done():
            future.set_result(None)

    async def turn(self) -> None:
        """Wait until an end may take the processor."""
        if not self._crowded:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        if len(self._waiting) > MOST * self._at_once:
            self._let_one_go()
        try:
            async with asyncio.timeout(LONGEST_S):
                await future
        except TimeoutError:
            pass
        finally:
            self._waiting.pop(future, None)
