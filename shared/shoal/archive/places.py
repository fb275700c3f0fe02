"""Where archives are: files, directories of them, and buckets."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from shoal.archive.frames import Bytes
from shoal.archive.source import ArchiveError

if TYPE_CHECKING:
    from obstore.store import S3Store

SUFFIX: Final = ".shoal"


class Place(Protocol):
    """A directory of archives, or something like one."""

    name: str
    """For people."""

    async def names(self) -> Sequence[str]:
        """Return the names of the archives there, sorted. Raises ArchiveError."""
        ...

    def open(self, name: str) -> Bytes:
        """Return one of them; nothing is asked of it yet."""
        ...


class LocalFile:
    """A file's bytes. It is open only while it is read."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    async def size(self) -> int:
        """Return how many bytes it has now."""
        try:
            return self._path.stat().st_size
        except OSError as error:
            raise self._explained(error) from error

    async def read(self, offset: int, length: int) -> bytes:
        """Return these bytes."""
        try:
            return await asyncio.to_thread(self._read, offset, length)
        except OSError as error:
            raise self._explained(error) from error

    def _read(self, offset: int, length: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def _explained(self, error: OSError) -> ArchiveError:
        return ArchiveError(f"{self.name} cannot be read: {error.strerror or error}")


class Directory:
    """A directory on this machine."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    async def names(self) -> Sequence[str]:
        """Return the archives in it."""
        try:
            return sorted(each.name for each in self._path.iterdir() if each.name.endswith(SUFFIX))
        except OSError as error:
            raise ArchiveError(f"{self.name} cannot be read: {error.strerror or error}") from error

    def open(self, name: str) -> LocalFile:
        """Return one of them."""
        return LocalFile(self._path / name)


class BucketObject:
    """An object's bytes."""

    def __init__(self, bucket: "S3Store", key: str, name: str) -> None:
        self.name = name
        self._bucket = bucket
        self._key = key
        self._size: int | None = None

    async def size(self) -> int:
        """Return how many bytes it has; an object never changes."""
        if self._size is None:
            import obstore

            try:
                self._size = int((await obstore.head_async(self._bucket, self._key))["size"])
            except Exception as error:
                raise explained(self.name, error) from error
        return self._size

    async def read(self, offset: int, length: int) -> bytes:
        """Return these bytes."""
        import obstore

        length = min(length, await self.size() - offset)
        if length <= 0:
            return b""
        try:
            return bytes(await obstore.get_range_async(self._bucket, self._key, start=offset, length=length))
        except Exception as error:
            raise explained(self.name, error) from error


class Bucket:
    """A bucket of S3, or a prefix of one."""

    def __init__(self, bucket: "S3Store", name: str) -> None:
        self.name = name
        self._bucket = bucket

    async def names(self) -> Sequence[str]:
        """Return the archives in it."""
        import obstore

        try:
            found = await obstore.list_with_delimiter_async(self._bucket)
        except Exception as error:
            raise explained(self.name, error) from error
        return sorted(each["path"] for each in found["objects"] if each["path"].endswith(SUFFIX))

    def open(self, name: str) -> BucketObject:
        """Return one of them."""
        return BucketObject(self._bucket, name, f"{self.name}/{name}")

    async def put(self, name: str, path: Path) -> bool:
        """Store a file under a name; returns False where something has that name already. Raises ArchiveError."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            await obstore.put_async(self._bucket, name, path, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except Exception as error:
            raise explained(f"{self.name}/{name}", error) from error
        return True


def explained(name: str, error: Exception) -> ArchiveError:
    """Return a bucket's error as one of an archive."""
    first = str(error).strip().splitlines() or [repr(error)]
    return ArchiveError(f"{name}: {first[0][:300]}")
