"""Blobs in a bucket of a real broker."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nats
import pytest

from conformance.blobs import BlobStoreConformance, Spoil, written
from shoal.blobs.nats import NatsStore
from shoal.blobs.opening import open_store
from shoal.blobs.protocol import BlobError, BlobSpaceError, BlobStore
from shoal.broker import EmbeddedBroker
from shoal.wire.messages import Blob
from shoal.wire.quantities import BadValueError

pytestmark = pytest.mark.broker


@pytest.fixture
async def store(broker: EmbeddedBroker, tmp_path: Path) -> AsyncIterator[BlobStore]:
    store = open_store(f"{broker.url}/{tmp_path.name[-30:]}")
    yield store
    await store.close()


@pytest.fixture
def spoil(broker: EmbeddedBroker, tmp_path: Path) -> Spoil:
    async def put(blob: Blob, content: bytes) -> None:
        client = await nats.connect(broker.url)
        objects = await client.jetstream().object_store(tmp_path.name[-30:])
        await objects.put(blob.digest, content)
        await client.close()

    def spoil(blob: Blob, content: bytes) -> None:
        with ThreadPoolExecutor(1) as apart:
            apart.submit(asyncio.run, put(blob, content)).result(30)

    return spoil


class TestNatsStore(BlobStoreConformance):
    pass


async def test_parts_that_were_changed_are_found(broker: EmbeddedBroker, tmp_path: Path) -> None:
    store = NatsStore(broker.url, "changed")
    blob = written(tmp_path / "source", 300_000)
    await store.put(tmp_path / "source")
    client = await nats.connect(broker.url)
    objects = await client.jetstream().object_store("changed")
    info = await objects.get_info(blob.digest)
    subject = f"$O.changed.C.{info.nuid}"
    await client.jetstream().purge_stream("OBJ_changed", subject=subject)
    for _ in range(info.chunks or 0):
        await client.jetstream().publish(subject, b"x" * 100_000)
    await client.close()
    with pytest.raises(BlobError, match="was changed"):
        await store.fetch(blob, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    await store.close()


async def test_a_full_bucket_is_said(broker: EmbeddedBroker, tmp_path: Path) -> None:
    client = await nats.connect(broker.url)
    await client.jetstream().create_object_store("small", max_bytes=500_000)
    await client.close()
    store = NatsStore(broker.url, "small")
    written(tmp_path / "source", 2_000_000)
    with pytest.raises(BlobSpaceError, match="no room left"):
        await store.put(tmp_path / "source")
    await store.close()


async def test_a_broker_that_is_not_there_is_said(tmp_path: Path) -> None:
    written(tmp_path / "source", 10)
    store = open_store("nats://127.0.0.1:1/blobs")
    with pytest.raises(BlobError, match="bucket blobs of nats://127"):
        await store.put(tmp_path / "source")


@pytest.mark.parametrize("address", ["nats://", "nats://host", "nats://host/a/b", "nats://host/no bucket"])
def test_an_address_is_checked_before_anything_is_done(address: str) -> None:
    with pytest.raises(BadValueError, match=r"^blobs: "):
        open_store(address)
