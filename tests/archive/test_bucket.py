"""Archives in a bucket: a real S3 server's, on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from archive.cluster import Cluster, everything
from conformance.s3 import client, s3_server
from shoal.archive import writer as writing
from shoal.archive.archived import ArchiveHistory, bucket_at, series_of
from shoal.archive.following import Follower
from shoal.archive.joined import Joined
from shoal.archive.shelves import BucketShelf, files_in
from shoal.archive.source import ArchiveError, ConflictError
from shoal.archive.verifying import verify
from shoal.wire.quantities import BadValueError


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        client(address).create_bucket(Bucket="archives")
        yield address


@pytest.fixture
def url(endpoint: str, tmp_path: Path) -> str:
    return f"s3://archives/{tmp_path.name}/logs?endpoint={endpoint}"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "BLOCK", 700)


class Sending:
    """Followers of one cluster into a bucket."""

    def __init__(self, url: str, spool: Path) -> None:
        self.cluster = Cluster()
        self.url = url
        self.spool = spool
        self.said: list[str] = []
        self._made: list[Follower] = []
        self._runs = 0

    def new(self, spool: Path | None = None, url: str | None = None) -> Follower:
        shelf = BucketShelf(bucket_at(url or self.url), spool or self.spool)
        bus = self.cluster.broker.connect()
        made = Follower(bus, shelf, roll_bytes=4000, roll_s=3600, every_s=0.01, tell=self.said.append)
        self._made.append(made)
        return made

    async def rounds(self, follower: Follower, count: int) -> None:
        for _ in range(count):
            self._runs += 1
            self.cluster.run("a", "r", f"r{self._runs}")
            await follower.round()

    async def end(self) -> None:
        """Have the last follower leave, as when it is told to stop."""
        await self._made[-1]._leave()

    def close(self) -> None:
        for follower in self._made:
            follower.close()

    async def check(self) -> None:
        """Assert that the bucket has exactly what the cluster's streams do."""
        verdict = await verify(series_of(self.url))
        assert (verdict.trouble, verdict.open_end) == ("", False)
        said = await everything(self.cluster.history)
        archived = await everything(await ArchiveHistory.open(self.url))
        assert {name: messages for name, messages in said.items() if messages} == archived


@pytest.fixture
def sending(url: str, tmp_path: Path) -> Iterator[Sending]:
    sending = Sending(url, tmp_path / "spool")
    yield sending
    sending.close()


async def test_files_go_into_the_bucket_when_they_have_their_end(sending: Sending) -> None:
    follower = sending.new()
    await sending.rounds(follower, 8)
    there = await bucket_at(sending.url).names()
    assert len(there) > 1
    assert [path.name for path in files_in(sending.spool)] == [f"{len(there) + 1:08d}.shoal"]
    await sending.end()
    assert files_in(sending.spool) == []
    await sending.check()
    one = await ArchiveHistory.open(sending.url.replace("/logs?", f"/logs/{there[0]}?"))
    assert (await one.header()).segment == 1


async def test_another_process_goes_on_with_or_without_what_was_not_sent_yet(sending: Sending, tmp_path: Path) -> None:
    await sending.rounds(sending.new(), 5)
    sending.close()
    await sending.rounds(sending.new(), 2)
    sending.close()
    elsewhere = tmp_path / "elsewhere"
    await sending.rounds(sending.new(elsewhere), 5)
    await sending.end()
    await sending.check()
    # The first machine is back, with what it never sent.
    assert files_in(sending.spool)
    await sending.rounds(sending.new(), 1)
    assert any("left from before" in said for said in sending.said)
    await sending.end()
    await sending.check()


async def test_sent_and_killed_before_it_was_noted(sending: Sending) -> None:
    follower = sending.new()
    await sending.rounds(follower, 2)
    (path,) = files_in(sending.spool)
    writer = follower._writer
    assert writer is not None
    writer.finish()
    data = path.read_bytes()
    assert await bucket_at(sending.url).put(path.name, path)
    follower.close()
    await sending.rounds(sending.new(), 3)
    assert path not in files_in(sending.spool) or path.read_bytes() != data
    await sending.end()
    await sending.check()


async def test_two_at_once_are_told(sending: Sending, tmp_path: Path) -> None:
    one, other = sending.new(), sending.new(tmp_path / "other")
    await sending.rounds(one, 1)
    await other.round()

    async def both() -> None:
        for _ in range(30):
            await sending.rounds(one, 1)
            await other.round()

    with pytest.raises(ConflictError, match="somebody else archives there"):
        await both()


async def test_a_bucket_that_does_not_answer_keeps_nothing_from_being_sent_later(sending: Sending) -> None:
    good = sending.url
    follower = sending.new()
    await sending.rounds(follower, 1)
    follower._shelf._bucket = bucket_at(good.replace("archives", "absent"))  # type: ignore[attr-defined]
    with pytest.raises(ArchiveError, match="absent"):
        await sending.rounds(follower, 20)
    follower.close()
    assert len(files_in(sending.spool)) == 1
    await sending.rounds(sending.new(), 1)
    await sending.end()
    await sending.check()


async def test_what_expired_is_read_from_the_bucket(sending: Sending) -> None:
    await sending.rounds(sending.new(), 5)
    await sending.end()
    before = await everything(sending.cluster.history)
    for stream in sending.cluster.broker.names():
        sending.cluster.broker.log(stream).purge(8)
    joined = Joined(await ArchiveHistory.open(sending.url), sending.cluster.history)
    assert await everything(joined) == before


async def test_what_is_not_there_is_named(endpoint: str) -> None:
    with pytest.raises(ArchiveError, match="there is no archive in s3://archives/none"):
        await ArchiveHistory.open(f"s3://archives/none?endpoint={endpoint}")
    with pytest.raises(ArchiveError, match="s3://absent"):
        await ArchiveHistory.open(f"s3://absent/x?endpoint={endpoint}")
    with pytest.raises(ArchiveError, match=r"s3://archives/x\.shoal"):
        await ArchiveHistory.open(f"s3://archives/x.shoal?endpoint={endpoint}")
    with pytest.raises(BadValueError, match=r"^archive: 'colour'"):
        await ArchiveHistory.open("s3://archives?colour=red")
