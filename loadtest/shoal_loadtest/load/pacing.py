"""Waiting for moments of the monotonic clock, and an end that somebody wants at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterable
from typing import Final

_TURN: Final = 64
"""Requests that are sent in one turn of the event loop when they are late: answers must be heard meanwhile."""

_MOMENT_S: Final = 0.01


class Cutting:
    """Set once, when nothing more is to be asked for."""

    def __init__(self) -> None:
        self.cut = False
        self._waiting: set[asyncio.Event] = set()

    def now(self) -> None:
        """Let everybody end."""
        self.cut = True
        for event in self._waiting:
            event.set()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for an event, a time, or the cut; after that, for a moment only, in which others have their turn."""
        if self.cut:
            await asyncio.sleep(min(seconds, _MOMENT_S))
            return
        self._waiting.add(event)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await event.wait()
        finally:
            self._waiting.discard(event)


async def begun(begin_ns: int, cutting: Cutting) -> None:
    """Wait for a moment to come."""
    while (ahead_s := (begin_ns - time.monotonic_ns()) / 1e9) > 0 and not cutting.cut:
        await cutting.wait(asyncio.Event(), ahead_s)


async def paced(
    offsets: Iterable[float], begin_ns: int, until_ns: int | None, cutting: Cutting
) -> AsyncGenerator[int, None]:
    """Yield each moment when it has come, however late: none ever moves because an earlier one was late."""
    late = 0
    for offset in offsets:
        intended_ns = begin_ns + int(offset * 1e9)
        if until_ns is not None and intended_ns >= until_ns:
            return
        if intended_ns > time.monotonic_ns():
            late = 0
            await begun(intended_ns, cutting)
        if cutting.cut:
            return
        late += 1
        if late % _TURN == 0:
            await asyncio.sleep(0)
        yield intended_ns
