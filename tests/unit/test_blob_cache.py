"""What a node has of the blobs at hand."""

import asyncio
import shutil
from pathlib import Path

import pytest

from conformance.blobs import written
from shoal.blobs import cache as module
from shoal.blobs.cache import Cache
from shoal.blobs.files import FileStore
from shoal.blobs.protocol import BlobMissingError, Progress
from shoal.wire.messages import Blob


class Counting(FileStore):
    """Counts what is fetched, and waits to be let go."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.fetched: list[str] = []
        self.go = asyncio.Event()
        self.go.set()

    async def fetch(self, blob: Blob, target: Path, progress: Progress | None = None) -> None:
        self.fetched.append(blob.digest)
        await self.go.wait()
        await super().fetch(blob, target, progress)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(tmp_path / "blobs")


async def stored(store: Counting, tmp_path: Path, size: int = 100) -> Blob:
    written(tmp_path / "source", size)
    return await store.put(tmp_path / "source")


async def test_fifty_who_wait_cause_one_fetch(store: Counting, tmp_path: Path) -> None:
    blob = await stored(store, tmp_path)
    cache = Cache(store, tmp_path / "cache", 10**6)
    store.go.clear()
    waiting = [asyncio.create_task(cache.path_of(blob)) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # which is no reason to stop for the others
    store.go.set()
    done = await asyncio.gather(*waiting[1:])
    assert {path.read_bytes() for path in done} == {(tmp_path / "source").read_bytes()}
    assert store.fetched == [blob.digest]
    await cache.close()


async def test_a_fetch_that_fails_fails_for_all_and_is_tried_again(store: Counting, tmp_path: Path) -> None:
    cache = Cache(store, tmp_path / "cache", 10**6)
    blob = written(tmp_path / "source", 10)
    outcomes = await asyncio.gather(*(cache.path_of(blob) for _ in range(3)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BlobMissingError}
    await store.put(tmp_path / "source")
    assert (await cache.path_of(blob)).exists()


async def test_what_was_used_longest_ago_goes_first(
    store: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.0)
    cache = Cache(store, tmp_path / "cache", 250)
    first, second, third = [await stored(store, tmp_path) for _ in range(3)]
    await cache.path_of(first)
    await cache.path_of(second)
    await cache.path_of(first)
    await cache.path_of(third)
    assert cache.holds() == (third.digest, first.digest)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {third.digest, first.digest}
    large = await stored(store, tmp_path, 1000)
    assert (await cache.path_of(large)).stat().st_size == 1000  # served, though it is more than the limit


async def test_what_was_just_handed_out_stays(store: Counting, tmp_path: Path) -> None:
    cache = Cache(store, tmp_path / "cache", 1)
    blobs = [await stored(store, tmp_path) for _ in range(3)]
    for blob in blobs:
        await cache.path_of(blob)
    assert len(cache.holds()) == 3


async def test_what_an_earlier_process_left_is_used_once_it_was_verified(store: Counting, tmp_path: Path) -> None:
    good, bad = await stored(store, tmp_path), await stored(store, tmp_path)
    before = Cache(store, tmp_path / "cache", 10**6)
    for blob in (good, bad):
        await before.path_of(blob)
    (tmp_path / "cache" / bad.digest).write_bytes(b"x" * 100)
    (tmp_path / "cache" / ".fetching-abc").write_bytes(b"half")
    cache = Cache(store, tmp_path / "cache", 10**6)
    store.fetched.clear()
    await cache.path_of(good)
    assert store.fetched == []
    path = await cache.path_of(bad)
    assert store.fetched == [bad.digest]
    assert path.read_bytes() != b"x" * 100
    assert {each.name for each in (tmp_path / "cache").iterdir()} == {good.digest, bad.digest}


async def test_what_is_added_is_in_the_store_and_at_hand(store: Counting, tmp_path: Path) -> None:
    cache = Cache(store, tmp_path / "cache", 10**6)
    with cache.scratch() as place:
        blob = written(Path(place) / "made", 77)
        assert await cache.add(Path(place) / "made") == blob
    assert await store.has(blob)
    assert (await cache.path_of(blob)).stat().st_size == 77
    assert store.fetched == []


async def test_what_is_fetched_stays_until_those_who_wait_for_it_have_it(store: Counting, tmp_path: Path) -> None:
    cache = Cache(store, tmp_path / "cache", 1000)
    blobs = [await stored(store, tmp_path) for _ in range(40)]

    async def content(blob: Blob) -> int:
        return (await cache.path_of(blob)).stat().st_size

    for _ in range(5):
        assert set(await asyncio.gather(*map(content, blobs))) == {100}
    await cache.close()


async def test_what_a_killed_process_was_adding_is_removed(store: Counting, tmp_path: Path) -> None:
    left = tmp_path / "node" / ".adding-x" / "layer"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    Cache(store, tmp_path / "node" / "cache", 1000)
    assert list((tmp_path / "node").iterdir()) == [tmp_path / "node" / "cache"]


async def test_what_somebody_deleted_is_made_and_fetched_anew(store: Counting, tmp_path: Path) -> None:
    blob = await stored(store, tmp_path)
    cache = Cache(store, tmp_path / "cache", 10**6)
    content = (await cache.path_of(blob)).read_bytes()
    shutil.rmtree(tmp_path / "cache")
    assert (await cache.path_of(blob)).read_bytes() == content
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "made").write_bytes(b"made here")
    made = await cache.add(tmp_path / "made")
    assert (await cache.path_of(made)).read_bytes() == b"made here"
    assert store.fetched == [blob.digest] * 2
    await cache.close()
