import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conformance.bus import Log, take
from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import NoStreamError, StreamAnewError
from shoal.bus.pull import Position, PullReader, parse_ack_subject


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.STREAM.consumer.1.42.7.1700000000123456789.3",
        "$JS.ACK.hub.ACCHASH.STREAM.consumer.1.42.7.1700000000123456789.3",
        "$JS.ACK._.ACCHASH.STREAM.consumer.1.42.7.1700000000123456789.3.random",
    ],
)
def test_a_delivery_says_where_it_stands(reply: str) -> None:
    assert parse_ack_subject(reply.encode()) == Position(b"consumer", 42, 7, 1_700_000_000_123_456_789)


@pytest.mark.parametrize(
    "reply", ["", "_INBOX.a.b", "$JS.ACK.S.c.1.2.3.4", "$JS.ACK.d.S.c.1.2.3.4.5", "$JS.ACK.S.c.1.x.3.4.5"]
)
def test_what_is_no_delivery(reply: str) -> None:
    with pytest.raises(ValueError):
        parse_ack_subject(reply.encode())


@pytest.mark.broker
class TestRecovery:
    """Whatever happens to its consumer, a reader skips nothing and repeats nothing."""

    async def follow_through(self, bus: JetStreamBus, harm: Any) -> int:
        log = Log()
        await bus.ensure([log.stream])
        reader = await bus.reader(log.name)
        found: list[int] = []
        for round in range(4):
            futures = [bus.publish(log.subject(), b"", f"{round}-{i}") for i in range(300)]
            found += [message.sequence for message in await take(reader, 100)]
            await harm(log, reader)
            await asyncio.gather(*futures)
            found += [message.sequence for message in await take(reader, 200)]
        assert found == list(range(1, 1201))
        return reader.restarts

    async def test_its_consumer_is_deleted(self, broker: EmbeddedBroker) -> None:
        bus = await JetStreamBus.connect(broker.url)
        client = bus._connection.client

        async def delete(log: Log, reader: Any) -> None:
            reply = await client.request(f"$JS.API.CONSUMER.NAMES.{log.name}", b"")
            for name in json.loads(reply.data)["consumers"]:
                await client.request(f"$JS.API.CONSUMER.DELETE.{log.name}.{name}", b"")

        assert await self.follow_through(bus, delete) >= 1
        await bus.close()

    async def test_a_delivery_is_lost(self, broker: EmbeddedBroker) -> None:
        bus = await JetStreamBus.connect(broker.url)

        async def steal(log: Log, reader: Any) -> None:
            reader._consumer_sequence -= 1  # as if one more was expected than came

        assert await self.follow_through(bus, steal) >= 1
        await bus.close()

    async def test_the_connection_breaks(self, broker: EmbeddedBroker) -> None:
        bus = await JetStreamBus.connect(broker.url)

        async def cut(log: Log, reader: Any) -> None:
            await bus._connection.client.force_reconnect()

        assert await self.follow_through(bus, cut) >= 3
        await bus.close()

    async def test_the_client_gives_up_for_good(self, broker: EmbeddedBroker) -> None:
        told: list[str] = []
        bus = await JetStreamBus.connect(broker.url, on_error=told.append)

        async def close(log: Log, reader: Any) -> None:
            await bus._connection.client.close()

        assert await self.follow_through(bus, close) >= 3
        assert any("connection to the broker is lost" in text for text in told)
        await bus.close()

    async def test_it_is_left_alone_for_longer_than_a_pull_lasts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shoal.bus.pull._EXPIRES_S", 0.5)
        monkeypatch.setattr("shoal.bus.pull._HEARTBEAT_S", 0.1)
        async with EmbeddedBroker(tmp_path, port=0) as broker:
            bus = await JetStreamBus.connect(broker.url)
            log = Log()
            await bus.ensure([log.stream])
            reader = await bus.reader(log.name)
            for round in range(3):
                await asyncio.sleep(0.8)
                await bus.publish(log.subject(), b"", f"{round}")
                assert [message.sequence for message in await take(reader, 1)] == [round + 1]
            assert reader.restarts == 0
            await bus.close()


@pytest.mark.broker
async def test_who_looks_at_one_message_does_not_hear_all(broker: EmbeddedBroker) -> None:
    bus = await JetStreamBus.connect(broker.url)
    try:
        log = Log()
        await bus.ensure([log.stream])
        await asyncio.gather(*(bus.publish(log.subject(), b"", f"{i}") for i in range(2_000)))
        reader = await bus.reader(log.name)
        first = await reader.batch(1)
        await asyncio.sleep(0.2)
        assert [each.sequence for each in first] == [1]
        assert len(reader._buffer) < 128
        rest = await take(reader, 1_999)
        assert [each.sequence for each in rest] == list(range(2, 2_001))
        assert reader._asked > 2_000  # who follows is asked for ahead of
    finally:
        await bus.close()


