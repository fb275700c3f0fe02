"""Blobs as files of a directory: the default on one machine, or on what all machines have mounted."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from shoal.blobs.leftovers import clear, held
from shoal.blobs.protocol import (
    CHUNK,
    BlobCorruptError,
    BlobError,
    BlobMissingError,
    BlobSpaceError,
    Progress,
)
from shoal.wire.messages import Blob

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileStore:
    """Each blob is `directory/ab/abcdef...`, written elsewhere first and then given its name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._incoming = directory / ".incoming"

    async def put(self, source: Path, progress: Progress | None = None) -> Blob:
        """Copy a file in, on the way to its name hashing what is written."""
        return await asyncio.to_thread(self._put, source, progress)

    async def fetch(self, blob: Blob, target: Path, progress: Progress | None = None) -> None:
        """Copy a blob out, and hash it on the way."""
        await asyncio.to_thread(self._fetch, blob, target, progress)

    async def has(self, blob: Blob) -> bool:
        """Look for the file, and at its size."""
        with contextlib.suppress(OSError):
            return self._place(blob.digest).stat().st_size == blob.size
        return False

    async def delete(self, digest: str, *, unused_for_s: float = 0.0) -> bool:
        """Unlink the file, by its time of change; who has it open keeps it."""
        return await asyncio.to_thread(self._delete, digest, unused_for_s)

    async def close(self) -> None:
        """Nothing is held."""

    def _place(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise BlobError(f"{digest!r} is not the SHA-256 of anything")
        return self._directory / digest[:2] / digest

    def _put(self, source: Path, progress: Progress | None) -> Blob:
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            clear(self._incoming.iterdir())
            with source.open("rb") as given:
                return self._written(given, os.fstat(given.fileno()).st_size, progress)
        except OSError as error:
            raise explained(error, self._directory) from error

    def _written(self, given: IO[bytes], size: int, progress: Progress | None) -> Blob:
        with tempfile.NamedTemporaryFile(dir=self._incoming, delete=False) as file, held(Path(file.name)):
            try:
                blob = copy(given, file, size, progress)
                file.flush()
                os.fsync(file.fileno())
                place = self._place(blob.digest)
                place.parent.mkdir(exist_ok=True)
                with self._locked(fcntl.LOCK_SH):
                    os.rename(file.name, place)
            except BaseException:
                os.unlink(file.name)
                raise
        return blob

    def _delete(self, digest: str, unused_for_s: float) -> bool:
        place = self._place(digest)
        try:
            with self._locked(fcntl.LOCK_EX):  # nobody puts it there between the look and the end
                if time.time() - place.stat().st_mtime < unused_for_s:
                    return False
                place.unlink()
        except FileNotFoundError:
            return True
        except OSError as error:
            raise explained(error, self._directory) from error
        return True

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with (self._directory / ".lock").open("ab") as lock:
            fcntl.flock(lock, how)
            yield

    def _fetch(self, blob: Blob, target: Path, progress: Progress | None) -> None:
        try:
            given = self._place(blob.digest).open("rb")
        except FileNotFoundError:
            raise BlobMissingError(f"blob {blob.digest} is not in {self._directory}") from None
        except OSError as error:
            raise explained(error, self._directory) from error
        try:
            with given, tempfile.NamedTemporaryFile(dir=target.parent, prefix=".fetching-", delete=False) as file:
                try:
                    found = copy(given, file, blob.size, progress)
                    if found != blob:
                        what = f"has {found.size} of {blob.size} bytes" if found.size != blob.size else "was changed"
                        raise BlobCorruptError(f"blob {blob.digest} in {self._directory} {what}")
                    file.flush()
                    os.rename(file.name, target)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            raise explained(error, target.parent) from error


def copy(given: IO[bytes], file: IO[bytes], size: int, progress: Progress | None) -> Blob:
    """Copy a stream, and return what blob it was. Raises OSError."""
    digest, done = hashlib.sha256(), 0
    while chunk := given.read(CHUNK):
        digest.update(chunk)
        file.write(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, size)
    return Blob(digest.hexdigest(), done)


def explained(error: OSError, place: Path) -> BlobError:
    """Return an operating system's error as one of a blob store."""
    if error.errno in _FULL:
        return BlobSpaceError(f"there is no room left in {place}: {error.strerror}")
    return BlobError(f"{place}: {error.strerror or error}")
