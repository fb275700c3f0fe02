"""History from an archive: a file, or the files of a directory or bucket one after the other. No broker is needed."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from shoal.archive.places import SUFFIX, Bucket, Directory
from shoal.archive.reader import ArchiveFile
from shoal.archive.records import Entry, Header, Missing, Saved
from shoal.archive.series import Series
from shoal.archive.source import ArchiveError, Bounds, DamagedError
from shoal.bus.protocol import Delivery
from shoal.machine.checkpoint import Checkpoint


class ArchiveHistory:
    """What an archive holds. Make one with `ArchiveHistory.open`."""

    def __init__(self, series: Series, name: str) -> None:
        self.name = name
        self.series = series

    @classmethod
    async def open(cls, path: str | Path, *, damaged: bool = False) -> "ArchiveHistory":
        """Open a file, a directory, or `s3://bucket/prefix` (or an object there that ends in `.shoal`).

        A file that is damaged, or has no end, is refused unless it may be `damaged`: it is then read up to where it is
        good, and `trouble` says why not further. Raises DamagedError, ArchiveError.
        """
        series = series_of(path, damaged=damaged)
        await series.refresh()
        await series.last()
        return cls(series, str(path))

    async def header(self) -> Header:
        """Return what the archive says of itself; of a directory, its last file."""
        return (await self.series.last()).header

    async def partial(self) -> bool:
        """Return whether it is of a run or a tenant only, so that messages between others are left out."""
        return (await self.header()).partial

    async def trouble(self) -> DamagedError | None:
        """Return why the archive, or its last file, is read only up to where it is good; None for a whole one."""
        return (await self.series.last()).trouble

    async def refresh(self) -> None:
        """Look whether there is more by now."""
        await self.series.refresh()

    async def streams(self) -> Sequence[str]:
        """Return the names of the streams that are archived."""
        last = await self.series.last()
        return sorted({*last.account.positions, *last.header.plan})

    async def bounds(self, stream: str) -> Bounds:
        """Return which messages there are of a stream."""
        file = await self.series.last()
        last = file.account.positions.get(stream, 0)
        if not last:
            _, last = file.header.plan.get(stream, (0, 0))
            return Bounds(last + 1, last)
        before = (await self.series.file(0)).header.positions.get(stream, 0)
        number = await self.series.first(lambda file: file.account.positions.get(stream, 0) > before)
        if number == len(self.series):
            return Bounds(last + 1, last)
        total = (await self.series.file(number)).account.totals.get(stream)
        while total is None and number + 1 < len(self.series):  # of this one only a gap was noted
            number += 1
            total = (await self.series.file(number)).account.totals.get(stream)
        return Bounds(last + 1 if total is None else total.first, last)

    async def read(
        self, stream: str, *, after: int = 0, since_ms: int | None = None, until: int | None = None
    ) -> AsyncGenerator[Delivery, None]:
        """Yield a stream's messages in order, then end; see the protocol."""

        def worth(file: ArchiveFile) -> bool:
            young = since_ms is None or file.account.newest_ms >= since_ms
            return young and file.account.positions.get(stream, 0) > after

        count = len(self.series)
        number = await self.series.first(worth)
        file: ArchiveFile | None = None
        while number < count:
            file = await (self.series.file(number) if file is None else self.series.after(file, number))
            if until is not None and file.header.positions.get(stream, 0) >= until:
                return
            async with aclosing(file.read(stream, after=after, since_ms=since_ms, until=until)) as found:
                async for delivery in found:
                    yield delivery
            number += 1

    async def checkpoints(
        self, partition: str, *, version: int | None = None, until_ms: int | None = None, last: int | None = None
    ) -> Sequence[Checkpoint]:
        """Return states of a partition, the oldest first; see the protocol."""
        found: list[tuple[Saved, Entry, ArchiveFile]] = []
        for number in reversed(range(len(self.series))):
            file = await self.series.file(number)
            wanted = [
                (saved, entry, file)
                for saved, entry in file.saved()
                if saved.partition == partition
                and version in (None, saved.version)
                and (until_ms is None or saved.time_ms <= until_ms)
            ]
            found[:0] = wanted
            if last is not None and len(found) >= last:
                found = found[len(found) - last :]
                break
        return [await file.checkpoint(entry) for _, entry, file in found]

    async def states(self, partition: str) -> AsyncGenerator[Checkpoint, None]:
        """Yield all states of a partition, the oldest first."""
        for number in range(len(self.series)):
            file = await self.series.file(number)
            for saved, entry in file.saved():
                if saved.partition == partition:
                    yield await file.checkpoint(entry)

    async def saved(self) -> Sequence[Saved]:
        """Return which states of partitions there are, in the order they were archived."""
        files = [await self.series.file(number) for number in range(len(self.series))]
        return [saved for file in files for saved, _ in file.saved()]

    async def missing(self) -> Sequence[Missing]:
        """Return which messages the broker did not keep any more when they were to be archived."""
        files = [await self.series.file(number) for number in range(len(self.series))]
        return [gap for file in files for gap in file.account.missing]

    async def values(self, bucket: str) -> Mapping[str, bytes]:
        """Return what a bucket of the cluster held at the archive's end, by key."""
        return await (await self.series.last()).values(bucket)

    async def close(self) -> None:
        """Nothing is held open."""


def series_of(path: str | Path, *, damaged: bool = False) -> Series:
    """Return the files at a path or address; nothing is asked of them yet. Raises ArchiveError, BadValueError."""
    text = str(path)
    if text.startswith("s3://"):
        parts = urlsplit(text)
        parent, _, last = parts.path.rpartition("/")
        only = last if last.endswith(SUFFIX) else None
        return Series(bucket_at(urlunsplit(parts._replace(path=parent)) if only else text), only, damaged=damaged)
    local = Path(path)
    if local.is_dir():
        return Series(Directory(local), damaged=damaged)
    if not local.exists():
        raise ArchiveError(f"there is no archive {text}")
    return Series(Directory(local.parent), local.name, damaged=damaged)


def bucket_at(url: str) -> Bucket:
    """Return the bucket, or the prefix of one, at an address. Raises BadValueError."""
    from shoal.blobs.opening import open_bucket

    parts = urlsplit(url)
    return Bucket(open_bucket(url, "archive"), f"s3://{parts.netloc}{parts.path}")
