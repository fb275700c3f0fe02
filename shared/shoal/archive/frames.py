"""A file of blocks, each of which vouches for all before it.

    16 bytes   "shoal archive 1\\n"
    blocks     head: kind (1 byte), size of the summary, of the body, and of the body unpacked (4 bytes each),
               and a CRC-32 of these 13 bytes
               summary and body: MessagePack, compressed
               digest (32 bytes): BLAKE2b of the digest before it and of this block's bytes up to here
    16 bytes   where the last block, the footer, begins (8 bytes), and "shoalend"

In the place of the digest before the first block is the digest of the file's first 16 bytes. So no byte can be altered,
and no block be taken out, put in or moved, without a digest that does not fit; of a file that was cut off the rest
still stands. All numbers are big-endian.
"""

import hashlib
import struct
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

from shoal.archive.source import DamagedError

MAGIC: Final = b"shoal archive 1\n"
END: Final = b"shoalend"
DIGEST: Final = 32
FOOTER: Final = b"F"
"""The kind of the block behind which nothing comes."""
_HEAD: Final = struct.Struct(">cIII")
_HEAD_SIZE: Final = _HEAD.size + 4
_TRAILER: Final = struct.Struct(">Q8s")
TRAILER: Final = _TRAILER.size
_AHEAD: Final = 4 * 1024**2
FIRST: Final = hashlib.blake2b(MAGIC, digest_size=DIGEST).digest()
"""What is in the place of the digest before the first block."""


class Bytes(Protocol):
    """Something that bytes can be read of, wherever they are."""

    name: str
    """For people."""

    async def size(self) -> int:
        """Return how many bytes it has now. Raises ArchiveError."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Return these bytes, fewer where it ends before. Raises ArchiveError."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """A block as it is kept. `digest` vouches for it and all before it."""

    offset: int
    kind: bytes
    summary: bytes
    body: bytes
    unpacked: int
    digest: bytes

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return _HEAD_SIZE + len(self.summary) + len(self.body) + DIGEST

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.offset + self.size


def build(kind: bytes, summary: bytes, body: bytes, unpacked: int, before: bytes) -> bytes:
    """Return a block's bytes; the last DIGEST of them are its digest."""
    head = _HEAD.pack(kind, len(summary), len(body), unpacked)
    head += zlib.crc32(head).to_bytes(4, "big")
    return b"".join((head, summary, body, _digest(before, head, summary, body)))


def trailer(footer: int) -> bytes:
    """Return a whole file's last bytes."""
    return _TRAILER.pack(footer, END)


def _digest(before: bytes, *parts: bytes) -> bytes:
    found = hashlib.blake2b(before, digest_size=DIGEST)
    for part in parts:
        found.update(part)
    return found.digest()


def _length(head: bytes) -> int:
    """Return how long the block is that begins so. Raises DamagedError."""
    if len(head) < _HEAD_SIZE:
        raise DamagedError("it ends within a block", unfinished=True)
    if zlib.crc32(head[: _HEAD.size]) != int.from_bytes(head[_HEAD.size : _HEAD_SIZE], "big"):
        raise DamagedError("there is no block, or its head was altered")
    _, summary, body, _ = _HEAD.unpack_from(head)
    return int(_HEAD_SIZE + summary + body + DIGEST)


def _parse(data: bytes, offset: int, before: bytes) -> Frame:
    """Return the block that these bytes, which are at `offset` of a file, begin with. Raises DamagedError."""
    if len(data) < _length(data):
        raise DamagedError("it ends within a block", unfinished=True)
    kind, summary_size, body_size, unpacked = _HEAD.unpack_from(data)
    middle = _HEAD_SIZE + summary_size
    end = middle + body_size
    summary, body, digest = data[_HEAD_SIZE:middle], data[middle:end], data[end : end + DIGEST]
    if _digest(before, data[:_HEAD_SIZE], summary, body) != digest:
        raise DamagedError("a block is not what its digest says")
    return Frame(offset, kind, summary, body, unpacked, digest)


async def fetch(source: Bytes, offset: int, size: int) -> Frame:
    """Return one block, checked against the digest before it. Raises DamagedError, ArchiveError."""
    first = offset == len(MAGIC)
    data = await source.read(len(MAGIC) if first else offset - DIGEST, size if first else size + DIGEST)
    before, data = (FIRST, data) if first else (data[:DIGEST], data[DIGEST:])
    try:
        return _parse(data, offset, before)
    except DamagedError as error:
        raise DamagedError(f"{source.name}: at byte {offset} {error}") from error


async def first(source: Bytes) -> Frame:
    """Return a file's first block. Raises DamagedError, ArchiveError."""
    async with aclosing(scan(source, ahead=64 * 1024)) as found:
        async for frame in found:
            return frame
    raise DamagedError(f"{source.name} holds nothing", unfinished=True)


async def footer_of(source: Bytes, size: int) -> Frame | None:
    """Return the footer of a file of this size, checked against the digest before it; None where there is none."""
    if size < len(MAGIC) + TRAILER:
        return None
    offset, end = _TRAILER.unpack(await source.read(size - TRAILER, TRAILER))
    if end != END or not len(MAGIC) <= offset < size - TRAILER:
        return None
    try:
        found = await fetch(source, offset, size - TRAILER - offset)
    except DamagedError:
        return None
    return found if found.kind == FOOTER and found.end == size - TRAILER else None


class _Window:
    """Bytes of a file read one after the other, a few at a time."""

    def __init__(self, source: Bytes, ahead: int) -> None:
        self._source = source
        self._ahead = ahead
        self._data = b""
        self._begin = 0

    async def get(self, offset: int, length: int) -> bytes:
        if not self._begin <= offset <= offset + length <= self._begin + len(self._data):
            self._data = await self._source.read(offset, max(length, self._ahead))
            self._begin = offset
        return self._data[offset - self._begin : offset - self._begin + length]


async def scan(source: Bytes, *, ahead: int = _AHEAD) -> AsyncGenerator[Frame, None]:
    """Yield all blocks from the first, each checked. Raises DamagedError where one is bad, or only half there.

    Ends where the file ends, or behind the footer; what is behind that is not looked at. `ahead`: bytes read at a time.
    """
    window = _Window(source, ahead)
    found = await window.get(0, len(MAGIC))
    if found != MAGIC:
        cut = len(found) < len(MAGIC) and MAGIC.startswith(found)
        raise DamagedError(f"{source.name} {'ends before it begins' if cut else 'is no archive'}", unfinished=cut)
    at, before = len(MAGIC), FIRST
    while head := await window.get(at, _HEAD_SIZE):
        try:
            frame = _parse(await window.get(at, _length(head)), at, before)
        except DamagedError as error:
            text = f"{source.name}: at byte {at} {error}"
            raise DamagedError(text, unfinished=error.unfinished) from error
        yield frame
        if frame.kind == FOOTER:
            return
        at, before = frame.end, frame.digest
