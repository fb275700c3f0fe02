"""Dead letters in an operator's hands: listed, shown, published again."""

import asyncio

import pytest

import shoal
from shoal.bus.memory import MemoryBroker
from shoal.bus.protocol import Bus, Delivery
from shoal.cli import dead as command
from shoal.machine.core import Cause
from shoal.runtime.dead import dead_letter
from shoal.wire import subjects
from shoal.wire.codec import encode
from shoal.wire.messages import DEAD_PAYLOAD_KEPT, DeadLetter, RolloutCancelled, Tick
from unit.client_fabric import EXECUTOR, Fabric

SUBJECT = subjects.rollout_request(0, "acme", "grpo")
CONTROL = subjects.executor_control(EXECUTOR)


async def bury(bus: Bus, payload: bytes, *, sequence: int, executor: bool = False, reason: str = "no use") -> None:
    stream = f"SHOAL_EXECUTOR_{EXECUTOR}" if executor else "SHOAL_ROLLOUT_0"
    reader = f"executor.{EXECUTOR}" if executor else "scheduler.0"
    found = Delivery(CONTROL if executor else SUBJECT, payload, sequence, 5, "id")
    await dead_letter(bus, found, Cause(stream, sequence, 5), reader, reason)


@pytest.fixture
def fabric() -> Fabric:
    return Fabric()  # not entered: nobody reads what is published


async def test_letters_say_where_they_were_found_and_what_they_say(fabric: Fabric) -> None:
    bus = fabric.connect()
    await bury(bus, b"\xc1garbage", sequence=3)
    await bury(bus, encode(RolloutCancelled("r1", "me")), sequence=4, reason="no such rollout")
    async with shoal.connect(bus=bus) as cluster:
        garbage, cancelled = [letter async for letter in cluster.dead_letters()]
        assert (garbage.number, garbage.stream, garbage.sequence, garbage.subject) == (1, "SHOAL_ROLLOUT_0", 3, SUBJECT)
        assert (garbage.reader, garbage.reason, garbage.payload, garbage.size) == ("scheduler.0", "no use",
                                                                                   b"\xc1garbage", 8)  # fmt: skip
        assert (garbage.message, garbage.whole) == (None, True)
        assert garbage.problem
        assert garbage.time_ms > 0
        assert (cancelled.message, cancelled.problem) == (RolloutCancelled("r1", "me"), "")
        assert await cluster.dead_letter(2) == cancelled
        for absent in (3, 10**6):
            with pytest.raises(shoal.BadRequest, match="shoal dead ls"):
                await cluster.dead_letter(absent)
        with pytest.raises(shoal.BadRequest, match="whole number"):
            await cluster.dead_letter(0)


async def test_letters_are_filtered(fabric: Fabric) -> None:
    bus = fabric.connect()
    now = fabric.broker.clock()
    fabric.broker.clock = lambda: now - 3_600_000
    await bury(bus, b"1", sequence=1)
    fabric.broker.clock = lambda: now
    await bury(bus, b"2", sequence=2)
    await bury(bus, b"3", sequence=3, executor=True)
    async with shoal.connect(bus=bus) as cluster:

        async def numbers(since: str | None = None, **filters: object) -> list[int]:
            found = cluster.dead_letters(since, **filters)  # type: ignore[arg-type]  # each test gives its own
            return [letter.number async for letter in found]

        assert await numbers() == [1, 2, 3]
        assert await numbers("10m") == [2, 3]
        assert await numbers(stream="SHOAL_ROLLOUT_0") == [1, 2]
        assert await numbers(stream="SHOAL_ROLLOUT") == []
        assert await numbers(reader="executor.*") == [3]
        assert await numbers(limit=2) == [2, 3]
        assert await numbers("10m", stream="SHOAL_ROLLOUT_0", limit=1) == [2]
        with pytest.raises(shoal.BadRequest, match="limit"):
            await numbers(limit=0)
        with pytest.raises(shoal.BadRequest, match="since"):
            await numbers("soon")


async def test_a_retry_publishes_the_message_once_within_the_window_and_again_after_it(fabric: Fabric) -> None:
    bus = fabric.connect()
    payload = encode(RolloutCancelled("r1"))
    await bury(bus, payload, sequence=1)
    log = "SHOAL_ROLLOUT_0"
    async with shoal.connect(bus=bus) as cluster:
        first = await cluster.retry_dead(1)
        assert (first.number, first.stream, first.sequence, first.duplicate) == (1, log, 1, False)
        (letter,) = [letter async for letter in cluster.dead_letters()]
        again = await cluster.retry_dead(letter)
        assert (again.sequence, again.duplicate) == (1, True)
        anew = await cluster.retry_dead(1, anew=True)
        assert (anew.sequence, anew.duplicate) == (2, False)
        now = fabric.broker.clock()
        fabric.broker.clock = lambda: now + 121_000
        later = await cluster.retry_dead(1)
        assert (later.sequence, later.duplicate) == (3, False)
        assert [(found.subject, found.payload) for found in fabric.broker.messages(log)] == [(SUBJECT, payload)] * 3
        assert len(fabric.broker.messages("SHOAL_DEAD")) == 1, "a retry records nothing else"


