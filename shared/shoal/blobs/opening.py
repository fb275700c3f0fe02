"""Blob stores by their address."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from shoal.blobs.files import FileStore
from shoal.blobs.protocol import BlobStore
from shoal.wire.quantities import BadValueError


def open_store(url: str) -> BlobStore:
    """Return the store at `file:///directory`. Raises BadValueError for any other address."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
        raise BadValueError("blobs", f"{url!r} is no blob store that is known; write file:///directory")
    return FileStore(Path(unquote(parts.path)))
