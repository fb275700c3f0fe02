"""Where `shoal archive follow` puts its files: a directory, or a bucket by way of one."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from shoal.archive.places import Bucket, LocalFile
from shoal.archive.reader import ArchiveFile
from shoal.archive.series import Series, is_name
from shoal.archive.source import ArchiveError, ConflictError

BUCKET_MOST: Final = 256 * 1024**2
"""Bytes of a file for a bucket, at most: it is sent in one piece, so that it is there whole or not at all."""


class Shelf(Protocol):
    """Files are written in `directory`, one at a time; each that has its end is kept. `sends`: somewhere else."""

    name: str
    directory: Path
    sends: bool

    async def last(self) -> ArchiveFile | None:
        """Return the last file that is kept, and not in `directory` any more; None for none. Raises ArchiveError."""
        ...

    async def keep(self, path: Path) -> ArchiveFile:
        """Keep a file that has its end, and return it from there; twice does no harm. Raises ArchiveError.

        Raises ConflictError where another one of that name is.
        """
        ...


class DirectoryShelf:
    """Files stay where they are written."""

    sends = False

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self.directory = directory

    async def last(self) -> ArchiveFile | None:
        """Nothing is anywhere else."""
        return None

    async def keep(self, path: Path) -> ArchiveFile:
        """It is kept already."""
        return await ArchiveFile.open(LocalFile(path))


class BucketShelf:
    """Files are written in a directory of this machine, and go into a bucket when they have their end."""

    sends = True

    def __init__(self, bucket: Bucket, spool: Path) -> None:
        self.name = bucket.name
        self.directory = spool
        self._bucket = bucket

    async def last(self) -> ArchiveFile | None:
        """Return the bucket's last file. Raises ArchiveError."""
        series = Series(self._bucket)
        if not await series.found():
            return None
        found = await series.last()
        if found.trouble is not None:
            raise found.trouble
        return found

    async def keep(self, path: Path) -> ArchiveFile:
        """Send it, unless it is there. Raises ConflictError where another one of that name is."""
        new = await self._bucket.put(path.name, path)
        there = await ArchiveFile.open(self._bucket.open(path.name))
        if not new:
            if there.digest != (await ArchiveFile.open(LocalFile(path))).digest:
                raise ConflictError(
                    f"{self.name} has another {path.name} already: somebody else archives there; stop one of the two"
                )
        await asyncio.to_thread(path.unlink)
        return there


def files_in(directory: Path) -> Sequence[Path]:
    """Return the files of a series in a directory, in order; makes the directory. Raises ArchiveError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return sorted(path for path in directory.iterdir() if is_name(path.name))
    except OSError as error:
        raise ArchiveError(f"{directory} cannot be used: {error.strerror or error}") from error
