"""Exports: whole, of a part, interrupted, and of what is not kept any more."""

import random
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from archive.cluster import Cluster, everything
from archive.made import InMemory, header
from shoal.archive import account, writer as writing
from shoal.archive.archived import ArchiveHistory
from shoal.archive.exporting import Progress, export
from shoal.archive.frames import TRAILER
from shoal.archive.joined import Joined
from shoal.archive.live import LiveHistory
from shoal.archive.looking import look
from shoal.archive.places import LocalFile
from shoal.archive.reader import ArchiveFile
from shoal.archive.records import Request
from shoal.archive.source import ArchiveError
from shoal.bus.memory import MemoryBroker
from shoal.bus.protocol import Delivery
from shoal.machine.checkpoint import Checkpoint
from shoal.runtime.cluster import ensure_cluster
from shoal.wire import streams, subjects
from shoal.wire.messages import ExecutorJoined, NodeSpec
from shoal.wire.quantities import BadValueError


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    for number in range(12):
        cluster.run("a" if number % 2 else "b", f"run{number % 3}", f"r{number}")
    return cluster


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(writing, "BLOCK", 700)
    monkeypatch.setattr(account, "_MOST_ENTRIES", 5)
    return iter(())


async def test_everything_is_exported(cluster: Cluster, tmp_path: Path) -> None:
    told: list[Progress] = []
    done = await export(cluster.history, tmp_path / "x.shoal", tell=told.append)
    assert (done.messages, done.resumed, done.complete, done.missing) == (12 * 11, False, False, ())
    assert done.size == (tmp_path / "x.shoal").stat().st_size
    archive = await ArchiveHistory.open(tmp_path / "x.shoal")
    assert await everything(archive) == await everything(cluster.history)
    assert (await archive.values("SHOAL_CLUSTER"))["cells"] == b"1"
    header = await archive.header()
    assert (header.cluster, header.partial, header.request) == ("c1", False, Request())
    assert told[-1].done == told[-1].of == 12 * 11


async def test_again_is_nothing_to_do(cluster: Cluster, tmp_path: Path) -> None:
    first = await export(cluster.history, tmp_path / "x.shoal")
    data = (tmp_path / "x.shoal").read_bytes()
    cluster.run("a", "run0", "later")
    again = await export(cluster.history, tmp_path / "x.shoal")
    assert again.complete
    assert (again.digest, again.messages, again.size) == (first.digest, first.messages, first.size)
    assert (tmp_path / "x.shoal").read_bytes() == data


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), run=st.sampled_from(["", "run1"]), twice=st.booleans())
async def test_cut_off_anywhere_it_goes_on_and_ends_the_same(
    cluster: Cluster, tmp_path: Path, small_blocks: None, at: float, run: str, twice: bool
) -> None:
    whole, path = tmp_path / f"whole{run}.shoal", tmp_path / "x.shoal"
    request = Request(run=run)
    await export(cluster.history, whole, request)
    data = whole.read_bytes()
    for length in {int(at * len(data)), int(at * len(data) / 2) if twice else 0}:
        path.write_bytes(data[:length])
        done = await export(cluster.history, path, request)
        assert not done.complete
        if length > 400:  # it has its header, with when it was made
            assert done.resumed
            assert path.read_bytes() == data
        assert (await look(InMemory(path.read_bytes()), deep=True)).trouble is None


