"""Archiving without end: nothing is missed and nothing comes twice, whatever is killed."""

import asyncio
import random
import resource
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from archive.cluster import Cluster, everything
from archive.made import InMemory
from shoal.archive import writer as writing
from shoal.archive.archived import ArchiveHistory, series_of
from shoal.archive.following import Follower
from shoal.archive.joined import Joined
from shoal.archive.looking import look
from shoal.archive.records import Missing
from shoal.archive.shelves import DirectoryShelf
from shoal.archive.source import ArchiveError, ConflictError
from shoal.archive.verifying import verify
from shoal.bus.memory import MemoryBus
from shoal.bus.protocol import Bus, Kept, UnreachableError
from shoal.machine.checkpoint import Checkpoint, Generation, Manifest, piece_keys, seal
from shoal.wire import streams, subjects
from shoal.wire.messages import DestroySandboxes, EndReason, Tick


class Following:
    """Followers of one cluster into one directory, one after the other."""

    def __init__(self, cluster: Cluster, directory: Path, *, roll_bytes: int = 4000, roll_s: float = 3600) -> None:
        self.cluster = cluster
        self.directory = directory
        self.said: list[str] = []
        self.roll = (roll_bytes, roll_s)
        self._made: list[Follower] = []

    def new(self, bus: Bus | None = None) -> Follower:
        roll_bytes, roll_s = self.roll
        made = Follower(
            bus or self.cluster.broker.connect(), DirectoryShelf(self.directory), roll_bytes=roll_bytes, roll_s=roll_s,
            every_s=0.01, tell=self.said.append,
        )  # fmt: skip
        self._made.append(made)
        return made

    def close(self) -> None:
        for follower in self._made:
            follower.close()

    @property
    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*.shoal"))

    async def check(self) -> None:
        """Assert that the archive is whole, and holds exactly what the cluster's streams do."""
        verdict = await verify(series_of(self.directory))
        assert verdict.trouble == ""
        archive = await ArchiveHistory.open(self.directory)
        said = await everything(self.cluster.history)
        archived = await everything(archive)
        assert {name: messages for name, messages in said.items() if messages} == archived


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "BLOCK", 700)


@pytest.fixture
def follow() -> Iterator[Callable[[Path], Following]]:
    """Makes followers of a fresh cluster into a directory."""
    made: list[Following] = []

    def new(directory: Path) -> Following:
        made.append(Following(Cluster(), directory))
        return made[-1]

    yield new
    for following in made:
        following.close()


@pytest.fixture
def following(follow: Callable[[Path], Following], tmp_path: Path) -> Following:
    return follow(tmp_path / "archive")


async def test_round_after_round_into_file_after_file(following: Following) -> None:
    follower = following.new()
    for number in range(12):
        following.cluster.run("a", "r", f"r{number}")
        await follower.round()
    await follower.round()
    await following.check()
    assert len(following.files) > 2
    assert [path.name for path in following.files][:2] == ["00000001.shoal", "00000002.shoal"]
    assert follower.messages == 12 * 11
    for path in following.files[:-1]:
        found = await look(InMemory(path.read_bytes()), deep=True)
        assert found.closed
        assert path.stat().st_size < 3 * 4000
    assert all(".shoal: " in said and " messages, " in said for said in following.said)


async def test_a_backlog_is_rolled_while_it_is_read(following: Following) -> None:
    for number in range(40):
        following.cluster.run("a", "r", f"r{number}")
    await following.new().round()
    assert len(following.files) > 3
    await following.check()


async def test_what_expired_is_read_as_if_it_were_there(following: Following) -> None:
    follower = following.new()
    for number in range(6):
        following.cluster.run("a", "r", f"r{number}")
    await follower.round()
    before = await everything(following.cluster.history)
    for stream in following.cluster.broker.names():
        following.cluster.broker.log(stream).purge(9)
    following.cluster.run("a", "r", "later")
    joined = Joined(await ArchiveHistory.open(following.directory), following.cluster.history)
    found = await everything(joined)
    for stream, messages in before.items():
        assert found[stream][: len(messages)] == messages
        assert [each.sequence for each in found[stream]] == list(range(1, len(found[stream]) + 1))
    await follower.round()
    archive = await ArchiveHistory.open(following.directory)
    assert await everything(archive) == {stream: messages for stream, messages in found.items() if messages}


