"""Compression: Zstandard, from the standard library where that has it."""

import sys
from typing import Final

from shoal.archive.source import ArchiveError, DamagedError

LEVEL: Final = 3
"""Higher ones take longer and made logs no smaller, up to 12 (docs/adr/0014)."""

try:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
except ImportError as error:
    raise ArchiveError("archives need Zstandard: pip install 'shoal[archive]'") from error


def pack(data: bytes) -> bytes:
    """Return the bytes compressed."""
    return zstd.compress(data, LEVEL)


def unpack(data: bytes, size: int | None = None, *, most: int = 64 * 1024**2) -> bytes:
    """Return what was compressed: exactly this many bytes, or at most so many. Raises DamagedError."""
    try:
        reader = zstd.ZstdDecompressor()
        found = reader.decompress(data, (most if size is None else size) + 1)
    except zstd.ZstdError as error:
        raise DamagedError(f"a block cannot be unpacked: {error}") from error
    if not reader.eof or reader.unused_data or size not in (None, len(found)):
        raise DamagedError("a block has another size than it says")
    return found
