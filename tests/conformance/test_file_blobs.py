"""Blobs as files."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.blobs import BlobStoreConformance, Spoil, written
from shoal.blobs.files import FileStore
from shoal.blobs.opening import open_store
from shoal.blobs.protocol import BlobSpaceError
from shoal.wire.messages import Blob
from shoal.wire.quantities import BadValueError


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "blobs")


@pytest.fixture
def spoil(tmp_path: Path) -> Spoil:
    def put(blob: Blob, content: bytes) -> None:
        (tmp_path / "blobs" / blob.digest[:2] / blob.digest).write_bytes(content)

    return put


class TestFileStore(BlobStoreConformance):
    pass


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount the small disk that this test fills")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=True, timeout=30)
    yield place
    subprocess.run(["umount", place], check=True, timeout=30)


async def test_a_full_disk_is_said_and_nothing_half_written_stays(small: Path, tmp_path: Path) -> None:
    blob = written(tmp_path / "large", 3 * 1024**2)
    full = FileStore(small / "blobs")
    with pytest.raises(BlobSpaceError, match="no room left"):
        await full.put(tmp_path / "large")
    assert not await full.has(blob)
    assert [path for path in (small / "blobs").rglob("*") if path.is_file()] == []
    store = FileStore(tmp_path / "blobs")
    await store.put(tmp_path / "large")
    with pytest.raises(BlobSpaceError, match="no room left"):
        await store.fetch(blob, small / "target")
    assert list(small.iterdir()) == [small / "blobs"]


def test_an_address_is_checked_before_anything_is_done(tmp_path: Path) -> None:
    assert isinstance(open_store((tmp_path / "a b").as_uri()), FileStore)
    for address in ("/srv/blobs", "file:relative", "file://host/srv", ""):
        with pytest.raises(BadValueError, match=r"blobs: "):
            open_store(address)
