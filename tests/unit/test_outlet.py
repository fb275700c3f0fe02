"""What follows from messages is stored before their position moves, also where the broker takes some of it late."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from shoal.bus.memory import MAX_PAYLOAD, MemoryBroker
from shoal.machine.core import Cause
from shoal.runtime.outlet import Folded, Outgoing, Outlet
from shoal.wire import streams, subjects
from shoal.wire.codec import decode
from shoal.wire.messages import DeadLetter

CONTROL = subjects.executor_control("e1")
INBOX = streams.executor("e1")
NODES = subjects.placement_node(0)


def folded(sequence: int, *effects: Outgoing) -> Folded:
    return Folded(Cause(streams.rollout(0).name, sequence, 1000 + sequence), effects)


@pytest.fixture
async def outlet(memory_broker: MemoryBroker) -> AsyncIterator[Outlet]:
    for stream in (INBOX, streams.placement(0), streams.dead()):
        memory_broker.ensure(stream)
    outlet = Outlet(memory_broker.connect(), "test.0")
    seeing = asyncio.create_task(outlet.run())
    yield outlet
    seeing.cancel()
    await asyncio.gather(seeing, return_exceptions=True)


async def progress(outlet: Outlet) -> int:
    outlet.progress.clear()
    async with asyncio.timeout(20):
        await outlet.progress.wait()
    return outlet.done


async def test_a_position_waits_for_all_effects_before_it(memory_broker: MemoryBroker, outlet: Outlet) -> None:
    memory_broker.ensure(replace(INBOX, max_bytes=200))  # which has no room for the first of them
    outlet.let_out([folded(1), folded(2, Outgoing(CONTROL, bytes(500), "2:0"), Outgoing(NODES, b"", "2:1"))])
    outlet.let_out([folded(3, Outgoing(NODES, b"", "3:0"))])
    outlet.let_out([folded(4)])
    while len(memory_broker.messages(streams.placement(0).name)) < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert (outlet.done, outlet.published) == (0, 2)
    memory_broker.ensure(INBOX)
    assert await progress(outlet) == 4
    assert (outlet.empty, outlet.published) == (True, 3)


async def test_what_has_no_effects_is_done_with_at_once(outlet: Outlet) -> None:
    outlet.let_out([folded(1), folded(2)])
    assert (outlet.done, outlet.empty) == (2, True)


async def test_a_letter_tells_of_what_no_stream_takes_before_the_position_moves(
    memory_broker: MemoryBroker, outlet: Outlet
) -> None:
    outlet.let_out([folded(1, Outgoing(CONTROL, bytes(MAX_PAYLOAD + 1), "1:0"), Outgoing(CONTROL, b"small", "1:1"))])
    assert await progress(outlet) == 1
    (letter,) = (decode(each.payload) for each in memory_broker.messages(streams.dead().name))
    assert isinstance(letter, DeadLetter)
    assert (letter.subject, letter.reader, letter.sequence) == (CONTROL, "test.0:1:0", 1)
    assert (outlet.dead, outlet.published) == (1, 1)


async def test_what_is_taken_back_is_nobodys_when_it_is_stored_after_all(
    memory_broker: MemoryBroker, outlet: Outlet
) -> None:
    memory_broker.ensure(replace(INBOX, max_bytes=200))
    waiting = folded(1, Outgoing(CONTROL, bytes(500), "1:0"))
    outlet.let_out([waiting])
    await asyncio.sleep(0.05)
    assert outlet.take_back() == [waiting]
    memory_broker.ensure(INBOX)
    async with asyncio.timeout(20):
        while not memory_broker.messages(INBOX.name):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    assert (outlet.done, outlet.empty) == (0, True)