@pytest.mark.parametrize("seed", range(25))
async def test_killed_at_any_moment_it_goes_on_without_gap_or_copy(following: Following, seed: int) -> None:
    """What a kill -9 leaves is a file of which any part of the last blocks is there."""
    source = random.Random(seed)
    follower = following.new()
    for number in range(8):
        following.cluster.run("a", "r", f"r{number}")
        await follower.round()
        if source.random() < 0.6:
            follower.close()
            last = following.files[-1]
            size = last.stat().st_size
            if source.random() < 0.8:
                with last.open("r+b") as file:
                    file.truncate(size - source.randrange(min(size, 2500)))
            follower = following.new()
    await follower.round()
    await following.check()


async def damaged(following: Following, number: int, part: float) -> dict[Path, bytes]:
    """Archive into several files, alter a byte of one; returns what is in all of them then."""
    follower = following.new()
    for count in range(12):
        following.cluster.run("a", "r", f"r{count}")
        await follower.round()
    follower.close()
    path = following.files[number]
    data = bytearray(path.read_bytes())
    data[int(len(data) * part)] ^= 1
    path.write_bytes(data)
    return {each: each.read_bytes() for each in following.files}


def left(following: Following) -> dict[Path, bytes]:
    return {each: each.read_bytes() for each in following.files}


async def test_an_altered_file_that_another_follows_is_left_as_it_is(following: Following) -> None:
    files = await damaged(following, -2, 0.5)
    with pytest.raises(ConflictError, match="another file follows it, so it is left as it is"):
        await following.new().round()
    assert left(following) == files


async def test_an_altered_file_is_mended_where_the_broker_has_all_of_it(following: Following) -> None:
    await damaged(following, -1, 0.9)
    await following.new().round()
    await following.check()


@pytest.mark.parametrize("whole", [True, False])
async def test_an_altered_file_is_left_as_it_is_where_a_stream_of_it_is_gone(following: Following, whole: bool) -> None:
    following.roll = (10**9, 0.0 if whole else 3600)
    files = await damaged(following, -1, 0.6)
    for stream in ("SHOAL_DEAD", "SHOAL_EXECUTOR_e0"):
        following.cluster.broker.log(stream).purge(following.cluster.broker.log(stream).last)
    with pytest.raises(ArchiveError, match="kept nowhere else"):
        await following.new().round()
    assert left(following) == files


@pytest.mark.parametrize("whole", [True, False])
async def test_an_altered_file_is_left_as_it_is_where_the_log_is_another(
    following: Following, follow: Callable[[Path], Following], whole: bool
) -> None:
    following.roll = (10**9, 0.0 if whole else 3600)
    files = await damaged(following, -1, 0.6)
    with pytest.raises(ArchiveError, match="kept nowhere else"):
        await follow(following.directory).new().round()  # the broker lost all of it
    following.cluster.broker.put(streams.CLUSTER_BUCKET, "id", b"c2")
    with pytest.raises(ConflictError, match="archive of another cluster"):
        await following.new().round()
    assert left(following) == files


async def test_an_altered_file_is_left_as_it_is_where_states_would_be_lost(following: Following) -> None:
    following.roll = (10**9, 0.0)
    cluster = following.cluster
    cluster.run("a", "r", "r1")
    save(cluster, 3, cluster.now)
    await following.new().round()
    following.close()
    (path,) = following.files
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="kept nowhere else"):
        await following.new().round()
    assert path.read_bytes() == data


