"""Publishing that does not give up, in order."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from shoal.bus.memory import MAX_PAYLOAD, MemoryBroker
from shoal.bus.protocol import PublishTimeoutError, Stored, StreamFullError, TooLargeError
from shoal.runtime.steady import SteadyPublisher
from shoal.wire import streams, subjects

CONTROL = subjects.executor_control("e1")
INBOX = streams.executor("e1")
OTHER = subjects.placement_node(0)


@pytest.fixture
def broker(memory_broker: MemoryBroker) -> MemoryBroker:
    for stream in (INBOX, streams.placement(0)):
        memory_broker.ensure(stream)
    return memory_broker


def limit(broker: MemoryBroker, max_bytes: int) -> None:
    broker.ensure(replace(INBOX, max_bytes=max_bytes))


def ids(broker: MemoryBroker, stream: str = INBOX.name) -> list[str]:
    return [delivery.id for delivery in broker.messages(stream)]


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


async def test_what_comes_after_a_refused_message_waits_for_it_though_there_is_room(broker: MemoryBroker) -> None:
    publisher = SteadyPublisher(broker.connect(), "test")
    limit(broker, 2000)
    with capture_logs() as said:
        start = publisher.publish(CONTROL, bytes(5000), "start")
        await until(lambda: said)
        destroy = publisher.publish(CONTROL, b"small", "destroy")
        others = [publisher.publish(CONTROL, b"", f"later-{number}") for number in range(500)]
        assert (await publisher.publish(OTHER, b"", "elsewhere")).sequence == 1, "other streams do not wait"
        await asyncio.sleep(0.5)  # some tries
        assert ids(broker) == []
        assert not destroy.done()
        limit(broker, 1024**2)
        assert [(await future).sequence for future in (start, destroy, *others)] == list(range(1, 503))
    assert ids(broker) == ["start", "destroy", *(f"later-{number}" for number in range(500))]
    assert [(line["log_level"], line["stream"]) for line in said] == [("error", INBOX.name), ("warning", INBOX.name)]
    assert "--max-bytes" in said[0]["error"]


async def test_a_stream_that_has_room_for_some_takes_them_in_order(broker: MemoryBroker) -> None:
    publisher = SteadyPublisher(broker.connect(), "test")
    limit(broker, 0)
    futures = [publisher.publish(CONTROL, bytes(100), str(number)) for number in range(40)]
    for room in range(0, 40 * 300, 2000):
        limit(broker, room)
        await asyncio.sleep(0.15)
    await asyncio.gather(*futures)
    assert ids(broker) == [str(number) for number in range(40)]


async def test_what_no_waiting_mends_fails_and_holds_nothing_up(broker: MemoryBroker) -> None:
    publisher = SteadyPublisher(broker.connect(), "test")
    limit(broker, 0)
    small = publisher.publish(CONTROL, b"", "small")
    large = publisher.publish(CONTROL, bytes(MAX_PAYLOAD + 1), "large")
    with pytest.raises(TooLargeError):
        await large
    behind = publisher.publish(CONTROL, bytes(MAX_PAYLOAD + 1), "behind")
    limit(broker, 1024**2)
    assert (await small).sequence == 1
    with pytest.raises(TooLargeError):
        await behind
    assert (await publisher.publish(CONTROL, b"", "after")).sequence == 2


async def test_refusals_that_come_in_any_order_change_nothing() -> None:
    class Slow:
        """Answers when it is told to."""

        def __init__(self) -> None:
            self.asked: list[tuple[str, asyncio.Future[Stored]]] = []

        def publish(self, subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
            future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
            self.asked.append((id, future))
            return future

    bus = Slow()
    publisher = SteadyPublisher(bus, "test")  # type: ignore[arg-type]  # it publishes, and that is all that is used
    futures = [publisher.publish(CONTROL, b"", str(number)) for number in range(4)]
    bus.asked[2][1].set_exception(StreamFullError("full", INBOX.name))
    await asyncio.sleep(0)
    bus.asked[0][1].set_exception(PublishTimeoutError("late"))
    bus.asked[3][1].set_result(Stored("S", 1, False))
    bus.asked[1][1].set_exception(StreamFullError("full", INBOX.name))
    await until(lambda: len(bus.asked) == 5)
    assert bus.asked[4][0] == "0", "the oldest goes first, and alone"
    bus.asked[4][1].set_exception(StreamFullError("full", INBOX.name))
    await until(lambda: len(bus.asked) == 6)
    bus.asked[5][1].set_result(Stored("S", 2, False))
    await until(lambda: len(bus.asked) == 8)
    assert [id for id, _ in bus.asked[5:]] == ["0", "1", "2"]
    for number, (_, future) in enumerate(bus.asked[6:]):
        future.set_result(Stored("S", 3 + number, False))
    assert [(await future).sequence for future in futures] == [2, 3, 4, 1]