async def test_an_altered_file_is_mended_only_where_nothing_is_lost(
    cluster: Cluster, tmp_path: Path, small_blocks: None
) -> None:
    path = tmp_path / "x.shoal"
    await export(cluster.history, path)
    data = path.read_bytes()
    altered = bytearray(data)
    altered[len(data) // 2] ^= 1
    path.write_bytes(altered)
    assert (await export(cluster.history, path)).resumed
    assert path.read_bytes() == data
    path.write_bytes(altered)
    for stream in cluster.broker.names():
        cluster.broker.log(stream).purge(11)
    with pytest.raises(ArchiveError, match="truncate -s"):
        await export(cluster.history, path)
    assert path.read_bytes() == altered


async def test_what_is_something_else_is_left_alone(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "x.shoal"
    path.write_text("a letter to my mother, which is longer than it seems")
    with pytest.raises(ArchiveError, match="choose another name"):
        await export(cluster.history, path)
    assert "mother" in path.read_text()
    path.unlink()
    await export(cluster.history, path, Request(run="run1"))
    with pytest.raises(ArchiveError, match="of something else"):
        await export(cluster.history, path)
    cluster.broker.put(streams.CLUSTER_BUCKET, "id", b"c2")
    with pytest.raises(ArchiveError, match="of another cluster"):
        await export(cluster.history, path, Request(run="run1"))
    with pytest.raises(ArchiveError, match="cannot be written"):
        await export(cluster.history, tmp_path / "none" / "x.shoal")


def flip(path: Path, place: int) -> bytes:
    """Alter one byte of a file; returns what is in it then."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    return bytes(data)


async def test_an_altered_file_that_is_something_else_is_left_as_it_is(
    cluster: Cluster, tmp_path: Path, small_blocks: None
) -> None:
    path = tmp_path / "x.shoal"
    await export(cluster.history, path)
    altered = flip(path, path.stat().st_size // 2)
    with pytest.raises(ArchiveError, match="of something else"):
        await export(cluster.history, path, Request(run="run1"))
    assert path.read_bytes() == altered
    cluster.broker.put(streams.CLUSTER_BUCKET, "id", b"c2")
    with pytest.raises(ArchiveError, match="of another cluster"):
        await export(cluster.history, path)
    assert path.read_bytes() == altered


async def test_an_altered_file_is_left_as_it_is_where_its_stream_is_gone(
    cluster: Cluster, tmp_path: Path, small_blocks: None
) -> None:
    path = tmp_path / "x.shoal"
    await export(cluster.history, path)
    altered = flip(path, path.stat().st_size // 2)
    other = Cluster()  # the same one, whose broker lost all of its log
    with pytest.raises(ArchiveError, match="kept nowhere else"):
        await export(other.history, path)
    assert path.read_bytes() == altered


async def test_an_altered_file_is_left_as_it_is_where_states_would_be_lost(
    cluster: Cluster, tmp_path: Path, small_blocks: None
) -> None:
    class Saving(LiveHistory):
        async def states(self, partition: str) -> AsyncGenerator[Checkpoint, None]:
            if partition == "scheduler.0":
                for sequence in (5, 9):
                    yield Checkpoint(partition, 1, "SHOAL_ROLLOUT_0", sequence, 1, b"state" * 99)

    path = tmp_path / "x.shoal"
    await export(Saving(cluster.broker.connect()), path)
    file = await ArchiveFile.open(LocalFile(path))
    altered = flip(path, file.saved()[1][1].offset + 20)
    with pytest.raises(ArchiveError, match="kept nowhere else"):
        await export(cluster.history, path)
    assert path.read_bytes() == altered
    altered = altered[: -TRAILER - 1]  # what was in it is not told any more, either
    path.write_bytes(altered)
    with pytest.raises(ArchiveError, match="kept nowhere else"):
        await export(cluster.history, path)
    assert path.read_bytes() == altered


async def test_one_process_writes_a_file(cluster: Cluster, tmp_path: Path) -> None:
    writer = writing.Writer.create(tmp_path / "x.shoal", header())
    with pytest.raises(ArchiveError, match="another process"):
        await export(cluster.history, tmp_path / "x.shoal")
    writer.close()


async def test_messages_that_went_meanwhile_are_named(cluster: Cluster, tmp_path: Path) -> None:
    class Forgetting(LiveHistory):
        def read(self, stream, *, after=0, since_ms=None, until=None):  # type: ignore[no-untyped-def]
            cluster.broker.log(stream).purge(7)
            return super().read(stream, after=after, since_ms=since_ms, until=until)

    done = await export(Forgetting(cluster.broker.connect()), tmp_path / "x.shoal")
    assert {(gap.first, gap.last) for gap in done.missing} == {(1, 7)}
    assert {gap.stream for gap in done.missing} >= {"SHOAL_ROLLOUT_0", "SHOAL_EXECUTOR_e0", "SHOAL_DEAD"}
    archive = await ArchiveHistory.open(tmp_path / "x.shoal")
    assert list(await archive.missing()) == list(done.missing)
    assert await archive.bounds("SHOAL_ROLLOUT_0") == (8, 36)


async def test_a_run_of_a_tenant(cluster: Cluster, tmp_path: Path) -> None:
    for name, request, mine in (
        ("run", Request(run="run1"), {"r1", "r4", "r7", "r10"}),
        ("tenant", Request(tenant="a"), {"r1", "r3", "r5", "r7", "r9", "r11"}),
        ("both", Request(tenant="a", run="run1"), {"r1", "r7"}),
    ):
        done = await export(cluster.history, tmp_path / f"{name}.shoal", request)
        assert done.messages == len(mine) * 9
        archive = await ArchiveHistory.open(tmp_path / f"{name}.shoal")
        assert (await archive.header()).partial
        for messages in (await everything(archive)).values():
            assert all(any(f"{rollout}".encode() in each.payload for rollout in mine) for each in messages)


async def test_a_time(cluster: Cluster, tmp_path: Path) -> None:
    everywhere = await everything(cluster.history)
    times = sorted(each.time_ms for messages in everywhere.values() for each in messages)
    since_ms, until_ms = times[40], times[90]
    done = await export(
        cluster.history, tmp_path / "x.shoal", Request(since="a", until="b"), since_ms=since_ms, until_ms=until_ms
    )
    assert done.messages == 51
    archive = await ArchiveHistory.open(tmp_path / "x.shoal")
    for name, messages in everywhere.items():
        wanted = [each for each in messages if since_ms <= each.time_ms <= until_ms]
        assert [each async for each in archive.read(name)] == wanted
    assert not (await archive.header()).partial


async def test_a_cell(tmp_path: Path) -> None:
    cluster = Cluster(cells=3)
    for cell in range(3):
        node = NodeSpec(f"n{cell}", 8, 1)
        cluster.say(subjects.placement_node(cell), ExecutorJoined(f"e{cell}", "boot", "simulated", (node,)))
        cluster.run("a", "r", f"r{cell}", cell)
    await export(cluster.history, tmp_path / "x.shoal", Request(cell=1))
    archive = await ArchiveHistory.open(tmp_path / "x.shoal")
    names = {
        "SHOAL_DEAD",
        "SHOAL_EXECUTOR_e1",
        "SHOAL_PLACEMENT_1",
        "SHOAL_ROLLOUT_1",
        "SHOAL_SNAPSHOT",
        "SHOAL_TRAJECTORY_1",
    }
    assert set(await archive.streams()) == names
    with pytest.raises(BadValueError, match=r"^cell: 3 is none of the 3"):
        await export(cluster.history, tmp_path / "y.shoal", Request(cell=3))
    assert not (tmp_path / "y.shoal").exists()


async def test_an_archive_of_an_archive(cluster: Cluster, tmp_path: Path) -> None:
    await export(cluster.history, tmp_path / "x.shoal")
    source = await ArchiveHistory.open(tmp_path / "x.shoal")
    await export(source, tmp_path / "y.shoal", Request(run="run1", origin="x.shoal"))
    await export(cluster.history, tmp_path / "z.shoal", Request(run="run1"))
    one, other = [await ArchiveHistory.open(tmp_path / name) for name in ("y.shoal", "z.shoal")]
    assert await everything(one) == await everything(other)
    again = await export(one, tmp_path / "again.shoal", Request(origin="y.shoal"))
    assert again.missing == ()
    assert (await (await ArchiveHistory.open(tmp_path / "again.shoal")).header()).partial


async def test_an_archive_of_several_of_which_one_is_partial_is_partial(cluster: Cluster, tmp_path: Path) -> None:
    await export(cluster.history, tmp_path / "run.shoal", Request(run="run1"))
    await export(cluster.history, tmp_path / "tenant.shoal", Request(tenant="a"))
    parts = [await ArchiveHistory.open(tmp_path / f"{name}.shoal") for name in ("run", "tenant")]
    for number, joined in enumerate([Joined(*parts), Joined(parts[0], cluster.history), Joined(Joined(*parts))]):
        done = await export(joined, tmp_path / f"{number}.shoal")
        assert done.missing == ()
        assert (await (await ArchiveHistory.open(tmp_path / f"{number}.shoal")).header()).partial
    await export(cluster.history, tmp_path / "whole.shoal")
    joined = Joined(await ArchiveHistory.open(tmp_path / "whole.shoal"), cluster.history)
    await export(joined, tmp_path / "x.shoal")
    assert not (await (await ArchiveHistory.open(tmp_path / "x.shoal")).header()).partial


async def test_much_is_exported_in_a_memory_that_does_not_grow(tmp_path: Path) -> None:
    """What is held is what is not written yet: a block, and an index entry for each block since the last index."""
    writer = writing.Writer.create(tmp_path / "x.shoal", header())
    source = random.Random(3)
    most = 0
    for sequence in range(1, 40_001):
        writer.append("SHOAL_X", Delivery("s", source.randbytes(500), sequence, sequence, f"{sequence}"))
        most = max(most, sum(map(len, writer._pending.values())))
    writer.finish()
    assert most * 500 <= writing.BLOCK
    assert len(writer.account.entries) == 0
    assert len(writer.account.groups) == 1


class Counting:
    """Bytes that are counted as they are read."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self.read_bytes = 0

    async def size(self) -> int:
        return len(self._path.read_bytes())

    async def read(self, offset: int, length: int) -> bytes:
        found = self._path.read_bytes()[offset : offset + length]
        self.read_bytes += len(found)
        return found


async def test_a_part_is_read_without_the_rest(tmp_path: Path) -> None:
    writer = writing.Writer.create(tmp_path / "x.shoal", header())
    source = random.Random(3)
    for sequence in range(1, 30_001):
        for stream in ("SHOAL_X", "SHOAL_Y"):
            writer.append(stream, Delivery("s", source.randbytes(300), sequence, sequence * 1000, f"{sequence}"))
    writer.finish()
    counting = Counting(tmp_path / "x.shoal")
    size = await counting.size()
    assert size > 15 * writing.BLOCK
    file = await ArchiveFile.open(counting)
    assert counting.read_bytes < writing.BLOCK // 4
    for options in ({"after": 20_000, "until": 20_001}, {"since_ms": 20_001_000, "until": 20_001}):
        before = counting.read_bytes
        found = [each.sequence async for each in file.read("SHOAL_X", **options)]
        assert found == [20_001]
        assert counting.read_bytes - before < 3 * writing.BLOCK
    assert [each async for each in file.read("SHOAL_Z")] == []
    assert [each async for each in file.read("SHOAL_X", after=30_000)] == []


async def test_a_cluster_has_an_id_of_its_own() -> None:
    one, other = MemoryBroker(), MemoryBroker()
    for broker in (one, one, other):
        await ensure_cluster(broker.connect())
    ids = [broker.bucket(streams.CLUSTER_BUCKET)[streams.ID_KEY].value for broker in (one, other)]
    assert len(set(ids)) == 2
    del one.bucket(streams.CLUSTER_BUCKET)[streams.ID_KEY]  # as in clusters made before there were any
    await ensure_cluster(one.connect())
    assert one.bucket(streams.CLUSTER_BUCKET)[streams.ID_KEY].value not in ids
