"""What a blob store does. Every backend inherits `tests/conformance/blobs.py`."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from shoal.wire.messages import Blob

CHUNK: Final = 4 * 1024**2
"""Bytes read, hashed and written at a time."""

Progress = Callable[[int, int], None]
"""Called with how many bytes are done, and of how many."""


class BlobError(Exception):
    """A blob store could not do what was asked; the text is one sentence for people."""


class BlobMissingError(BlobError):
    """The store has no such blob."""


class BlobCorruptError(BlobError):
    """What is there is not what its name says; it is truncated, or was changed."""


class BlobSpaceError(BlobError):
    """There is no room left."""


class BlobStore(Protocol):
    """Bytes by the SHA-256 of their content. All methods may be called concurrently."""

    async def put(self, source: Path, progress: Progress | None = None) -> Blob:
        """Keep a file's content, as if it were new where it is kept already. Nothing half-stored is ever visible.

        Raises BlobSpaceError, BlobError.
        """
        ...

    async def fetch(self, blob: Blob, target: Path, progress: Progress | None = None) -> None:
        """Write a blob to a file, verified: target appears whole or not at all.

        Raises BlobMissingError, BlobCorruptError, BlobSpaceError, BlobError.
        """
        ...

    async def has(self, blob: Blob) -> bool:
        """Return whether it is kept, with this size."""
        ...

    async def delete(self, digest: str, *, unused_for_s: float = 0.0) -> bool:
        """Remove a blob unless it was put within that time, by anybody; returns whether it is gone. Idempotent.

        Whoever has just put something counts on it: that is safe whatever is deleted at the same time.

        Raises BlobError.
        """
        ...

    async def close(self) -> None:
        """Let go of whatever connects to the store."""
        ...


def measure(source: Path, progress: Progress | None = None) -> Blob:
    """Return the blob that a file's content is; blocks. Raises OSError."""
    digest, done, size = hashlib.sha256(), 0, os.stat(source).st_size
    with source.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, size)
    return Blob(digest.hexdigest(), done)
