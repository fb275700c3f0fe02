"""A service's directory, looked at before anything else is done."""

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
