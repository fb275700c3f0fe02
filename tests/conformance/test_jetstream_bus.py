import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from conformance.bus import BusConformance, BusFactory, Log, take
from shoal.broker import EmbeddedBroker, EmbeddedCluster
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import Bus, Entry, UnreachableError


def connector(url: str, replicas: int = 1) -> BusFactory:
    async def connect() -> Bus:
        return await JetStreamBus.connect(url, name="conformance", no_stream_patience_s=0.3, replicas=replicas)

    return connect


@pytest.mark.broker
class TestJetStreamBus(BusConformance):
    @pytest.fixture
    def bus_factory(self, broker: EmbeddedBroker) -> BusFactory:
        return connector(broker.url)


@pytest.fixture(scope="module")
def three_brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    cluster = EmbeddedCluster(tmp_path_factory.mktemp("three"))
    asyncio.run(cluster.start())
    yield cluster
    asyncio.run(cluster.stop())


@pytest.mark.broker
class TestJetStreamBusOnThreeServers(BusConformance):
    """Every stream and bucket on all three."""

    @pytest.fixture
    def bus_factory(self, three_brokers: EmbeddedCluster) -> BusFactory:
        return connector(three_brokers.url, replicas=3)

    async def test_it_is_kept_thrice(self, bus: JetStreamBus, log: Log) -> None:
        await bus.put("TEST_REPLICAS", "key", b"")
        for name in (log.name, "KV_TEST_REPLICAS"):
            about = await bus._api.ask(f"STREAM.INFO.{name}")
            assert len(about["cluster"]["replicas"]) == 2


def engine_problem() -> str | None:
    """Return why no Docker engine answers here, or None. (Docker's own client leaks a socket when it fails.)"""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not host.startswith("unix://"):
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(host.removeprefix("unix://"))
        except OSError as error:
            return f"{host}: {error.strerror}"
    return None


@pytest.fixture(scope="session")
def container_url() -> Iterator[str]:
    """NATS as its makers ship it, in a container."""
    problem = engine_problem()
    if problem is not None:
        pytest.skip(f"no Docker engine is reachable: {problem}")
    container = DockerContainer("nats:2").with_command("-js").with_exposed_ports(4222)
    with container.waiting_for(LogMessageWaitStrategy("Server is ready")) as started:
        yield f"nats://{started.get_container_host_ip()}:{started.get_exposed_port(4222)}"


@pytest.mark.broker
class TestJetStreamBusInContainer(BusConformance):
    @pytest.fixture
    def bus_factory(self, container_url: str) -> BusFactory:
        return connector(container_url)


@pytest.mark.broker
class TestBrokerRestart:
    """kill -9 and a new server on the same store: nothing is lost, nothing comes twice."""

    @pytest.fixture
    async def own(self, tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
        async with EmbeddedBroker(tmp_path, port=0) as broker:
            yield broker

    @staticmethod
    async def restart(broker: EmbeddedBroker) -> None:
        os.kill(broker.pid, signal.SIGKILL)
        await broker.stop()
        await broker.start()

    async def test_while_publishing_and_reading(self, own: EmbeddedBroker) -> None:
        bus = await JetStreamBus.connect(own.url, deadline_s=60)
        log = Log(max_bytes=-1)
        await bus.ensure([log.stream])
        reader = await bus.reader(log.name)
        count = 60_000
        taking = asyncio.create_task(take(reader, count, within_s=90))
        futures = []
        for i in range(count):
            futures.append(bus.publish(log.subject(), b"%d" % i, f"id-{i}"))
            if i % 1000 == 0:
                await asyncio.sleep(0.01)
            if i in (count // 3, 2 * count // 3):
                await self.restart(own)
        stored = await asyncio.gather(*futures)
        found = await taking
        assert [message.payload for message in found] == [b"%d" % i for i in range(count)]
        assert [message.sequence for message in found] == list(range(1, count + 1))
        assert [each.sequence for each in stored] == list(range(1, count + 1))
        assert await bus.last_sequence(log.name) == count
        await bus.close()

    async def test_while_idle(self, own: EmbeddedBroker) -> None:
        bus = await JetStreamBus.connect(own.url, deadline_s=60)
        log = Log()
        await bus.ensure([log.stream])
        reader = await bus.reader(log.name, after=None, filters=[log.subject("k", "*")])
        for round in range(3):
            await bus.publish(log.subject("k", "x"), b"%d" % round, f"{round}")
            await bus.publish(log.subject("other"), b"", f"other-{round}")
            assert [message.payload for message in await take(reader, 1)] == [b"%d" % round]
            await bus.put("TEST_BUCKET", "key", b"%d" % round)
            await self.restart(own)
            entry = await bus.get("TEST_BUCKET", "key")
            assert entry is not None
            assert entry.value == b"%d" % round
            assert (await bus.publish(log.subject("k", "x"), b"", f"{round}")).duplicate
        await bus.close()

    async def test_published_while_it_is_down(self, own: EmbeddedBroker) -> None:
        told: list[str] = []
        bus = await JetStreamBus.connect(own.url, deadline_s=60, on_error=told.append)
        log = Log()
        await bus.ensure([log.stream])
        os.kill(own.pid, signal.SIGKILL)
        await own.stop()
        futures = [bus.publish(log.subject(), b"", f"{i}") for i in range(100)]
        await asyncio.sleep(0.5)
        assert not any(future.done() for future in futures)
        await own.start()
        assert [each.sequence for each in await asyncio.gather(*futures)] == list(range(1, 101))
        assert told
        await bus.close()

    async def test_closing_without_a_broker(self, own: EmbeddedBroker) -> None:
        bus = await JetStreamBus.connect(own.url)
        log = Log()
        await bus.ensure([log.stream])
        reader = await bus.reader(log.name)
        waiting = asyncio.create_task(reader.batch())
        await asyncio.sleep(0.05)
        await own.stop()
        await asyncio.sleep(0.3)
        async with asyncio.timeout(20):
            await bus.close()
        assert waiting.cancelled()

    async def test_a_value_is_the_newest_after_a_restart(self, own: EmbeddedBroker) -> None:
        bus = await JetStreamBus.connect(own.url)
        for sequence in range(1, 200):
            last = await bus.put("TEST_BUCKET", "key", b"%d" % sequence)
        await self.restart(own)
        other = await JetStreamBus.connect(own.url)
        assert await other.get("TEST_BUCKET", "key") == Entry(b"199", last)
        await other.close()
        await bus.close()


class TestUnreachable:
    async def test_nobody_listens(self) -> None:
        with pytest.raises(UnreachableError, match=r"no broker answers at nats://127\.0\.0\.1:1 .*shoal up"):
            await JetStreamBus.connect("nats://127.0.0.1:1")

    @pytest.mark.parametrize("url", ["", "nats://127.0.0.1:potato"])
    async def test_what_is_no_address(self, url: str) -> None:
        with pytest.raises(UnreachableError, match="no broker's address"):
            await JetStreamBus.connect(url)

    async def test_somebody_listens_and_says_nothing(self) -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UnreachableError, match="no broker answers"):
            await JetStreamBus.connect(f"nats://127.0.0.1:{port}", connect_timeout=0.5)
        server.close()
