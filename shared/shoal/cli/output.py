"""What goes to the terminal or the pipe."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO, cast

from shoal.cli.exits import OutputRefused


class _Output:
    """Standard output, whose errors are told apart from those of other files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _refusal():
            return self._stream.write(text)

    def flush(self) -> None:
        with _refusal():
            self._stream.flush()


@contextlib.contextmanager
def _refusal() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputRefused(error.strerror or str(error)) from error


@contextlib.contextmanager
def told_apart() -> Iterator[None]:
    """Have what cannot be written to standard output raise OutputRefused, but for a reader that went away."""
    with contextlib.redirect_stdout(cast(TextIO, _Output(sys.stdout))):
        yield


def emit(value: Any) -> None:
    """Print one JSON object as a line, at once."""
    import orjson

    sys.stdout.write(orjson.dumps(value, default=_plain).decode() + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    raise TypeError(f"{type(value).__name__} has no JSON")


def say(text: str) -> None:
    """Tell a person something about what goes on: on standard error, apart from results."""
    print(text, file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print rows as a table for people, or, where there are none, say so on standard error."""
    if not rows:
        say(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold", no_wrap=not sys.stdout.isatty())
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 10_000  # no wider than its rows: whoever reads a pipe wants all of it
    Console(width=width, soft_wrap=False, highlight=False).print(shown)


def moment(time_ms: int) -> str:
    """Return a moment (ms since the epoch) in local time."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