async def delete(bus: JetStreamBus, log: Log) -> None:
    await bus._connection.client.request(f"$JS.API.STREAM.DELETE.{log.name}", b"")


@pytest.mark.broker
class TestAStreamThatIsNoLongerTheSame:
    """Sequences begin anew in it: what comes does not follow what was read, and a position in it means nothing."""

    @pytest.mark.parametrize("count", [0, 1, 9], ids=["still empty", "shorter", "longer"])
    async def test_made_again(self, broker: EmbeddedBroker, count: int) -> None:
        bus = await JetStreamBus.connect(broker.url)
        log = Log()
        await bus.ensure([log.stream])
        reader = await bus.reader(log.name)
        for i in range(3):
            await bus.publish(log.subject(), b"", f"{i}")
        assert len(await take(reader, 3)) == 3
        await asyncio.wait_for(looked_at(reader), 10)
        waiting = asyncio.create_task(reader.batch())
        await delete(bus, log)
        await bus.ensure([log.stream])
        for i in range(count):
            await bus.publish(log.subject(), b"", f"anew-{i}")
        with pytest.raises(StreamAnewError, match=f"{log.name} was made anew at .* read up to message 3"):
            await asyncio.wait_for(waiting, 30)
        with pytest.raises(StreamAnewError):
            await asyncio.wait_for(reader.batch(), 5)
        await bus.close()

    async def test_on_a_broker_that_was_made_anew(self, tmp_path: Path) -> None:
        log = Log()
        first = EmbeddedBroker(tmp_path / "first", port=0)
        await first.start()
        bus = await JetStreamBus.connect(first.url)
        await bus.ensure([log.stream])
        reader = await bus.reader(log.name)
        await bus.publish(log.subject(), b"", "1")
        await take(reader, 1)
        await asyncio.wait_for(looked_at(reader), 10)
        await first.stop()
        async with EmbeddedBroker(tmp_path / "second", port=int(first.url.rpartition(":")[2])):
            await bus.ensure([log.stream])
            with pytest.raises(StreamAnewError, match="made anew"):
                await asyncio.wait_for(reader.batch(), 30)
            await bus.close()

    async def test_removed(self, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shoal.bus.pull._NO_STREAM_PATIENCE_S", 0.3)
        bus = await JetStreamBus.connect(broker.url)
        log = Log()
        await bus.ensure([log.stream])
        reader = await bus.reader(log.name)
        await delete(bus, log)
        with pytest.raises(NoStreamError, match=log.name):
            await asyncio.wait_for(reader.batch(), 30)
        await bus.close()

    async def test_a_position_beyond_its_end(self, broker: EmbeddedBroker) -> None:
        bus = await JetStreamBus.connect(broker.url)
        log = Log()
        await bus.ensure([log.stream])
        await bus.publish(log.subject(), b"", "1")
        reader = await bus.reader(log.name, after=7)
        with pytest.raises(StreamAnewError, match="ends with message 1, and was read up to message 7"):
            await asyncio.wait_for(reader.batch(), 30)
        await bus.close()

    async def test_it_lost_its_end_and_is_as_long_again(self, tmp_path: Path) -> None:
        """A restored backup, on which others go on at once: the reader's position is in the log, and means another."""
        log, state = Log(), tmp_path / "state"
        broker = EmbeddedBroker(state, port=0)
        await broker.start()
        bus = await JetStreamBus.connect(broker.url)
        await bus.ensure([log.stream])
        reader = await bus.reader(log.name)
        await bus.publish(log.subject(), b"", "0")
        await broker.stop()
        shutil.copytree(state / "jetstream", tmp_path / "backup")
        await broker.start()
        for i in range(3):
            await bus.publish(log.subject(), b"", f"{i}")
        assert len(await take(reader, 3)) == 3
        await broker.stop()
        shutil.rmtree(state / "jetstream")
        (tmp_path / "backup").rename(state / "jetstream")
        await broker.start()
        other = await JetStreamBus.connect(broker.url)
        for i in range(9):
            await other.publish(log.subject(), b"", f"other-{i}")
        with pytest.raises(StreamAnewError, match=r"message 3 of .* is not the one|ends with message \d, and was read"):
            await asyncio.wait_for(reader.batch(), 30)
        await other.close()
        await bus.close()
        await broker.stop()


async def looked_at(reader: PullReader) -> None:
    """Wait until a reader knows which stream it follows."""
    while not reader._origin._created:
        await asyncio.sleep(0.01)
