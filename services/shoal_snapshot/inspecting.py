"""Looking at what a template may be made of: what is there, as one digest, without making anything of it."""

import asyncio
import hashlib
import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from shoal.machine.core import Inspect, Publish
from shoal.wire import subjects
from shoal.wire.messages import Snapshot, TemplateInspected
from shoal.wire.values import SOURCES
from shoal_snapshot.images.allowed import ANYWHERE, read_from
from shoal_snapshot.images.disk import digest_of
from shoal_snapshot.images.errors import ImageError

_CHUNK: Final = 4 * 1024**2
_PROGRESS: Final = 1024**3  # bytes between two lines of the log
_CACHED: Final = 256

log = structlog.get_logger()


class Inspector:
    """Looks at sources; remembers the digest of an archive until its size or time of change differs.

    `allowed`: below which directories of this machine sources may be.
    """

    def __init__(self, allowed: Sequence[Path] = ANYWHERE) -> None:
        self._allowed = allowed
        self._digests: dict[tuple[str, int, int], str] = {}

    async def perform(self, effect: Inspect) -> Sequence[Publish]:
        """Return the message that says what the source is."""
        found = await asyncio.to_thread(self.inspect, effect.template)
        return [Publish(subjects.snapshot(subjects.SYSTEM, "inspected"), found)]

    def inspect(self, source: str) -> TemplateInspected:
        """Return what is at a source; blocks while an archive is read."""
        kind, _, path = source.partition(":")
        try:
            if source == "host":
                return TemplateInspected(source, Snapshot("host", "host"))
            if kind == "dir" and path.startswith("/"):
                return TemplateInspected(source, Snapshot(_tree(Path(self._real(kind, path))), "dir", path))
            if kind in ("tar", "docker-archive") and path.startswith("/"):
                return TemplateInspected(source, Snapshot(self._archive(Path(self._real(kind, path))), kind, path))
            if (kind == "oci" and path.startswith("/")) or (kind == "docker" and path.startswith("//")):
                return TemplateInspected(source, Snapshot(digest_of(f"{kind}:{self._real(kind, path)}"), kind, path))
        except (OSError, ValueError, tarfile.TarError) as error:
            return TemplateInspected(source, None, f"template {source!r} cannot be used: {error}")
        except ImageError as error:
            return TemplateInspected(source, None, str(error))
        except Exception as error:
            log.exception("looking at a template broke", template=source)
            return TemplateInspected(source, None, f"template {source!r} cannot be read: {error!r}")
        return TemplateInspected(source, None, f"unknown template {source!r}: use {SOURCES}")

    def _real(self, kind: str, path: str) -> str:
        return read_from(kind, path, self._allowed)

    def _archive(self, path: Path) -> str:
        if not path.is_file():
            raise ValueError(f"{path} is not an existing file")
        found = path.stat()
        key = (str(path), found.st_size, found.st_mtime_ns)
        if key not in self._digests:
            if not tarfile.is_tarfile(path):
                raise ValueError(f"{path} is not a tar archive")
            digest, done = hashlib.sha256(), 0
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    if done // _PROGRESS != (done - len(chunk)) // _PROGRESS:
                        log.info("reading a template", path=str(path), bytes=done, of=found.st_size)
            if len(self._digests) >= _CACHED:
                del self._digests[next(iter(self._digests))]
            self._digests[key] = digest.hexdigest()
        return self._digests[key]


def _tree(path: Path) -> str:
    """Return a digest of every name in a directory with its kind, owner, size and time of change."""
    if not path.is_dir():
        raise ValueError(f"{path} is not an existing directory")
    found = path.stat()
    digest = hashlib.sha256(f"{path}:{found.st_dev}:{found.st_ino}\0".encode())
    for directory, names, files in os.walk(path):
        names.sort()
        for name in sorted([*names, *files]):
            whole = os.path.join(directory, name)
            entry = os.lstat(whole)
            link = os.readlink(whole) if stat.S_ISLNK(entry.st_mode) else ""
            facts = (entry.st_mode, entry.st_uid, entry.st_gid, entry.st_size, entry.st_mtime_ns)
            digest.update(f"{whole}\0{facts}\0{link}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()
