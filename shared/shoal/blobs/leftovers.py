"""What is being made in a place that several processes share: held by who makes it, removed when that was killed."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

YOUNG_S: Final = 60.0
"""What is younger may have been made a moment ago, and not be held yet."""


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file or directory: as long as this process lives, and is in here, nobody clears it. Raises OSError.

    Where the file system knows no such locks, nobody clears anything.
    """
    fd = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def clear(paths: Iterable[Path]) -> None:
    """Remove those that nobody holds; what cannot be removed stays."""
    for path in paths:
        with contextlib.suppress(OSError):
            _clear(path)


def _clear(path: Path) -> None:
    if time.time() - path.stat().st_mtime < YOUNG_S:
        return
    fd = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(fd)
