"""How far long work is: one line that renews itself on a terminal, a line now and then anywhere else."""

import sys
import time
from types import TracebackType

from shoal.cli.output import say


class Progress:
    """Says on standard error how far something is; `quiet` says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._terminal = sys.stderr.isatty()
        self._pause_s = 0.2 if self._terminal else 5.0
        self._said_at = time.monotonic() if not self._terminal else 0.0
        self._began = time.monotonic()
        self._quiet = quiet
        self._width = 0

    def update(self, done: int, of: int, unit: str, what: str = "") -> None:
        """Say that so many are done, of so many (0: nobody knows), if it is time to say something."""
        now = time.monotonic()
        if self._quiet or now - self._said_at < self._pause_s:
            return
        self._said_at = now
        rate = f"{done / max(now - self._began, 0.001):,.0f} a second"
        text = f"{100 * done / of:3.0f} %, {done:,} of {of:,} {unit}, {rate}" if of else f"{done:,} {unit}"
        text = f"{text}  {what}".rstrip()
        if self._terminal:
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)
        else:
            say(text)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