@pytest.mark.parametrize("again", [True, False])
async def test_what_a_new_stream_lost_before_its_first_round_is_noted(following: Following, *, again: bool) -> None:
    cluster, old = following.cluster, following.cluster.broker.log("SHOAL_DEAD")
    cluster.run("a", "r", "r1")
    old.purge(old.last)
    follower = following.new()
    await follower.round()
    archive = await ArchiveHistory.open(following.directory)
    assert await archive.missing() == []  # it begins where the broker did
    if again:
        following.close()
        follower = following.new()
    cluster.broker.ensure(streams.executor("new"))
    for number in range(3):
        cluster.say(subjects.executor_control("new"), DestroySandboxes("b", f"r{number}", (), EndReason.RELEASED))
    cluster.broker.log("SHOAL_EXECUTOR_new").purge(2)
    await follower.round()
    archive = await ArchiveHistory.open(following.directory)
    assert Missing("SHOAL_EXECUTOR_new", 1, 2) in await archive.missing()
    assert [each.sequence async for each in archive.read("SHOAL_EXECUTOR_new")] == [3]
    assert (await verify(series_of(following.directory))).whole


class Failing(MemoryBus):
    """Sometimes does not answer."""

    def __init__(self, cluster: Cluster, source: random.Random) -> None:
        super().__init__(cluster.broker)
        self.source = source

    async def streams(self, prefix: str = "") -> "dict[str, Kept]":
        self._fail()
        return dict(await super().streams(prefix))

    async def last_sequence(self, stream: str, subject: str = "") -> int:
        self._fail()
        return await super().last_sequence(stream, subject)

    def _fail(self) -> None:
        if self.source.random() < 0.1:
            raise UnreachableError("no broker answers")


async def test_a_broker_that_is_gone_for_a_while(following: Following, monkeypatch: pytest.MonkeyPatch) -> None:
    async def soon(stop: asyncio.Event, seconds: float) -> None:
        await asyncio.sleep(0.001)

    monkeypatch.setattr("shoal.archive.following._wait", soon)
    follower = following.new(Failing(following.cluster, random.Random(5)))
    stop = asyncio.Event()
    running = asyncio.create_task(follower.run(stop))
    for number in range(15):
        following.cluster.run("a", "r", f"r{number}")
        await asyncio.sleep(0.005)
    follower._history._bus.source = random.Random()  # type: ignore[attr-defined]
    follower._history._bus._fail = lambda: None  # type: ignore[attr-defined]
    stop.set()
    await running
    await following.check()
    assert any("no broker answers; trying again in 1 s" in said for said in following.said)


@pytest.mark.parametrize("meanwhile", [True, False])
async def test_told_to_stop_while_no_broker_answers_it_asks_no_more(following: Following, *, meanwhile: bool) -> None:
    stop = asyncio.Event()

    class Silent(MemoryBus):
        asked = 0

        async def streams(self, prefix: str = "") -> "dict[str, Kept]":
            self.asked += 1
            if meanwhile:
                stop.set()
            else:  # when it waits to ask again
                asyncio.get_running_loop().call_later(0.1, stop.set)
            raise UnreachableError("no broker answers")

    bus = Silent(following.cluster.broker)
    await following.new(bus).run(stop)
    assert bus.asked == 1
    assert following.said[-1] == "no broker answers; what is not archived yet will be by the next process"


async def test_a_disk_that_is_full_for_a_while(following: Following, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may not become larger than this process's limit: what is beyond that fails as on a full disk."""
    most, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    stop, rounds = asyncio.Event(), 0

    def room(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most[1]))

    async def next_round(_: asyncio.Event, __: float) -> bool:
        nonlocal rounds
        rounds += 1
        archive = await verify(series_of(following.directory))
        assert follower.messages == archive.messages  # not one more than is there, however often it was tried
        match rounds:
            case 1:  # there was none for a header
                room(most[0])
            case 2:
                following.cluster.run("a", "r", "r2")
                room(following.files[-1].stat().st_size + 100)
            case 3:  # nor for a block
                room(most[0])
            case _:
                stop.set()
        return stop.is_set()

    monkeypatch.setattr("shoal.archive.following._wait", next_round)
    following.cluster.run("a", "r", "r1")
    room(20)
    follower = following.new()
    try:
        await follower.run(stop)
    finally:
        room(most[0])
        signal.signal(signal.SIGXFSZ, before)
    assert follower.messages == 2 * 11
    assert [said.count("cannot be written: File too large; trying again in 1 s") for said in following.said] == [1, 1]
    await following.check()


