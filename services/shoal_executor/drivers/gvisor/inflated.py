"""A checkpoint in a form that is quick to restore: what runsc deflated is inflated once, instead of at each restore.

Releases before 2024 always deflate what they keep. A quarter of the processor time of a restore goes into that: half of
it into the inflation itself, and half into buffers for pieces of 1 MiB, which are fresh memory each time. So pieces are
rewritten as stored ones, of 64 KiB, by the very format: RFC 1951, 3.2.4, in gVisor's pkg/compressio (pieces) and
pkg/state/statefile (the head). Of the sizes from 16 KiB to 1 MiB, 64 KiB took least.
"""

import errno
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Final

_FILE: Final = "checkpoint.img"
_MAGIC: Final = b"gVisorSF"
_HASH: Final = 32
_MOST: Final = 1 << 24
"""The largest piece, and the largest head, that is believed."""
_PIECE: Final = 1 << 16
_STORED: Final = 0xFFFF
_WORTH: Final = 3
"""How many times larger it must become.

What hardly deflates costs little to inflate; and the file system that keeps what was inflated compresses, which takes
33 ms for each MiB that cannot be, against 2 for one that can.
"""


class _UnknownError(Exception):
    pass


def inflate(image: Path) -> bool:
    """Rewrite the checkpoint in this directory, and return whether that was done.

    It stays as it is where it is not understood whole, or deflated little, or where there is no room. Raises OSError.
    """
    kept, rewritten = image / _FILE, image / f".{_FILE}"
    try:
        with kept.open("rb") as source:
            head, most = _head(source)
            if _pieces(source) * most < _WORTH * source.tell():
                return False
            source.seek(len(head))
            with rewritten.open("xb") as target:
                target.write(head[:-4] + _PIECE.to_bytes(4))
                _rewrite(source, target, most)
        rewritten.replace(kept)
    except _UnknownError:
        return False
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    finally:
        rewritten.unlink(missing_ok=True)
    return True


def _head(source: BinaryIO) -> tuple[bytes, int]:
    """Return all that is before the first piece, and how large a piece can be."""
    start = _exactly(source, len(_MAGIC) + 8)
    told = int.from_bytes(start[len(_MAGIC) :])
    if not start.startswith(_MAGIC) or told > _MOST:
        raise _UnknownError
    rest = _exactly(source, told + _HASH + 4)
    most = int.from_bytes(rest[-4:])
    if not _PIECE <= most <= _MOST:
        raise _UnknownError
    return start + rest, most


def _pieces(source: BinaryIO) -> int:
    """Return how many there are from here to the end."""
    count = 0
    while (size := _size(source)) is not None:
        source.seek(size, os.SEEK_CUR)
        count += 1
    return count


def _rewrite(source: BinaryIO, target: BinaryIO, most: int) -> None:
    while (size := _size(source)) is not None:
        if size > 2 * most:
            raise _UnknownError
        piece = _inflated(_exactly(source, size), most)
        for at in range(0, len(piece), _PIECE):
            stored = _stored(piece[at : at + _PIECE])
            target.write(len(stored).to_bytes(4) + stored)


def _size(source: BinaryIO) -> int | None:
    """Return that of the next piece, nothing at the end."""
    head = source.read(4)
    return int.from_bytes(_whole(head, 4)) if head else None


def _exactly(source: BinaryIO, size: int) -> bytes:
    return _whole(source.read(size), size)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise _UnknownError
    return data


def _inflated(data: bytes, most: int) -> memoryview:
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        piece = inflating.decompress(data, most + 1)  # one more, or the end is not looked at
    except zlib.error:
        raise _UnknownError from None
    if not inflating.eof or inflating.unused_data or len(piece) > most:
        raise _UnknownError
    return memoryview(piece)


def _stored(data: memoryview) -> bytes:
    """Return this as blocks of deflate that are stored as they are."""
    blocks = bytearray()
    for at in range(0, len(data), _STORED):
        block = data[at : at + _STORED]
        last = at + len(block) == len(data)
        blocks += struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF)
        blocks += block
    return bytes(blocks)