async def test_what_was_cut_is_not_published_again(fabric: Fabric) -> None:
    bus = fabric.connect()
    await bury(bus, b"x" * DEAD_PAYLOAD_KEPT, sequence=1)
    await bury(bus, b"x" * (DEAD_PAYLOAD_KEPT + 1), sequence=2)
    unknown = DeadLetter("SHOAL_ROLLOUT_0", 3, SUBJECT, "scheduler.0", "?", b"x" * DEAD_PAYLOAD_KEPT)
    fabric.publish(subjects.dead("SHOAL_ROLLOUT_0"), unknown)
    async with shoal.connect(bus=bus) as cluster:
        whole, cut, doubtful = [letter async for letter in cluster.dead_letters()]
        assert [each.whole for each in (whole, cut, doubtful)] == [True, False, False]
        assert (cut.size, len(cut.payload)) == (DEAD_PAYLOAD_KEPT + 1, DEAD_PAYLOAD_KEPT)
        assert not (await cluster.retry_dead(whole)).duplicate
        for letter in (cut, doubtful):
            with pytest.raises(shoal.BadRequest, match="only the first 262144 were kept") as caught:
                await cluster.retry_dead(letter)
            assert caught.value.field == "letter"
        assert len(fabric.broker.messages("SHOAL_ROLLOUT_0")) == 1


async def test_what_is_no_letter_is_listed_but_never_published_again(fabric: Fabric) -> None:
    fabric.broker.store("shoal.dead.SHOAL_ROLLOUT_0", b"\xc1", "a")
    fabric.publish("shoal.dead.SHOAL_ROLLOUT_0", Tick(1))
    async with shoal.connect(bus=fabric.connect()) as cluster:
        found = [letter async for letter in cluster.dead_letters()]
        assert ["no dead letter" in letter.reason for letter in found] == [True, True]
        assert found[1].message == Tick(1)
        for letter in found:
            with pytest.raises(shoal.BadRequest, match="no dead letter"):
                await cluster.retry_dead(letter)


async def test_a_letter_to_an_executor_that_was_never_there_says_so(fabric: Fabric) -> None:
    subject = subjects.executor_control("gone")
    letter = DeadLetter("SHOAL_EXECUTOR_gone", 1, subject, "executor.gone", "?", b"\xc1", 1)
    fabric.publish(subjects.dead("SHOAL_EXECUTOR_gone"), letter)
    async with shoal.connect(bus=fabric.connect()) as cluster:
        with pytest.raises(shoal.Unreachable, match="no stream keeps"):
            await cluster.retry_dead(1)


def test_the_synchronous_face() -> None:
    broker = Fabric().broker
    with shoal.connect_sync(bus=broker.connect) as cluster:
        assert list(cluster.dead_letters()) == []
        letter = DeadLetter("SHOAL_ROLLOUT_0", 1, SUBJECT, "scheduler.0", "?", b"\xc1", 1)
        broker.store(subjects.dead("SHOAL_ROLLOUT_0"), encode(letter), "a")
        (found,) = cluster.dead_letters()
        assert cluster.dead_letter(1) == found
        assert cluster.retry_dead(1).sequence == 1


def shown(broker: MemoryBroker, number: int) -> str:
    async def work() -> str:
        async with shoal.connect(bus=broker.connect()) as cluster:
            return "\n".join(command.lines(await cluster.dead_letter(number)))

    return asyncio.run(work())


def test_a_letter_is_shown_with_its_fields_or_its_bytes() -> None:
    broker = Fabric().broker

    async def fill() -> None:
        bus = broker.connect()
        await bury(bus, encode(RolloutCancelled("r1", "me")), sequence=7, reason="nobody knows it")
        await bury(bus, b"\xc1 text \x00" + b"z" * 2000, sequence=8)
        await bury(bus, b"x" * (DEAD_PAYLOAD_KEPT + 1), sequence=9)

    asyncio.run(fill())
    said = shown(broker, 1)
    for part in ("scheduler.0", "nobody knows it", "SHOAL_ROLLOUT_0", "7", SUBJECT, "RolloutCancelled", "r1", "me"):
        assert part in said
    dumped = shown(broker, 2)
    assert "000000  c1 20 74 65 78 74 20 00 7a" in dumped
    assert ". text .zzzzzzzz" in dumped
    assert "984 bytes more" in dumped
    assert "undecodable" in dumped
    assert "262145 bytes, of which 262144 were kept" in shown(broker, 3)
