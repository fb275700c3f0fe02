"""Three brokers: what the bus holds through when they are killed and restarted, and how many replicas things have."""

import asyncio
import itertools
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from conformance.bus import Log, take
from shoal.broker import EmbeddedBroker, EmbeddedCluster, wait_until_whole
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import BusError, Delivery, Stored
from shoal.cli import statefile
from shoal.cli.exits import Exit, Failure
from shoal.cli.system import LocalSystem
from shoal.runtime.cluster import ensure_cluster
from shoal.wire import streams

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def brokers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(tmp_path_factory.mktemp("three")) as brokers:
        yield brokers


@asynccontextmanager
async def connected(brokers: EmbeddedCluster) -> AsyncIterator[JetStreamBus]:
    bus = await JetStreamBus.connect(brokers.url, deadline_s=90, replicas=3)
    try:
        yield bus
    finally:
        await bus.close()


async def facts(bus: JetStreamBus, stream: str) -> dict[str, Any]:
    return await bus._api.ask(f"STREAM.INFO.{stream}")


async def test_a_stream_that_another_process_is_making_is_waited_for(
    brokers: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Log().stream
    async with connected(brokers) as bus:
        await bus.ensure([stream])
        request, asked = bus._api._connection.request, Counter[str]()

        async def not_yet(subject: str, *rest: Any, **options: Any) -> Any:
            reply = await request(subject, *rest, **options)
            asked[subject] += 1
            if subject.startswith("$JS.API.STREAM.INFO.TEST") and asked[subject] < 3:
                reply.data = b'{"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}'
            return reply

        monkeypatch.setattr(bus._api._connection, "request", not_yet)
        await bus.ensure([replace(stream, max_age_s=1800)])
        about = await facts(bus, stream.name)
        assert about["config"]["max_age"] == 1800 * 10**9
        assert asked[f"$JS.API.STREAM.INFO.{stream.name}"] == 4
        asked.clear()
        assert await bus.last_sequence(stream.name) == 0
        asked.clear()
        assert await bus.first_sequence(stream.name) == 1


class Load:
    """Several connections that publish without waiting, and one that reads it all."""

    def __init__(self, brokers: EmbeddedCluster, connections: int = 3) -> None:
        self._brokers = brokers
        self._connections = connections
        self.log = Log(max_bytes=1024**3)
        self.futures: list[list[asyncio.Future[Stored]]] = [[] for _ in range(connections)]
        self.read: list[Delivery] = []
        self._done = False

    async def _publish(self, bus: JetStreamBus, number: int) -> None:
        for count in itertools.count():
            if self._done:
                return
            self.futures[number].append(bus.publish(self.log.subject(), b"", f"{number}-{count}"))
            if count % 20 == 0:
                await asyncio.sleep(0.01)

    async def around(self, trouble: Any) -> None:
        """Publish while this happens; then read to the end."""
        buses = [
            await JetStreamBus.connect(self._brokers.url, deadline_s=90, replicas=3) for _ in range(self._connections)
        ]
        async with connected(self._brokers) as own:
            await own.ensure([self.log.stream])
            reader = await own.reader(self.log.name)
            publishing = [asyncio.create_task(self._publish(bus, number)) for number, bus in enumerate(buses)]
            await asyncio.sleep(0.3)
            await trouble
            await asyncio.sleep(0.3)
            self._done = True
            await asyncio.gather(*publishing)
            self.stored = [await asyncio.gather(*futures) for futures in self.futures]
            self.read = await take(reader, sum(map(len, self.futures)), within_s=60)
            self.last = await own.last_sequence(self.log.name)
        for bus in buses:
            await bus.close()

    def check_exactly_once(self) -> None:
        """Everything was confirmed; all of it is there, once, where the confirmation says."""
        assert len(self.read) == self.last == sum(map(len, self.stored))
        assert [each.sequence for each in self.read] == list(range(1, self.last + 1))
        found = {each.id: each.sequence for each in self.read}
        said = {
            f"{number}-{count}": each.sequence
            for number, all in enumerate(self.stored)
            for count, each in enumerate(all)
        }
        assert found == said

    def check_order(self) -> None:
        """What one connection published is in call order."""
        for all in self.stored:
            sequences = [each.sequence for each in all]
            assert sequences == sorted(sequences)


async def test_the_leader_is_killed_with_publications_under_way(brokers: EmbeddedCluster) -> None:
    load = Load(brokers)

    async def kill_leaders() -> None:
        for _ in range(2):
            leader = await brokers.leader(load.log.name)
            await brokers.kill(leader)
            assert await brokers.leader(load.log.name) != leader
            await asyncio.sleep(0.5)
            await brokers.restart(leader)
            await wait_until_whole(brokers.url)

    await load.around(kill_leaders())
    load.check_exactly_once()
    load.check_order()


async def test_a_rolling_restart_of_all_three(brokers: EmbeddedCluster) -> None:
    load = Load(brokers)

    async def restart_all() -> None:
        before = brokers.pids
        for server in range(3):
            await brokers.restart(server)
            await wait_until_whole(brokers.url)
        assert not set(before) & set(brokers.pids)

    await load.around(restart_all())
    load.check_exactly_once()


async def test_values_change_one_at_a_time_while_their_leader_is_killed(brokers: EmbeddedCluster) -> None:
    bucket = "TEST_COUNTER"
    successes = Counter[int]()
    done = False

    async def count(number: int) -> None:
        async with connected(brokers) as bus:
            while not done:
                known = await bus.get(bucket, "counter")
                value = int(known.value) + 1 if known else 1
                revision = await bus.replace(bucket, "counter", b"%d" % value, known.revision if known else 0)
                successes[number] += revision is not None
                await asyncio.sleep(0.005)

    counting = [asyncio.create_task(count(number)) for number in range(3)]
    await asyncio.sleep(0.5)
    leader = await brokers.leader(f"KV_{bucket}")
    await brokers.kill(leader)
    await brokers.leader(f"KV_{bucket}")
    await asyncio.sleep(1)
    await brokers.restart(leader)
    done = True
    await asyncio.gather(*counting)
    async with connected(brokers) as bus:
        entry = await bus.get(bucket, "counter")
    assert entry is not None
    assert int(entry.value) == successes.total() > 10
    await wait_until_whole(brokers.url)


async def test_a_reader_outlives_the_server_its_consumer_is_on(brokers: EmbeddedCluster) -> None:
    log = Log()
    async with connected(brokers) as bus:
        await bus.ensure([log.stream])
        reader = await bus.reader(log.name)
        await bus.publish(log.subject(), b"0", "0")
        assert [each.payload for each in await take(reader, 1)] == [b"0"]
        for round in range(1, 3):
            about = await bus._api.ask(f"CONSUMER.INFO.{log.name}.{reader._consumer.decode()}")
            home = int(about["cluster"]["leader"].rpartition("-")[2]) - 1
            await brokers.kill(home)
            waiting = asyncio.create_task(take(reader, 1))
            await bus.publish(log.subject(), b"%d" % round, f"{round}")
            assert [each.payload for each in await waiting] == [b"%d" % round]
            await brokers.restart(home)
            await wait_until_whole(brokers.url)
        assert reader.restarts >= 2


async def test_whoever_comes_while_there_is_no_leader_waits_for_one(brokers: EmbeddedCluster) -> None:
    log = Log()
    async with connected(brokers) as bus:
        await bus.ensure([log.stream])
        await bus.publish(log.subject(), b"first", "first")
        await bus.put("TEST_NEWCOMER", "key", b"value")
    leader = await brokers.leader(log.name)
    await brokers.kill(leader)
    async with connected(brokers) as bus:
        assert await bus.last_sequence(log.name) == 1
        assert [each.payload for each in await take(await bus.reader(log.name), 1)] == [b"first"]
        entry = await bus.get("TEST_NEWCOMER", "key")
        assert entry is not None
        assert entry.value == b"value"
        assert (await bus.publish(log.subject(), b"first", "first")).duplicate
        assert (await bus.publish(log.subject(), b"second", "second")).sequence == 2
        other = Log()
        made = asyncio.create_task(bus.ensure([other.stream]))
        await asyncio.sleep(0.2)
        await brokers.restart(leader)
        await made
        assert (await bus.publish(other.subject(), b"", "id")).sequence == 1
    await wait_until_whole(brokers.url)


async def test_everything_of_a_cluster_has_the_replicas_it_was_made_with(brokers: EmbeddedCluster) -> None:
    async with connected(brokers) as first:
        assert await ensure_cluster(first, 2, 3) == 2
    later = await JetStreamBus.connect(brokers.url)  # who says nothing, and is told by the cluster
    try:
        assert await ensure_cluster(later, 5, 1) == 2
        await later.ensure([streams.executor("late")])
        await later.put(streams.LEASE_BUCKET, "some.key", b"")
        names = (await later._api.ask("STREAM.NAMES"))["streams"]
        expected = {each.name for each in (*streams.cluster(2), streams.executor("late"))}
        expected |= {f"KV_{bucket}" for bucket in (streams.CLUSTER_BUCKET, streams.LEASE_BUCKET)}
        assert expected <= set(names)
        found = {name: (await facts(later, name))["config"]["num_replicas"] for name in expected}
        assert set(found.values()) == {3}, found
    finally:
        await later.close()


async def test_a_cluster_made_before_there_was_a_choice_stays_as_it_is(
    brokers: EmbeddedCluster, tmp_path: Path
) -> None:
    async with EmbeddedBroker(tmp_path, port=0) as broker:
        old = await JetStreamBus.connect(broker.url)
        await old.put(streams.CLUSTER_BUCKET, streams.CELLS_KEY, b"1")
        await old.close()
        bus = await JetStreamBus.connect(broker.url, replicas=3)
        assert await ensure_cluster(bus, 4, 3) == 1
        await bus.ensure([streams.executor("late")])
        assert (await facts(bus, streams.executor("late").name))["config"]["num_replicas"] == 1
        assert await bus.get(streams.CLUSTER_BUCKET, streams.REPLICAS_KEY) is None
        await bus.close()


async def test_replicas_take_a_cluster(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path, port=0) as broker:
        bus = await JetStreamBus.connect(broker.url, replicas=3)
        with pytest.raises(BusError, match="more than one replica takes a cluster"):
            await ensure_cluster(bus, 1, 3)
        with suppress(BusError):
            await bus.close()


def pid_and_restarts(state: Path, name: str) -> tuple[int | None, int]:
    running = statefile.read(state)
    assert running is not None
    return running.services[name]["pid"], running.services[name]["restarts"]


@pytest.mark.parametrize(("count", "name"), [(1, "broker"), (3, "broker-2")])
async def test_the_system_starts_a_broker_again_and_counts(tmp_path: Path, count: int, name: str) -> None:
    async with LocalSystem(tmp_path, port=0, brokers=count, driver="simulated") as system:
        assert len(system.url.split(",")) == count
        for restarts in (1, 2):
            pid, before = pid_and_restarts(tmp_path, name)
            assert (before, pid is not None) == (restarts - 1, True)
            os.kill(pid or 0, signal.SIGKILL)
            async with asyncio.timeout(60):
                while pid_and_restarts(tmp_path, name) == (pid, before) or pid_and_restarts(tmp_path, name)[0] is None:
                    await asyncio.sleep(0.02)
            assert pid_and_restarts(tmp_path, name)[1] == restarts
        bus = await JetStreamBus.connect(system.url, deadline_s=60)
        about = await facts(bus, streams.rollout(0).name)
        assert about["config"]["num_replicas"] == count
        await bus.close()
    # What one broker kept is not what three keep: nobody is to find an empty system where there was another.
    with pytest.raises(Failure, match=f"was made with --brokers {count}") as caught:
        await LocalSystem(tmp_path, port=0, brokers=4 - count, driver="simulated").__aenter__()
    assert caught.value.status == Exit.STATE_DIRECTORY
    with pytest.raises(ValueError, match="a cluster of three"):
        LocalSystem(tmp_path, brokers=2)
