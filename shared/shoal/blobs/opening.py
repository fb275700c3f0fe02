"""Blob stores by their address."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from shoal.blobs.files import FileStore
from shoal.blobs.protocol import BlobStore
from shoal.wire.quantities import BadValueError

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Store as Bucket

_KNOWN: Final = (
    "write file:///directory, s3://bucket/prefix (with ?endpoint=URL&region=NAME where it needs them)"
    " or nats://broker:4222/bucket"
)


def open_store(url: str) -> BlobStore:
    """Return the store at an address; nothing is asked of it yet. Raises BadValueError for what is no such address."""
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FileStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from shoal.blobs.s3 import S3Store

        return S3Store(open_bucket(url), f"s3://{parts.netloc}{parts.path}")
    if parts.scheme in ("nats", "tls") and parts.netloc and re.fullmatch(r"/[A-Za-z0-9_-]+", parts.path):
        from shoal.blobs.nats import NatsStore
        from shoal.bus.tls import tls_from_environment

        return NatsStore(f"{parts.scheme}://{parts.netloc}", parts.path[1:], tls_from_environment())
    raise BadValueError("blobs", f"{url!r} is no blob store that is known; {_KNOWN}")


def open_bucket(url: str, field: str = "blobs") -> "Bucket":
    """Return the bucket, or the prefix of one, at an `s3://` address, asked for nothing yet. Raises BadValueError."""
    parts = urlsplit(url)
    try:
        from obstore.store import S3Store as Bucket
    except ImportError:
        raise BadValueError(field, "s3:// needs obstore: pip install 'shoal[s3]'") from None

    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    endpoint, region = options.pop("endpoint", ""), options.pop("region", "us-east-1")
    if options:
        raise BadValueError(field, f"{next(iter(options))!r} is nothing that is known of s3://; {_KNOWN}")
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        raise BadValueError(field, f"endpoint {endpoint!r} is no http:// or https:// address")
    config: S3Config = {"region": region}
    if endpoint:
        config |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
    return Bucket(
        parts.netloc,
        prefix=unquote(parts.path).strip("/") or None,
        config=config,
        client_options={"allow_http": endpoint.startswith("http://")},
    )
