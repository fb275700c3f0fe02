"""What a checkpoint of a whole sandbox is kept as: one file, which says what it can be restored with."""

import asyncio
import contextlib
import io
import shutil
import tarfile
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec

from shoal.wire.messages import Blob
from shoal_executor.drivers.protocol import Disks, DriverError

_ABOUT: Final = "about.json"
KEPT: Final = 16
"""How many are kept unpacked on a node; those used longest ago go first."""


class About(msgspec.Struct, frozen=True):
    """What a checkpoint was made with: the release of runsc, its platform, the agent's Python, and /dev/shm's size."""

    runsc: int
    platform: str
    python: str
    shm: int


def pack(image: Path, about: About, memory: Path) -> None:
    """Write a checkpoint's directory to one file. Raises OSError."""
    with tarfile.open(memory, "x", format=tarfile.PAX_FORMAT) as tar:
        data = msgspec.json.encode(about)
        entry = tarfile.TarInfo(_ABOUT)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
        for path in sorted(image.iterdir()):
            entry = tarfile.TarInfo(path.name)
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(entry, file)


def unpack(memory: Path, target: Path) -> About:
    """Write the files of a checkpoint into a new directory. Raises DriverError for what is none, OSError."""
    try:
        with tarfile.open(memory, "r:") as tar:
            first = tar.next()
            file = tar.extractfile(first) if first is not None and first.name == _ABOUT else None
            if file is None:
                raise DriverError("a memory snapshot is damaged: it does not say what it was made with")
            about = msgspec.json.decode(file.read(65_536), type=About)
            target.mkdir(parents=True)
            while (entry := tar.next()) is not None:
                file = tar.extractfile(entry)
                if file is None or "/" in entry.name or entry.name.startswith("."):
                    raise DriverError(f"a memory snapshot is damaged: {entry.name!r} does not belong into one")
                with (target / entry.name).open("xb") as copy:
                    shutil.copyfileobj(file, copy, 1 << 20)
    except (tarfile.TarError, msgspec.MsgspecError, EOFError) as error:
        raise DriverError(f"a memory snapshot is damaged: {error}") from error
    return about


class Memories:
    """The checkpoints that sandboxes of this node start from, each unpacked once however many ask."""

    def __init__(self, directory: Path, disks: Disks | None) -> None:
        self._directory = directory
        self._disks = disks
        self._known: OrderedDict[str, asyncio.Task[tuple[Path, About]]] = OrderedDict()
        self._lent: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def lend(self, blob: Blob) -> AsyncIterator[tuple[Path, About]]:
        """Yield a checkpoint's directory, which stays as long, and what it was made with. Raises DriverError."""
        self._lent[blob.digest] = self._lent.get(blob.digest, 0) + 1
        try:
            yield await self._path_of(blob)
        finally:
            self._lent[blob.digest] -= 1
            if not self._lent[blob.digest]:
                del self._lent[blob.digest]
            await self._retire()

    async def _retire(self) -> None:
        for digest in [each for each in self._known if each not in self._lent][: max(len(self._known) - KEPT, 0)]:
            known = self._known.pop(digest)
            if known.done() and not known.cancelled() and known.exception() is None:
                await asyncio.to_thread(shutil.rmtree, known.result()[0], ignore_errors=True)

    async def _path_of(self, blob: Blob) -> tuple[Path, About]:
        known = self._known.pop(blob.digest, None)
        if known is not None and known.done() and (known.cancelled() or known.exception()):
            known = None
        if known is None:
            known = asyncio.create_task(self._fetch(blob))
        self._known[blob.digest] = known
        return await asyncio.shield(known)

    async def _fetch(self, blob: Blob) -> tuple[Path, About]:
        if self._disks is None:
            raise DriverError("this node has no blob store: start its executor with --blobs")
        target = self._directory / blob.digest
        path = await self._disks.path_of(blob)
        try:
            about = await asyncio.to_thread(unpack, path, target)
        except (OSError, DriverError) as error:
            shutil.rmtree(target, ignore_errors=True)
            if isinstance(error, DriverError):
                raise
            raise DriverError(f"a memory snapshot could not be unpacked: {error.strerror or error}") from error
        return target, about
