"""What sandboxes are started upon: a directory of this node, which somebody may delete or replace beneath them."""

import os
from pathlib import Path
from typing import Final, Self

import msgspec

_MOST: Final = 256
GONE: Final = "its template's files are gone from this node, or were replaced"


class Ground(msgspec.Struct):
    """A directory as it was: which one, when its list of names was last changed, and which directories those named.

    Its plain files and links are no matter: they are replaced by whoever changes them, and sandboxes go on.
    """

    path: str
    itself: tuple[int, int]
    changed_ns: int
    names: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return how it is now. Raises OSError."""
        found = os.stat(path)
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)][:_MOST]
        return cls(str(path), (found.st_dev, found.st_ino), found.st_mtime_ns, _named(path, names))

    def stands(self) -> bool:
        """Return whether all of that is still there. Most often that is one `stat`; what was added is no matter."""
        try:
            found = os.stat(self.path)
            if (found.st_dev, found.st_ino) != self.itself:
                return False
            if found.st_mtime_ns != self.changed_ns:
                if _named(Path(self.path), list(self.names)) != self.names:
                    return False
                self.changed_ns = found.st_mtime_ns
        except OSError:
            return False
        return True


def _named(path: Path, names: list[str]) -> dict[str, tuple[int, int]]:
    stats = {name: os.lstat(path / name) for name in names}
    return {name: (found.st_dev, found.st_ino) for name, found in stats.items()}
