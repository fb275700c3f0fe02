"""Where an executor goes on in an inbox that has lost its end."""

import asyncio
from collections.abc import Sequence

import pytest

from shoal.bus.memory import MemoryBroker
from shoal.bus.protocol import Delivery, StreamAnewError
from shoal.wire import streams, subjects
from shoal.wire.codec import encode
from shoal.wire.messages import AnyMessage, DestroySandboxes, EndReason
from shoal_executor.service.inbox import Inbox


class Known:
    """What an executor has taken."""

    def __init__(self, inbox: int) -> None:
        self.inbox: int | None = inbox

    def begin_at(self, sequence: int) -> None:
        self.inbox = sequence


class Shortened:
    """A reader of an inbox that ended with message 2 when it was looked at."""

    async def batch(self, limit: int = 1024) -> Sequence[Delivery]:
        raise StreamAnewError("it has lost its end", 2)

    async def close(self) -> None:
        pass


async def test_the_next_process_takes_all_that_came_since(
    memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = memory_broker.connect()
    await bus.ensure([streams.executor("e1")])
    for n in range(12):  # by now it is longer than it was, again
        message = DestroySandboxes("b1", f"r{n}", (), EndReason.RELEASED)
        await bus.publish(subjects.executor_control("e1"), encode(message), f"{n}")
    known, taken = Known(10), asyncio.Queue[int]()

    async def take(message: AnyMessage, delivery: Delivery) -> None:
        taken.put_nowait(delivery.sequence)

    async def shortened(*given: object, **named: object) -> Shortened:
        return Shortened()

    inbox = Inbox(bus, "e1", known, take)  # type: ignore[arg-type]  # all that an inbox asks of it
    with monkeypatch.context() as patch:
        patch.setattr(bus, "reader", shortened)
        await inbox.open(continued=True)
        with pytest.raises(StreamAnewError):
            await inbox.follow()
    inbox = Inbox(bus, "e1", known, take)  # type: ignore[arg-type]  # as above
    await inbox.open(continued=True)
    following = asyncio.create_task(inbox.follow())
    async with asyncio.timeout(10):
        assert [await taken.get() for _ in range(10)] == list(range(3, 13))
    following.cancel()
    await inbox.close()
