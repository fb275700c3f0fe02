"""Which sources of templates are read on this machine: those below the directories that its operator names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shoal.runtime.places import within
from shoal_snapshot.images.disk import split_tag
from shoal_snapshot.images.errors import ImageError

ANYWHERE: Final = (Path("/"),)
_READ: Final = ("dir", "tar", "docker-archive", "oci")
"""Kinds of sources that are paths of this machine."""


def read_from(kind: str, path: str, allowed: Sequence[Path]) -> str:
    """Return where a source is really read from; of what is no path of this machine, the same.

    Raises ImageError where that is below none of the directories allowed: whoever reaches the broker names paths, and
    they are read with this service's rights.
    """
    if kind not in _READ:
        return path
    place, tag = split_tag(path) if kind == "oci" else (Path(path), "")
    real = within(place, allowed)
    if real is not None:
        return f"{real}:{tag}" if tag else str(real)
    places = f"only from below {', '.join(map(str, allowed))}" if allowed else "from no directory"
    raise ImageError(
        f"template {kind}:{path}: the snapshot service takes {', '.join(f'{each}:' for each in _READ[:-1])} and"
        f" {_READ[-1]}: {places}; see its --template-roots"
    )
