"""The snapshot service's edge: looks at templates' sources on this machine."""

import asyncio
import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from shoal.machine.core import Inspect, Publish
from shoal.runtime.lease import Owner
from shoal.runtime.process import Context
from shoal.runtime.shell import Shell
from shoal.runtime.spread import Spread, run_together
from shoal.wire import streams, subjects
from shoal.wire.messages import Snapshot, TemplateInspected
from shoal_snapshot.core import SnapshotCore

_CHUNK: Final = 4 * 1024**2
_PROGRESS: Final = 1024**3  # bytes between two lines of the log
_CACHED: Final = 256

log = structlog.get_logger()


class Inspector:
    """Looks at sources; remembers the digest of a tar until its size or time of change differs."""

    def __init__(self) -> None:
        self._digests: dict[tuple[str, int, int], str] = {}

    async def perform(self, effect: Inspect) -> Sequence[Publish]:
        """Return the message that says what the template stands for."""
        found = await asyncio.to_thread(self.inspect, effect.template)
        return [Publish(subjects.snapshot(subjects.SYSTEM, "inspected"), found)]

    def inspect(self, template: str) -> TemplateInspected:
        """Return what a template stands for; blocks while a tar is read."""
        kind, _, path = template.partition(":")
        try:
            if template == "host":
                return TemplateInspected(template, Snapshot("host", "host"))
            if kind == "dir" and path.startswith("/"):
                return TemplateInspected(template, Snapshot(self._directory(Path(path)), "dir", path))
            if kind == "tar" and path.startswith("/"):
                return TemplateInspected(template, Snapshot(self._tar(Path(path)), "tar", path))
        except (OSError, ValueError, tarfile.TarError) as error:
            return TemplateInspected(template, None, f"template {template!r} cannot be used: {error}")
        return TemplateInspected(template, None, f"unknown template {template!r}: use host, dir:/path or tar:/path")

    def _directory(self, path: Path) -> str:
        # The directory's identity and the time its top level changed: a change further down is not noticed.
        if not path.is_dir():
            raise ValueError(f"{path} is not an existing directory")
        stat = path.stat()
        return hashlib.sha256(f"{path}:{stat.st_dev}:{stat.st_ino}:{stat.st_mtime_ns}".encode()).hexdigest()

    def _tar(self, path: Path) -> str:
        if not path.is_file():
            raise ValueError(f"{path} is not an existing file")
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            if not tarfile.is_tarfile(path):
                raise ValueError(f"{path} is not a tar archive")
            digest, done = hashlib.sha256(), 0
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    if done // _PROGRESS != (done - len(chunk)) // _PROGRESS:
                        log.info("reading a template", path=str(path), bytes=done, of=stat.st_size)
            if len(self._digests) >= _CACHED:
                del self._digests[next(iter(self._digests))]
            self._digests[key] = digest.hexdigest()
        return self._digests[key]


async def run(context: Context) -> None:
    """Serve, or stand by, until told to stop."""
    owner = Owner.local()
    spread = Spread(context.bus, "snapshot", owner, 1)
    shell = Shell(
        context.bus,
        SnapshotCore(),
        name="snapshot",
        stream=streams.snapshot().name,
        perform=Inspector().perform,
        owner=owner,
        turns=spread,
    )
    await run_together([shell], spread, context.stop)
