"""Blobs in a bucket: a real S3 server's, on loopback."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.blobs import BlobStoreConformance, Spoil, written
from conformance.s3 import client, s3_server
from shoal.blobs.opening import open_store
from shoal.blobs.protocol import BlobError, BlobStore
from shoal.wire.messages import Blob
from shoal.wire.quantities import BadValueError


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def bucket(endpoint: str) -> str:
    client(endpoint).create_bucket(Bucket="blobs")
    return "blobs"


@pytest.fixture
def store(endpoint: str, bucket: str, tmp_path: Path) -> BlobStore:
    return open_store(f"s3://{bucket}/{tmp_path.name}?endpoint={endpoint}")


@pytest.fixture
def spoil(endpoint: str, bucket: str, tmp_path: Path) -> Spoil:
    def put(blob: Blob, content: bytes) -> None:
        key = f"{tmp_path.name}/{blob.digest[:2]}/{blob.digest}"
        client(endpoint).put_object(Bucket=bucket, Key=key, Body=content)

    return put


class TestS3Store(BlobStoreConformance):
    pass


async def test_many_parts_come_at_once(store: BlobStore, tmp_path: Path) -> None:
    blob = written(tmp_path / "source", 20 * 1024**2 + 3)
    assert await store.put(tmp_path / "source") == blob
    steps: list[int] = []
    await store.fetch(blob, tmp_path / "target", lambda done, _: steps.append(done))
    assert len(steps) == 3
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()


async def test_a_store_that_cannot_be_used_says_so(endpoint: str, tmp_path: Path) -> None:
    written(tmp_path / "source", 10)
    absent = open_store(f"s3://no-such-bucket?endpoint={endpoint}")
    with pytest.raises(BlobError, match="s3://no-such-bucket"):
        await absent.put(tmp_path / "source")


@pytest.mark.parametrize(
    "address", ["s3:/x", "s3://", "s3://b?endpoint=ftp://x", "s3://b?colour=red"], ids=lambda text: text or "nothing"
)
def test_an_address_is_checked_before_anything_is_done(address: str) -> None:
    with pytest.raises(BadValueError, match=r"^blobs: "):
        open_store(address)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(BadValueError, match=r"pip install 'shoal\[s3\]'"):
        open_store("s3://bucket")