async def test_a_file_is_ended_by_its_age(following: Following) -> None:
    following.roll = (10**9, 0.0)
    follower = following.new()
    for number in range(3):
        following.cluster.run("a", "r", f"r{number}")
        await follower.round()
    assert len(following.files) == 3
    await follower.round()
    assert len(following.files) == 3  # nothing came
    await following.check()


async def test_messages_that_went_before_their_turn_are_noted(following: Following) -> None:
    follower = following.new()
    following.cluster.run("a", "r", "r1")
    await follower.round()
    following.cluster.run("a", "r", "r2")
    last = following.cluster.broker.log("SHOAL_ROLLOUT_0").last
    following.cluster.broker.log("SHOAL_ROLLOUT_0").purge(last - 1)
    await follower.round()
    archive = await ArchiveHistory.open(following.directory)
    (gap,) = await archive.missing()
    assert (gap.stream, gap.first, gap.last) == ("SHOAL_ROLLOUT_0", 4, 5)
    assert [each.sequence async for each in archive.read("SHOAL_ROLLOUT_0")] == [1, 2, 3, 6]
    assert any("messages 4 to 5 of SHOAL_ROLLOUT_0 are not kept any more" in said for said in following.said)
    assert (await verify(series_of(following.directory))).missing == [gap]


async def test_one_process_archives_into_a_directory(following: Following) -> None:
    following.cluster.run("a", "r", "r1")
    await following.new().round()
    with pytest.raises(ConflictError, match="another process"):
        await following.new().run(asyncio.Event())


async def test_what_is_not_the_same_log_is_not_gone_on_with(
    following: Following, follow: Callable[[Path], Following]
) -> None:
    following.cluster.run("a", "r", "r1")
    await following.new().round()
    following.close()

    anew = follow(following.directory)  # the same cluster, whose broker lost its last messages
    anew.cluster.say(subjects.rollout_system(0), Tick(1))
    with pytest.raises(ConflictError, match="SHOAL_ROLLOUT_0 ends at 1, and is archived up to 3 already"):
        await anew.new().round()
    anew.close()
    for _ in range(5):
        anew.cluster.say(subjects.rollout_system(0), Tick(1))
    with pytest.raises(ConflictError, match="message 3 of SHOAL_ROLLOUT_0 is another one than was archived"):
        await anew.new().round()
    anew.close()

    other = follow(following.directory)
    other.cluster.broker.put(streams.CLUSTER_BUCKET, "id", b"c2")
    with pytest.raises(ConflictError, match="archive of another cluster"):
        await other.new().round()
    other.close()
    await following.new().round()
    await following.check()


def save(cluster: Cluster, sequence: int, time_ms: int) -> None:
    """Store a state of the scheduler, as its shell does; the one before stays."""
    state = Checkpoint("scheduler.0", 1, "SHOAL_ROLLOUT_0", sequence, time_ms, b"state %d" % sequence)
    packed = zlib.compress(seal(state))
    known = cluster.broker.bucket(streams.CHECKPOINT_BUCKET).get("scheduler.0")
    older = msgspec.json.decode(known.value, type=Manifest).generations[:1] if known else ()
    generation = Generation(f"1-{sequence}", sequence, time_ms, 1, len(packed))
    cluster.broker.put(streams.CHECKPOINT_BUCKET, piece_keys("scheduler.0", generation)[0], packed)
    manifest = msgspec.json.encode(Manifest((generation, *older)))
    cluster.broker.put(streams.CHECKPOINT_BUCKET, "scheduler.0", manifest)


