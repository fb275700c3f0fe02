"""What every blob store must do. A backend's test class inherits this and offers `store` and `spoil`."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.blobs.protocol import CHUNK, BlobCorruptError, BlobError, BlobMissingError, BlobStore
from shoal.wire.messages import Blob

Spoil = Callable[[Blob, bytes], None]
"""Puts these bytes where a blob's are, behind the store's back."""


def written(path: Path, size: int) -> Blob:
    content = os.urandom(size)
    path.write_bytes(content)
    return Blob(hashlib.sha256(content).hexdigest(), size)


class BlobStoreConformance:
    """Inherited by each backend."""

    @pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
    async def test_what_is_put_is_fetched(self, store: BlobStore, tmp_path: Path, size: int) -> None:
        blob = written(tmp_path / "source", size)
        assert not await store.has(blob)
        steps: list[tuple[int, int]] = []
        assert await store.put(tmp_path / "source", lambda *step: steps.append(step)) == blob
        assert steps[-1:] == ([(size, size)] if size else [])
        assert await store.has(blob)
        assert not await store.has(Blob(blob.digest, size + 1))
        await store.fetch(blob, tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()

    async def test_the_same_content_may_be_put_at_once(self, store: BlobStore, tmp_path: Path) -> None:
        blob = written(tmp_path / "source", CHUNK + 7)
        assert await asyncio.gather(*(store.put(tmp_path / "source") for _ in range(8))) == [blob] * 8
        await store.fetch(blob, tmp_path / "target")

    async def test_what_was_just_put_is_not_deleted_and_the_rest_is(self, store: BlobStore, tmp_path: Path) -> None:
        blob = written(tmp_path / "source", 1000)
        assert await store.delete(blob.digest)
        await store.put(tmp_path / "source")
        assert not await store.delete(blob.digest, unused_for_s=3600)
        await store.fetch(blob, tmp_path / "target")
        puts = asyncio.gather(*(store.put(tmp_path / "source") for _ in range(10)))
        kept = await asyncio.gather(*(store.delete(blob.digest, unused_for_s=3600) for _ in range(10)))
        await puts
        assert not any(kept)
        assert await store.has(blob)
        assert await store.delete(blob.digest)
        assert not await store.has(blob)
        with pytest.raises(BlobError):
            await store.delete("../../etc/passwd")

    async def test_what_is_not_there_is_missing(self, store: BlobStore, tmp_path: Path) -> None:
        with pytest.raises(BlobMissingError):
            await store.fetch(Blob("0" * 64, 3), tmp_path / "target")
        with pytest.raises(BlobError):
            await store.put(tmp_path / "absent")
        with pytest.raises(BlobError, match="SHA-256"):
            await store.fetch(Blob("../../etc/passwd", 3), tmp_path / "target")
        assert list(tmp_path.glob("*target*")) == []

    @pytest.mark.parametrize("damage", ["changed", "truncated", "longer"])
    async def test_what_was_damaged_is_never_handed_out(
        self, store: BlobStore, spoil: Spoil, tmp_path: Path, damage: str
    ) -> None:
        place = tmp_path / "here"
        place.mkdir()
        blob = written(place / "source", 1000)
        await store.put(place / "source")
        content = (place / "source").read_bytes()
        spoil(blob, {"changed": b"x" * 1000, "truncated": content[:-1], "longer": content + b"x"}[damage])
        with pytest.raises(BlobCorruptError, match=blob.digest):
            await store.fetch(blob, place / "target")
        assert [path.name for path in place.iterdir()] == ["source"]
        await store.put(place / "source")  # which mends it
        await store.fetch(blob, place / "target")
