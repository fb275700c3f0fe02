"""What nothing needs is removed, however often that takes; what is needed again stays."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from conformance.blobs import written
from shoal.blobs.files import FileStore
from shoal.blobs.leftovers import YOUNG_S, clear, held
from shoal.blobs.protocol import BlobError
from shoal.machine.core import Cause, Collect, Effect, Publish
from shoal.wire.codec import encode
from shoal.wire.messages import (
    AnyMessage,
    Blob,
    BlobsCollected,
    ListSnapshots,
    RemoveSnapshot,
    Snapshot,
    SnapshotAdded,
    SnapshotsListed,
    Tick,
)
from shoal_snapshot.core.catalogue import GRACE_MS
from shoal_snapshot.core.snapshot import SnapshotCore
from shoal_snapshot.service import Collector

BLOB = Blob("b" * 64, 9)
KEPT = Snapshot("a" * 64, "host", layers=(BLOB,))


class Driven:
    """A core, and what it wants removed."""

    def __init__(self) -> None:
        self.core = SnapshotCore()
        self.now = 1_000

    def __call__(self, message: AnyMessage, passes_ms: int = 1) -> list[tuple[str, ...]]:
        self.now += passes_ms
        effects = self.core.handle(message, Cause("SHOAL_SNAPSHOT", self.now, self.now))
        self.core.check()
        copy = SnapshotCore()
        copy.load(self.core.dump())
        assert (copy.dump(), copy.wake_at_ms()) == (self.core.dump(), self.core.wake_at_ms())
        return [effect.digests for effect in effects if isinstance(effect, Collect)]

    def woken(self) -> list[tuple[str, ...]]:
        wake = self.core.wake_at_ms()
        assert wake is not None
        return self(Tick(wake), wake - self.now)


def test_what_was_just_stored_is_asked_for_again_until_it_is_gone() -> None:
    drive = Driven()
    drive(SnapshotAdded("acme", KEPT, "mine"))
    assert drive(RemoveSnapshot("q", "acme", "mine")) == [(BLOB.digest,)]
    asked = drive.now
    again: list[tuple[str, ...]] = []
    while not again:
        again = drive.woken()
    assert again == [(BLOB.digest,)]
    assert drive.now - asked >= GRACE_MS
    assert drive(BlobsCollected((BLOB.digest,))) == []
    assert not drive.core.collects(BLOB.digest)
    while drive.core.wake_at_ms() is not None:
        assert drive.woken() == []


def test_what_is_needed_again_is_not_asked_for() -> None:
    drive = Driven()
    drive(SnapshotAdded("acme", KEPT, "mine"))
    drive(RemoveSnapshot("q", "acme", "mine"))
    drive(SnapshotAdded("acme", KEPT, "again"))
    assert not drive.core.collects(BLOB.digest)
    assert drive(Tick(0), 2 * GRACE_MS) == []


class Stubborn(FileStore):
    """One of its blobs cannot be removed."""

    stuck = ""

    async def delete(self, digest: str, *, unused_for_s: float = 0.0) -> bool:
        if digest == self.stuck:
            raise BlobError("it is stuck")
        return await super().delete(digest, unused_for_s=unused_for_s)


async def test_only_what_is_gone_is_said_to_be(tmp_path: Path) -> None:
    store = Stubborn(tmp_path / "blobs")
    blobs = []
    for _ in range(4):
        written(tmp_path / "source", 10)
        blobs.append(await store.put(tmp_path / "source"))
    stuck, young, again, old = (blob.digest for blob in blobs)
    long_ago = time.time() - 2 * GRACE_MS / 1000
    for digest in (stuck, again, old):
        os.utime(tmp_path / "blobs" / digest[:2] / digest, (long_ago, long_ago))
    store.stuck = stuck
    needed: Callable[[str], bool] = again.__eq__
    (told,) = await Collector(store, needed).perform(Collect((stuck, young, again, old)))
    assert told.message == BlobsCollected((old,))
    assert [await store.has(blob) for blob in blobs] == [True, True, True, False]


def test_a_list_is_cut_into_messages_that_a_broker_takes() -> None:
    drive = Driven()
    for number in range(300):
        drive(SnapshotAdded("acme", Snapshot(f"{number:064x}", "host", warm="x" * 5_000), f"name{number}"))
    effects: list[Effect] = list(drive.core.handle(ListSnapshots("q", "acme"), Cause("SHOAL_SNAPSHOT", 9, 9)))
    pages = [effect.message for effect in effects if isinstance(effect, Publish)]
    assert all(len(encode(page)) < 2 * 256 * 1024 for page in pages)
    listed = [entry.names[0] for page in pages if isinstance(page, SnapshotsListed) for entry in page.entries]
    assert listed == [f"name{number}" for number in range(300)]
    assert [page.more for page in pages if isinstance(page, SnapshotsListed)] == [True] * (len(pages) - 1) + [False]
    assert drive(ListSnapshots("q", "zeta")) == []
    large = msgspec.structs.replace(KEPT, warm="x" * 600_000)
    drive(SnapshotAdded("beta", large, "large"))
    (page,) = drive.core.handle(ListSnapshots("q", "beta"), Cause("SHOAL_SNAPSHOT", 10, 10))
    assert isinstance(page, Publish)


async def test_what_a_killed_process_was_storing_is_removed_and_what_another_is_storing_stays(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "blobs")
    incoming = tmp_path / "blobs" / ".incoming"
    incoming.mkdir(parents=True)
    names = ("left", "young", "anothers")
    for name in names:
        (incoming / name).write_bytes(b"half")
    long_ago = time.time() - 2 * YOUNG_S
    for name in ("left", "anothers"):
        os.utime(incoming / name, (long_ago, long_ago))
    written(tmp_path / "source", 10)
    with held(incoming / "anothers"):
        await store.put(tmp_path / "source")
    assert {path.name for path in incoming.iterdir()} == {"young", "anothers"}


def test_a_directory_goes_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "build-1").mkdir()
    (tmp_path / "build-1" / "disk").write_bytes(b"half")
    long_ago = time.time() - 2 * YOUNG_S
    os.utime(tmp_path / "build-1", (long_ago, long_ago))
    with held(tmp_path / "build-1"):
        clear(tmp_path.glob("build-*"))
        assert (tmp_path / "build-1").exists()
    clear([tmp_path / "missing", *tmp_path.glob("build-*")])
    assert list(tmp_path.iterdir()) == []