async def test_states_are_kept_thinned_out_and_never_ahead_of_the_messages(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.archive.thinning.EVERY_MESSAGES", 6)
    following.roll = (10**9, 3600)
    cluster, follower = following.cluster, following.new()
    for number in range(8):
        cluster.run("a", "r", f"r{number}")
        save(cluster, cluster.broker.log("SHOAL_ROLLOUT_0").last, cluster.now)
        if number == 7:
            save(cluster, 1000, cluster.now)  # of messages to come
        await follower.round()
    archive = await ArchiveHistory.open(following.directory)
    assert [each.sequence for each in await archive.checkpoints("scheduler.0")] == [3, 9, 15, 21]
    last = cluster.broker.log("SHOAL_ROLLOUT_0").last
    assert last == 24
    cluster.run("a", "r", "later")
    cluster.now += 600_000
    save(cluster, 26, cluster.now)
    await follower.round()
    archive = await ArchiveHistory.open(following.directory)
    assert [each.sequence for each in await archive.checkpoints("scheduler.0")] == [3, 9, 15, 21, 26]
    (state,) = await archive.checkpoints("scheduler.0", last=1)
    assert state.state == b"state 26"


async def test_how_the_cluster_is_set_up_is_kept_up_to_date(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.archive.following._VALUES_S", 0.0)
    follower = following.new()
    following.cluster.run("a", "r", "r1")
    await follower.round()
    following.cluster.broker.put(streams.CLUSTER_BUCKET, "tenants.a", b"{}")
    await follower.round()
    archive = await ArchiveHistory.open(following.directory)
    assert (await archive.values(streams.CLUSTER_BUCKET))["tenants.a"] == b"{}"
    size = following.files[-1].stat().st_size
    follower.close()
    follower = following.new()
    await follower.round()
    assert following.files[-1].stat().st_size == size  # nothing changed
    follower.close()
    following.cluster.broker.bucket(streams.CLUSTER_BUCKET).pop("tenants.a")
    await following.new().round()
    archive = await ArchiveHistory.open(following.directory)
    assert "tenants.a" not in await archive.values(streams.CLUSTER_BUCKET)


async def test_a_file_that_is_missing_or_altered_is_named(following: Following) -> None:
    follower = following.new()
    for number in range(20):
        following.cluster.run("a", "r", f"r{number}")
        await follower.round()
    follower.close()
    whole = await verify(series_of(following.directory))
    assert whole.whole
    assert (whole.files, whole.first_segment, whole.open_end) == (len(following.files), 1, True)
    assert whole.files > 4
    assert whole.messages == 20 * 11

    second = following.files[1]
    data = second.read_bytes()
    other = bytearray(data)
    other[len(data) // 2] ^= 4
    second.write_bytes(other)
    found = await verify(series_of(following.directory))
    assert "00000002.shoal" in found.trouble
    assert (found.files, found.good_in) == (2, str(second))
    assert 0 < found.good_to <= len(data) // 2
    second.unlink()
    found = await verify(series_of(following.directory))
    assert found.trouble.endswith("00000003.shoal is number 3 of its series behind number 1")
    archive = await ArchiveHistory.open(following.directory)
    with pytest.raises(Exception, match=r"00000003\.shoal does not follow .*00000001\.shoal"):
        await everything(archive)
    second.write_bytes(data)
    following.files[0].unlink()  # as somebody does who keeps a year of it
    found = await verify(series_of(following.directory))
    assert (found.whole, found.first_segment) == (True, 2)
    archive = await ArchiveHistory.open(following.directory)
    for stream in await archive.streams():
        first, last = await archive.bounds(stream)
        sequences = [each.sequence async for each in archive.read(stream)]
        assert sequences == list(range(first, last + 1))


async def test_a_digest_noted_elsewhere_shows_what_was_made_anew(
    following: Following, follow: Callable[[Path], Following], tmp_path: Path
) -> None:
    follower = following.new()
    following.cluster.run("a", "r", "r1")
    await follower.round()
    noted = (await verify(series_of(following.directory))).digest
    for number in range(8):
        following.cluster.run("a", "r", f"later{number}")
        await follower.round()
    assert len(following.files) > 1
    found = await verify(series_of(following.directory), noted)
    assert (found.whole, found.known) == (True, True)
    forged = follow(tmp_path / "forged")
    for number in range(9):
        forged.cluster.run("b", "r", f"r{number}")
    await forged.new().round()
    found = await verify(series_of(forged.directory), noted)
    assert (found.whole, found.known) == (False, False)
    assert "made anew" in found.trouble
