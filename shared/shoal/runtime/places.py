"""Directories: a service's own, looked at before anything else is done; and those that it may read others' from."""

import os
from collections.abc import Sequence
from pathlib import Path

import click


def usable(place: Path) -> Path:
    """Return the directory, made where it is missing. Raises UsageError where nothing can be kept there."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe = place / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of this directory may look at the same time
    except OSError as error:
        raise click.UsageError(
            f"--state: the directory {place} cannot be used: {error.strerror}; name another"
        ) from None
    return place


def within(path: str | Path, allowed: Sequence[Path]) -> Path | None:
    """Return where a path really is, links followed; None where that is below none of the directories allowed."""
    real = Path(os.path.realpath(path))
    return real if any(real.is_relative_to(os.path.realpath(each)) for each in allowed) else None
