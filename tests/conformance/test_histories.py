"""All sources of history: a broker in memory, a real one, a file, a directory of files, and these joined."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conformance.history import HistoryConformance, HistoryOf, Said, read
from shoal.archive import exporting, following, thinning, writer
from shoal.archive.archived import ArchiveHistory
from shoal.archive.exporting import export
from shoal.archive.following import Follower
from shoal.archive.joined import Joined
from shoal.archive.live import LiveHistory
from shoal.archive.shelves import DirectoryShelf
from shoal.archive.source import GapError, History
from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.memory import MemoryBroker
from shoal.bus.protocol import Bus
from shoal.wire.streams import CLUSTER_BUCKET


class _InMemory(HistoryConformance):
    @pytest.fixture
    def bus(self, memory_broker: MemoryBroker) -> Bus:
        return memory_broker.connect()


class TestLiveHistory(_InMemory):
    @pytest.fixture
    def history_of(self) -> HistoryOf:
        async def of(bus: Bus) -> History:
            return LiveHistory(bus)

        return of


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A broker on which there is nothing else."""
    own = EmbeddedBroker(Path(tmp_path_factory.mktemp("broker")), port=0)
    asyncio.run(own.start())
    yield own
    asyncio.run(own.stop())


@pytest.mark.broker
class TestLiveHistoryOnJetStream(HistoryConformance):
    @pytest.fixture
    async def bus(self, own_broker: EmbeddedBroker) -> AsyncIterator[Bus]:
        bus = await JetStreamBus.connect(own_broker.url)
        yield bus
        await bus.close()

    @pytest.fixture
    def history_of(self) -> HistoryOf:
        async def of(bus: Bus) -> History:
            return LiveHistory(bus)

        return of


async def archivable(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make of a bus a cluster's; its states are archived whatever their partitions are called."""
    if not await bus.keys(CLUSTER_BUCKET):
        await bus.put(CLUSTER_BUCKET, "cells", b"1")

    there = sorted({".".join(key.split(".")[:2]) for key in await bus.keys("SHOAL_CHECKPOINT")})

    async def every(_: History) -> list[str]:
        return there

    monkeypatch.setattr(exporting, "partitions_of", every)
    monkeypatch.setattr(following, "partitions", lambda _: there)
    monkeypatch.setattr(thinning, "EVERY_MESSAGES", 10)


async def exported(bus: Bus, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export all that a bus keeps."""
    await archivable(bus, monkeypatch)
    await export(LiveHistory(bus), path)


async def followed(bus: Bus, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archive all that a bus keeps into several files."""
    await archivable(bus, monkeypatch)
    monkeypatch.setattr(writer, "BLOCK", 300)
    follower = Follower(bus, DirectoryShelf(directory), roll_bytes=2500, roll_s=3600, tell=print)
    await follower.round()
    follower.close()
    assert len(list(directory.iterdir())) > 1


class TestArchiveHistory(_InMemory):
    @pytest.fixture
    def history_of(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HistoryOf:
        async def of(bus: Bus) -> History:
            await exported(bus, tmp_path / "x.shoal", monkeypatch)
            return await ArchiveHistory.open(tmp_path / "x.shoal")

        return of


class TestArchiveDirectory(_InMemory):
    @pytest.fixture
    def history_of(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HistoryOf:
        async def of(bus: Bus) -> History:
            await followed(bus, tmp_path / "archive", monkeypatch)
            return await ArchiveHistory.open(tmp_path / "archive")

        return of


class TestJoinedDirectory(_InMemory):
    @pytest.fixture
    def history_of(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HistoryOf:
        async def of(bus: Bus) -> History:
            await followed(bus, tmp_path / "archive", monkeypatch)
            for stream in await bus.streams():
                await bus.purge(stream, 33)
            return Joined(await ArchiveHistory.open(tmp_path / "archive"), LiveHistory(bus))

        return of


class TestJoined(_InMemory):
    @pytest.fixture
    def history_of(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HistoryOf:
        async def of(bus: Bus) -> History:
            await exported(bus, tmp_path / "x.shoal", monkeypatch)
            for stream in await bus.streams():
                await bus.purge(stream, 20)
            return Joined(await ArchiveHistory.open(tmp_path / "x.shoal"), LiveHistory(bus))

        return of


class TestAfterGaps:
    """What a join does where its parts do not fit, or change while they are read."""

    async def test_a_gap_between_the_parts_is_an_error(
        self, memory_broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = Said(memory_broker.connect())
        await said.say()
        await exported(said.bus, tmp_path / "x.shoal", monkeypatch)
        name = said.one.name
        for number in range(10):
            await said.bus.publish(f"{said.one.subjects[0][:-1]}control", b"later", f"later:{number}")
        await said.bus.purge(name, 45)
        joined = Joined(await ArchiveHistory.open(tmp_path / "x.shoal"), LiveHistory(said.bus))
        assert await joined.bounds(name) == (1, 50)
        with pytest.raises(GapError, match="messages 41 to 45 of SHOAL_EXECUTOR_"):
            await read(joined, name)
        assert [each.sequence for each in await read(joined, name, until=40)] == list(range(1, 41))
        assert [each.sequence for each in await read(joined, name, after=45)] == list(range(46, 51))

    async def test_what_goes_while_it_is_read_comes_from_the_archive(
        self, memory_broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = Said(memory_broker.connect())
        await said.say()
        await exported(said.bus, tmp_path / "x.shoal", monkeypatch)
        name = said.one.name

        class Forgetting(LiveHistory):
            """Forgets half of what it just said it has."""

            def read(self, stream, *, after=0, since_ms=None, until=None):  # type: ignore[no-untyped-def]
                memory_broker.log(stream).purge(30)
                return super().read(stream, after=after, since_ms=since_ms, until=until)

        for since_ms in (None, said.said[name][4].time_ms):
            wanted = [m for m in said.said[name] if since_ms is None or m.time_ms >= since_ms]
            joined = Joined(await ArchiveHistory.open(tmp_path / "x.shoal"), Forgetting(said.bus))
            assert await read(joined, name, since_ms=since_ms) == wanted
            assert await read(joined, name) == said.said[name]
