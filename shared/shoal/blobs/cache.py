"""What a node has of the blobs at hand: fetched once however many wait, verified, within a limit of bytes."""

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.blobs.protocol import BlobCorruptError, BlobError, BlobStore, measure
from shoal.wire.messages import Blob

GRACE_S: Final = 60.0
"""How long a file that was handed out stays at least: whoever asked mounts or opens it meanwhile."""
_FETCHING: Final = ".fetching-"
_ADDING: Final = ".adding-"


@dataclass(slots=True)
class _Kept:
    size: int
    verified: bool
    handed_s: float = 0.0


class Cache:
    """Files named by their digest in one directory; of those beyond `limit` bytes the least recently used go."""

    def __init__(self, store: BlobStore, directory: Path, limit: int) -> None:
        """Take over what an earlier process left in the directory; each is verified when it is first used."""
        self._store = store
        self._directory = directory
        self._limit = limit
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime):
            if path.name.startswith(_FETCHING):
                path.unlink(missing_ok=True)
            else:
                self._kept[path.name] = _Kept(path.stat().st_size, verified=False)
        for path in directory.parent.glob(f"{_ADDING}*"):
            shutil.rmtree(path, ignore_errors=True)

    def holds(self) -> tuple[str, ...]:
        """Return the digests that are here, the most recently used first."""
        return tuple(reversed(self._kept))

    async def path_of(self, blob: Blob) -> Path:
        """Return a file with exactly this content. Raises BlobError.

        It stays for GRACE_S at least; whoever has it open or mounted keeps it for longer.
        """
        path = self._directory / blob.digest
        known = self._kept.get(blob.digest)
        if known is not None and not path.exists():
            del self._kept[blob.digest]  # somebody deleted it
        elif known is not None and not known.verified:
            await self._verify(blob, known)
        while blob.digest not in self._kept:  # it may have gone again before its turn came to be handed out
            if blob.digest not in self._fetching:
                self._fetching[blob.digest] = asyncio.create_task(self._fetch(blob, path))
            await asyncio.shield(self._fetching[blob.digest])
        self._use(blob)
        return path

    async def add(self, source: Path) -> Blob:
        """Put a file that was made on this node into the store, and keep it here as well; source is gone then.

        Raises BlobError.
        """
        blob = await self._store.put(source)
        try:
            self._directory.mkdir(0o700, exist_ok=True)  # somebody may have deleted it
            os.replace(source, self._directory / blob.digest)
        except OSError as error:
            raise BlobError(f"{self._directory}: {error.strerror or error}") from error
        self._kept[blob.digest] = _Kept(blob.size, verified=True)
        self._use(blob)
        return blob

    @property
    def unannounced(self) -> Path:
        """Where notes are of what was added and is not known to the catalogue yet: beside the cache, on its disk."""
        return self._directory.parent / ".unannounced"

    def scratch(self) -> "tempfile.TemporaryDirectory[str]":
        """Return a directory for files that are to be added."""
        return tempfile.TemporaryDirectory(dir=self._directory.parent, prefix=_ADDING)

    async def close(self) -> None:
        """Give up what is being fetched."""
        for task in self._fetching.values():
            task.cancel()
        await asyncio.gather(*self._fetching.values(), return_exceptions=True)

    async def _fetch(self, blob: Blob, path: Path) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):  # then the store says so
                self._directory.mkdir(0o700, exist_ok=True)
            await self._store.fetch(blob, path)
            self._kept[blob.digest] = _Kept(blob.size, verified=True, handed_s=time.monotonic())
        finally:
            del self._fetching[blob.digest]

    async def _verify(self, blob: Blob, known: _Kept) -> None:
        """Look whether what an earlier process left is what its name says; if not, it is fetched anew."""
        found: Blob | None = None
        with contextlib.suppress(OSError):
            found = await asyncio.to_thread(measure, self._directory / blob.digest)
        if found == blob:
            known.verified = True
        elif self._kept.get(blob.digest) is known:
            del self._kept[blob.digest]
            with contextlib.suppress(OSError):
                (self._directory / blob.digest).unlink()
        if found is not None and found.digest == blob.digest and found != blob:
            raise BlobCorruptError(f"blob {blob.digest} has {found.size} bytes and not {blob.size}")

    def _use(self, blob: Blob) -> None:
        kept = self._kept.get(blob.digest)
        if kept is not None:
            kept.handed_s = time.monotonic()
            self._kept.move_to_end(blob.digest)
        self._evict(blob.digest)

    def _evict(self, used: str) -> None:
        total = sum(kept.size for kept in self._kept.values())
        now = time.monotonic()
        for digest, kept in list(self._kept.items()):
            if total <= self._limit:
                return
            if digest == used or (kept.handed_s and now - kept.handed_s < GRACE_S):
                continue
            with contextlib.suppress(OSError):
                (self._directory / digest).unlink()
            del self._kept[digest]
            total -= kept.size
