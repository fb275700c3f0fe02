"""A client of nats-py that has come to a standstill is given up, and a new one goes on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conformance.bus import Log, take
from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus

pytestmark = pytest.mark.broker

CLOSED = RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")


@pytest.fixture
async def told() -> list[str]:
    return []


@pytest.fixture
async def bus(broker: EmbeddedBroker, told: list[str]) -> AsyncIterator[JetStreamBus]:
    bus = await JetStreamBus.connect(broker.url, on_error=told.append)
    yield bus
    await bus.close()


async def goes_on(bus: JetStreamBus, log: Log, old: Any) -> None:
    reader = await bus.reader(log.name)
    async with asyncio.timeout(30):
        await bus.publish(log.subject(), b"after", "after")
        assert [delivery.payload for delivery in await take(reader, 2)] == [b"before", b"after"]
    assert bus._connection.client is not old
    assert old.is_closed


@pytest.mark.parametrize("task", ["_reading_task", "_flusher_task"])
async def test_a_client_that_no_longer_reads_or_writes(bus: JetStreamBus, told: list[str], task: str) -> None:
    log = Log()
    await bus.ensure([log.stream])
    await bus.publish(log.subject(), b"before", "before")
    reader = await bus.reader(log.name)
    assert len(await take(reader, 1)) == 1
    old = bus._connection.client
    getattr(old, task).cancel()
    async with asyncio.timeout(30):
        following = asyncio.create_task(take(reader, 1))
        await bus.publish(log.subject(), b"meanwhile", "meanwhile")
        assert [delivery.payload for delivery in await following] == [b"meanwhile"]
        while bus._connection.client is old:  # what was heard needs no reading task, and is heard meanwhile
            await asyncio.sleep(0.01)
        await bus.publish(log.subject(), b"after", "after")
        assert [delivery.payload for delivery in await take(reader, 1)] == [b"after"]
    assert any("standstill" in text for text in told)


async def test_a_client_that_no_longer_tries_to_reconnect(bus: JetStreamBus, told: list[str]) -> None:
    log = Log()
    await bus.ensure([log.stream])
    await bus.publish(log.subject(), b"before", "before")
    old = bus._connection.client

    async def fails() -> None:
        raise CLOSED

    old._attempt_reconnect = fails  # type: ignore[method-assign]  # as a cut at its first write does
    await old._process_op_err(ConnectionResetError())
    await goes_on(bus, log, old)
    assert any("standstill" in text for text in told)


async def test_a_new_client_that_is_lost_before_anybody_could_subscribe(bus: JetStreamBus, told: list[str]) -> None:
    log = Log()
    await bus.ensure([log.stream])
    await bus.publish(log.subject(), b"before", "before")
    subscribe, tries = bus._subscribe, 0

    async def lost_twice() -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise CLOSED
        await subscribe()

    bus._subscribe = lost_twice  # type: ignore[method-assign]
    old = bus._connection.client
    await old.close()
    await goes_on(bus, log, old)
    assert tries == 3


async def test_a_closed_transport_is_a_lost_connection_and_not_the_end_of_all_publishing(bus: JetStreamBus) -> None:
    log = Log()
    await bus.ensure([log.stream])
    client = bus._connection.client
    publish, refused = client.publish, 0

    async def closed_at_first(*args: Any, **kwargs: Any) -> None:
        nonlocal refused
        refused += 1
        if refused <= 3:
            raise CLOSED
        await publish(*args, **kwargs)

    client.publish = closed_at_first  # type: ignore[method-assign]
    async with asyncio.timeout(20):
        assert (await bus.publish(log.subject(), b"", "id")).sequence == 1
        assert await bus.last_sequence(log.name) == 1
    assert refused > 3
