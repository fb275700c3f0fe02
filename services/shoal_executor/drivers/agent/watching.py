"""What is called when a descriptor is ready. It runs less than `selectors`, and a fresh clone copies what runs."""

import math
import select
import time
from collections.abc import Callable, Sequence
from typing import Final

_LONGEST_MS: Final = 2**31 - 1
"""What `poll` can be told. Who wakes before a deadline waits again."""


def patience_ms(deadlines: Sequence[float]) -> int | None:
    """Return for how many ms nothing has to be done by itself, until the first of these; None where there is none."""
    if not deadlines:
        return None
    return math.ceil(min(max(min(deadlines) - time.monotonic(), 0) * 1000, _LONGEST_MS))


class Watching:
    """By poll, not by epoll: what that one watches outside the sandbox is forgotten where a checkpoint is restored."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._reactions: dict[int, Callable[[], None]] = {}
        self._pressed: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, events: int, react: Callable[[], None]) -> None:
        """Call `react` whenever the descriptor is ready for one of these events (`select.POLLIN`), or at its end."""
        self._poll.register(fd, events)
        self._reactions[fd] = react

    def press(self, fd: int, write: Callable[[], None] | None) -> None:
        """Call `write` besides, whenever something may be written to one that is read; with None no longer."""
        if (write is not None) != (fd in self._pressed):
            self._poll.modify(fd, select.POLLIN | select.POLLOUT if write is not None else select.POLLIN)
        if write is not None:
            self._pressed[fd] = write
        else:
            self._pressed.pop(fd, None)

    def remove(self, fd: int) -> None:
        """Watch it no longer. May come twice."""
        self._pressed.pop(fd, None)
        if self._reactions.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def turn(self, patience_ms: int | None) -> None:
        """Wait until something is ready, and do what is to be done."""
        for fd, events in self._poll.poll(patience_ms):
            if events & select.POLLOUT and (write := self._pressed.get(fd)) is not None:
                write()
                if events == select.POLLOUT:
                    continue
            react = self._reactions.get(fd)
            if react is not None:  # or an event before it, of the same turn, was the end of it
                react()
