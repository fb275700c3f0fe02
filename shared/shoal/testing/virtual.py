"""An asyncio event loop whose clock does not wait: when nothing can run, it jumps to the next timer.

What takes an hour of sleeping takes no time, and the order of things depends on nothing but what the code does. Work
given to threads is done at once and in place, because a thread would race against a clock that jumps.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

R = TypeVar("R")


class StuckError(RuntimeError):
    """Everything waits, and no timer will ever end it."""


class _Selector(selectors.DefaultSelector):
    """Never waits; what would have been waited is added to the clock."""

    clock = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; else let the clock jump."""
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise StuckError("every task waits for something that no timer will bring")
            self.clock += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Return the seconds that have passed in here."""
        return self._virtual.clock

    def run_in_executor(self, executor: Any, func: Callable[..., R], *args: Any) -> "asyncio.Future[R]":  # type: ignore[override]  # nothing in here is awaited twice
        """Call it now."""
        future: asyncio.Future[R] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def run(main: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine to its end on a virtual loop, as asyncio.run does on a real one."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
