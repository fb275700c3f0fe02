"""Telling sandboxes that they may forget what their commands came to: all that gathered in a moment, together.

It would wake the sandbox just when its trainer's answer is on the way, and take the processor from that.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shoal_executor.drivers.protocol import Driver

LATER_S: Final = 0.25


class Settling:
    """See the module."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._ids: dict[str, list[str]] = {}
        self._held: set[str] = set()
        self._due: asyncio.TimerHandle | None = None

    def settle(self, name: str, id: str, *, now: bool = False) -> None:
        """A command's answer is kept elsewhere; `now`: it is large, and occupies the sandbox's memory."""
        self._ids.setdefault(name, []).append(id)
        if now:
            self._tell(name)
        if self._due is None and self._ids:
            self._due = asyncio.get_running_loop().call_later(LATER_S, self._tell_all)

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Have a sandbox forget nothing meanwhile: it is asked what it has done."""
        self._held.add(name)
        try:
            yield
        finally:
            self._held.discard(name)

    def _tell_all(self) -> None:
        self._due = None
        for name in list(self._ids):
            self._tell(name)
        if self._ids:
            self._due = asyncio.get_running_loop().call_later(LATER_S, self._tell_all)

    def _tell(self, name: str) -> None:
        if name not in self._held:
            self._driver.settle(name, self._ids.pop(name))

    def forget(self, name: str) -> None:
        """It is gone."""
        self._ids.pop(name, None)

    def close(self) -> None:
        """Tell nobody any more."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
