"""Reading one file: what is asked for is looked up in its index, and only the blocks that hold it are read."""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from typing import Final, TypeVar

import msgspec

from shoal.archive import blocks, frames, records, sections
from shoal.archive.account import Account
from shoal.archive.frames import Bytes
from shoal.archive.looking import look
from shoal.archive.records import Entry, Footer, Header, Part, Saved
from shoal.archive.source import DamagedError
from shoal.bus.protocol import Delivery
from shoal.machine.checkpoint import Checkpoint, UnusableCheckpointError, unseal_any

_BLOCKS_KEPT: Final = 8
_GROUPS_KEPT: Final = 4
_Lookup = dict[str, list[tuple[Entry, int, Part]]]
"""Of each stream the sections that hold it: their block, which of its sections, and what is in it."""
T = TypeVar("T")


class ArchiveFile:
    """One file. `trouble`: why it is read only up to where it is good; None for a whole one."""

    def __init__(
        self, source: Bytes, header: Header, account: Account, digest: bytes, size: int, trouble: DamagedError | None
    ) -> None:
        self.name = source.name
        self.header = header
        self.account = account
        self.digest = digest
        self.size = size
        self.trouble = trouble
        self._source = source
        self._blocks: OrderedDict[int, tuple[msgspec.Raw, ...]] = OrderedDict()
        self._groups: OrderedDict[int, _Lookup] = OrderedDict()
        self._rest = _looked_up(account.entries)  # in no index block yet

    @classmethod
    async def open(cls, source: Bytes, *, damaged: bool = False) -> "ArchiveFile":
        """Read a file's footer, or, where it has none and may be `damaged`, all of it up to where it is good.

        Raises DamagedError, ArchiveError.
        """
        size = await source.size()
        found = await frames.footer_of(source, size)
        if found is not None:
            header = await header_of(source)
            footer = blocks.body_of(found, Footer)
            return cls(source, header, Account.of(footer), found.digest, size, None)
        seen = await look(source)
        if seen.header is None or (seen.trouble is not None and not damaged):
            trouble = seen.trouble or DamagedError(f"{source.name} has no header")
            good = f"; it is good up to byte {seen.end}, which can be read" if seen.header is not None else ""
            raise DamagedError(f"{trouble}{good}", unfinished=trouble.unfinished)
        return cls(source, seen.header, seen.account, seen.digest, size, seen.trouble)

    async def read(
        self, stream: str, *, after: int = 0, since_ms: int | None = None, until: int | None = None
    ) -> AsyncGenerator[Delivery, None]:
        """Yield what there is of a stream, in order; see `History`. Raises DamagedError behind what is good."""

        def wanted(part: Part) -> bool:
            young = since_ms is None or part.last_ms >= since_ms
            return part.last > after and young and (until is None or part.first <= until)

        for number, group in enumerate(self.account.groups):
            if any(part.stream == stream and wanted(part) for part in group.parts):
                for found in (await self._lookup(number)).get(stream, ()):
                    if wanted(found[2]):
                        async for delivery in self._section(found, after, since_ms, until):
                            yield delivery
        for found in self._rest.get(stream, ()):
            if wanted(found[2]):
                async for delivery in self._section(found, after, since_ms, until):
                    yield delivery

    async def _section(
        self, found: tuple[Entry, int, Part], after: int, since_ms: int | None, until: int | None
    ) -> AsyncGenerator[Delivery, None]:
        entry, number, part = found
        section = blocks.section_of((await self._sections(entry))[number])
        if section.stream != part.stream:
            raise DamagedError(f"{self.name}: at byte {entry.offset} is {section.stream} in the place of {part.stream}")
        for delivery in sections.unpack(section):
            if until is not None and delivery.sequence > until:
                return
            if delivery.sequence > after and (since_ms is None or delivery.time_ms >= since_ms):
                yield delivery

    async def checkpoint(self, entry: Entry) -> Checkpoint:
        """Return a state that is kept here. Raises DamagedError."""
        try:
            return unseal_any(blocks.bytes_of(await frames.fetch(self._source, entry.offset, entry.size)))
        except UnusableCheckpointError as error:
            raise DamagedError(f"{self.name}: at byte {entry.offset} a checkpoint is unusable: {error}") from error

    def saved(self) -> list[tuple[Saved, Entry]]:
        """Return which states are here, in the order they were added."""
        return [(entry.summary.saved, entry) for entry in self.account.saved if entry.summary.saved is not None]

    async def values(self, bucket: str) -> Mapping[str, bytes]:
        """Return what a bucket held at the end of this file."""
        for entry in reversed(self.account.values):
            if bucket in entry.summary.buckets:
                frame = await frames.fetch(self._source, entry.offset, entry.size)
                return blocks.body_of(frame, dict[str, dict[str, bytes]])[bucket]
        return self.header.values.get(bucket, {})

    async def _lookup(self, number: int) -> _Lookup:
        if number not in self._groups:
            group = self.account.groups[number]
            frame = await frames.fetch(self._source, group.offset, group.size)
            entries = blocks.body_of(frame, tuple[Entry, ...])
            _keep(self._groups, number, _looked_up(entries), _GROUPS_KEPT)
        self._groups.move_to_end(number)
        return self._groups[number]

    async def _sections(self, entry: Entry) -> tuple[msgspec.Raw, ...]:
        if entry.offset not in self._blocks:
            frame = await frames.fetch(self._source, entry.offset, entry.size)
            _keep(self._blocks, entry.offset, blocks.body_of(frame, tuple[msgspec.Raw, ...]), _BLOCKS_KEPT)
        self._blocks.move_to_end(entry.offset)
        return self._blocks[entry.offset]


def _keep(cache: OrderedDict[int, T], key: int, value: T, most: int) -> None:
    cache[key] = value
    if len(cache) > most:
        cache.popitem(last=False)


def _looked_up(entries: "list[Entry] | tuple[Entry, ...]") -> _Lookup:
    found: _Lookup = {}
    for entry in entries:
        if entry.kind == records.MESSAGES:
            for number, part in enumerate(entry.summary.parts):
                found.setdefault(part.stream, []).append((entry, number, part))
    return found


async def header_of(source: Bytes) -> Header:
    """Return a file's header, checked. Raises DamagedError, ArchiveError."""
    return blocks.header_of(await frames.first(source), source.name)
