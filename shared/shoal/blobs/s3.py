"""Blobs in a bucket of S3, or of whatever speaks its language: through obstore, in parallel parts both ways.

Credentials come from where obstore looks for them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role.
"""

import asyncio
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shoal.blobs.files import explained
from shoal.blobs.protocol import (
    CHUNK,
    BlobCorruptError,
    BlobError,
    BlobMissingError,
    Progress,
    measure,
)
from shoal.wire.messages import Blob

if TYPE_CHECKING:
    from obstore.store import S3Store as _Bucket

_AT_ONCE: Final = 8
"""Parts under way for one blob."""
_PART: Final = max(CHUNK, 8 * 1024**2)  # S3 takes at most 10,000 parts: 80 GB


class S3Store:
    """Each blob is the object `prefix/ab/abcdef...` of a bucket. `name` is for people.

    A bucket cannot be locked: should another process put a blob again, after more than an hour, within the milliseconds
    in which it is being deleted, it is deleted all the same; whoever fetches it then is told that it is missing.
    """

    def __init__(self, bucket: "_Bucket", name: str) -> None:
        self._bucket = bucket
        self._name = name

    async def put(self, source: Path, progress: Progress | None = None) -> Blob:
        """Hash a file, then upload it: as if it were new where it is there already, which mends it, too."""
        import obstore

        try:
            blob = await asyncio.to_thread(measure, source, None)
            file = source.open("rb")
        except OSError as error:
            raise explained(error, source) from error
        with file:
            try:
                key = _key(blob.digest)
                await obstore.put_async(self._bucket, key, file, chunk_size=_PART, max_concurrency=_AT_ONCE)
            except Exception as error:  # a missing bucket is an OSError, too
                raise self._error(error) from error
        if progress is not None and blob.size:
            progress(blob.size, blob.size)
        return blob

    async def fetch(self, blob: Blob, target: Path, progress: Progress | None = None) -> None:
        """Download all parts of a blob, several at a time, and hash what came."""
        found = await self._size(blob.digest)
        if found is None:
            raise BlobMissingError(f"blob {blob.digest} is not in {self._name}")
        if found != blob.size:
            raise BlobCorruptError(f"blob {blob.digest} in {self._name} has {found} of {blob.size} bytes")
        try:
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".fetching-", delete=False) as file:
                try:
                    await self._parts(blob, file.fileno(), progress)
                    whole = await asyncio.to_thread(measure, Path(file.name), None)
                    if whole != blob:
                        raise BlobCorruptError(f"blob {blob.digest} in {self._name} was changed")
                    os.rename(file.name, target)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            raise explained(error, target.parent) from error

    async def _parts(self, blob: Blob, fd: int, progress: Progress | None) -> None:
        import obstore

        room = asyncio.Semaphore(_AT_ONCE)
        done = 0

        async def part(start: int) -> None:
            nonlocal done
            length = min(_PART, blob.size - start)
            async with room:
                try:
                    data = await obstore.get_range_async(self._bucket, _key(blob.digest), start=start, length=length)
                except Exception as error:
                    raise self._error(error) from error
                await asyncio.to_thread(os.pwrite, fd, memoryview(data), start)
            done += length
            if progress is not None:
                progress(done, blob.size)

        tasks = [asyncio.create_task(part(start)) for start in range(0, blob.size, _PART)]
        try:
            for task in tasks:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def has(self, blob: Blob) -> bool:
        """Ask for the object's size."""
        return await self._size(blob.digest) == blob.size

    async def delete(self, digest: str, *, unused_for_s: float = 0.0) -> bool:
        """Remove the object, by its time of change."""
        import obstore

        try:
            found = await obstore.head_async(self._bucket, _key(digest))
            age = datetime.now(UTC) - found["last_modified"]
            if unused_for_s and age.total_seconds() < unused_for_s:
                return False
            await obstore.delete_async(self._bucket, _key(digest))
        except FileNotFoundError:
            return True
        except Exception as error:
            raise self._error(error) from error
        return True

    async def close(self) -> None:
        """Nothing is held that must be let go."""

    async def _size(self, digest: str) -> int | None:
        import obstore

        try:
            return int((await obstore.head_async(self._bucket, _key(digest)))["size"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> BlobError:
        if isinstance(error, BlobError):
            return error
        first = str(error).strip().splitlines() or [repr(error)]
        return BlobError(f"{self._name}: {first[0][:300]}")


def _key(digest: str) -> str:
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise BlobError(f"{digest!r} is not the SHA-256 of anything")
    return f"{digest[:2]}/{digest}"
