"""Files that follow each other, each of which vouches for the one before it: what `shoal archive follow` writes."""

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from shoal.archive.frames import Bytes
from shoal.archive.places import SUFFIX, Place
from shoal.archive.reader import ArchiveFile
from shoal.archive.source import ArchiveError, DamagedError

_OPEN: Final = 16
_NAME: Final = re.compile(r"\d{8}" + re.escape(SUFFIX))


def name_of(segment: int) -> str:
    """Return the name of a series' file."""
    return f"{segment:08d}{SUFFIX}"


def is_name(name: str) -> bool:
    """Return whether a series' file may be called so."""
    return _NAME.fullmatch(name) is not None


class Series:
    """The files of a place, in order, or one file alone.

    Of several only the last may be without an end: it may still be written. `damaged`: any may be damaged, and is read
    up to where it is good.
    """

    def __init__(self, place: Place, only: str | None = None, *, damaged: bool = False) -> None:
        self._place = place
        self._only = only
        self._damaged = damaged
        self._open: OrderedDict[str, ArchiveFile] = OrderedDict()
        self.names: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Where it is, for people."""
        return self._place.open(self._only).name if self._only is not None else self._place.name

    @property
    def several(self) -> bool:
        """Whether it is files one after the other, to which others may be added."""
        return self._only is None

    def source(self, number: int) -> Bytes:
        """Return one of the files, unread."""
        return self._place.open(self.names[number])

    def __len__(self) -> int:
        return len(self.names)

    async def refresh(self) -> None:
        """Look which files there are, and how far the last one is. Raises ArchiveError."""
        if not await self.found():
            raise ArchiveError(f"there is no archive in {self._place.name}; `shoal archive follow` makes one there")

    async def found(self) -> bool:
        """Look which files there are; returns whether there is any. Raises ArchiveError."""
        if self.names:
            self._open.pop(self.names[-1], None)
        if self._only is not None:
            self.names = (self._only,)
        else:
            self.names = [name for name in await self._place.names() if is_name(name)]
        return bool(self.names)

    async def file(self, number: int) -> ArchiveFile:
        """Return one of the files, counted from 0. Raises DamagedError, ArchiveError."""
        name = self.names[number]
        found = self._open.pop(name, None)
        if found is None:
            lenient = self._damaged or (self._only is None and number == len(self.names) - 1)
            found = await ArchiveFile.open(self._place.open(name), damaged=lenient)
            trouble = found.trouble
            if trouble is not None and not trouble.unfinished and not self._damaged:
                raise trouble
        self._open[name] = found
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return found

    async def after(self, before: ArchiveFile, number: int) -> ArchiveFile:
        """Return the file that comes after one. Raises DamagedError where it is another one that it vouches for."""
        found = await self.file(number)
        if found.header.segment != before.header.segment + 1 or found.header.previous != before.digest:
            raise DamagedError(
                f"{found.name} does not follow {before.name}: one was altered, or one between is missing"
            )
        return found

    async def last(self) -> ArchiveFile:
        """Return the last file."""
        return await self.file(len(self.names) - 1)

    async def first(self, holds: Callable[[ArchiveFile], bool]) -> int:
        """Return the number of the first file for which it holds, as then for all after; how many there are if none."""

        async def asked(number: int) -> bool:
            return holds(await self.file(number))

        return await _bisect(len(self.names), asked)


async def _bisect(count: int, holds: Callable[[int], Awaitable[bool]]) -> int:
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if await holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
