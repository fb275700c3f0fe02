import asyncio
from collections.abc import Sequence

import pytest

from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.bus.protocol import BusError, PublishTimeoutError, Stored, StreamFullError
from shoal.machine.core import Inspect, Publish
from shoal.runtime.lease import position_of
from shoal.wire import streams
from shoal.wire.codec import decode, encode
from shoal.wire.messages import (
    DeadLetter,
    EndReason as Reason,
    ResolveTemplate,
    RolloutCancelled,
    RolloutReleased,
    SandboxesEnded,
    TemplateInspected,
    TemplateResolved,
    Tick,
)
from unit.toy_core import INBOX, OUT, REQUEST, SYSTEM, Toy, acknowledge, out, running, shell_of, until


@pytest.fixture
async def bus(memory_broker: MemoryBroker) -> MemoryBus:
    bus = memory_broker.connect()
    await bus.ensure(streams.cluster(1))
    return bus


async def test_exactly_the_effects_in_order_then_the_position(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    for n in range(1000):
        bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 1000)
    assert out(memory_broker) == [(f"{INBOX}:{n + 1}:{k}", f"r{n}-{k}") for n in range(1000) for k in range(2)]
    assert await position_of(bus, "toy.0") == 1000
    assert (shell.folded, shell.published, shell.dead, shell.replayed) == (1000, 2000, 0, 0)


async def test_recovery_folds_in_silence_and_goes_on(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    for n in range(700):
        bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")
    await acknowledge(bus, 600)
    core = Toy()
    async with running(shell_of(bus, core)) as shell:
        await shell.ready()
        await until(lambda: shell.acknowledged == 700)
    assert len(core.seen) == 700
    assert (shell.replayed, shell.folded) == (600, 100)
    assert out(memory_broker) == [(f"{INBOX}:{n + 1}:{k}", f"r{n}-{k}") for n in range(600, 700) for k in range(2)]


async def test_recovery_with_nothing_new(bus: MemoryBus) -> None:
    bus.publish(REQUEST, encode(RolloutReleased("r")), "in")
    await acknowledge(bus, 1)
    core = Toy()
    async with running(shell_of(bus, core)) as shell:
        async with asyncio.timeout(10):
            await shell.ready()
        assert core.seen == ["r"]


async def test_recovery_when_everything_done_with_is_purged(bus: MemoryBus) -> None:
    bus.publish(REQUEST, encode(RolloutReleased("old")), "in-1")
    await acknowledge(bus, 1)
    await bus.purge(INBOX, 1)
    core = Toy()
    async with running(shell_of(bus, core, what_is_left=True)) as shell:
        async with asyncio.timeout(10):
            await shell.ready()
        bus.publish(REQUEST, encode(RolloutReleased("new")), "in-2")
        await until(lambda: shell.acknowledged == 2)
    assert core.seen == ["new"]


class Unconfirming(MemoryBus):
    """Stores effects but never says so: as if the process died between publishing and hearing of it."""

    def publish(self, subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
        super().publish(subject, payload, id)
        return asyncio.get_running_loop().create_future()


async def test_a_crash_before_acknowledging_repeats_the_same_ids(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    for n in range(10):
        bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")
    first = asyncio.create_task(shell_of(Unconfirming(memory_broker), Toy()).run())
    await until(lambda: len(memory_broker.messages(OUT)) == 20)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert await position_of(bus, "toy.0") == 0
    before = out(memory_broker)
    async with running(shell_of(bus, Toy())) as second:
        await until(lambda: second.acknowledged == 10)
    assert second.published == 20
    assert out(memory_broker) == before


async def test_what_nobody_can_use_is_put_aside(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    bus.publish(REQUEST, b"potatoes", "bad")
    bus.publish(REQUEST, encode(RolloutCancelled("r1")), "unlawful")
    bus.publish(REQUEST, encode(RolloutReleased("r2")), "good")
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 3)
    assert [rollout for _, rollout in out(memory_broker)] == ["r2-0", "r2-1"]
    letters = [decode(delivery.payload) for delivery in memory_broker.messages("SHOAL_DEAD")]
    assert all(isinstance(letter, DeadLetter) for letter in letters)
    first, second = (letter for letter in letters if isinstance(letter, DeadLetter))
    assert (first.stream, first.sequence, first.subject, first.reader, first.payload) == (
        INBOX, 1, REQUEST, "toy.0", b"potatoes",
    )  # fmt: skip
    assert second.reason == "nobody may cancel r1"
    assert shell.dead == 2


async def test_a_bug_of_the_core_stops_the_shell(bus: MemoryBus) -> None:
    bus.publish(SYSTEM, encode(TemplateResolved("t", "host", None)), "in")
    with pytest.raises(RuntimeError, match="a bug of the core"):
        await shell_of(bus, Toy()).run()
    assert await position_of(bus, "toy.0") == 0


async def test_a_tick_when_it_is_due(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    due = memory_broker.clock() + 50
    async with running(shell_of(bus, Toy())) as shell:
        await shell.ready()
        bus.publish(SYSTEM, encode(SandboxesEnded("r", due, (), "node", Reason.DIED)), "in")
        await until(lambda: out(memory_broker))
        await until(lambda: shell.acknowledged == 2)
    ticks = [each for each in memory_broker.messages(INBOX) if isinstance(decode(each.payload), Tick)]
    assert [each.id for each in ticks] == [f"tick:{INBOX}:{due}"]


async def test_ticks_go_on_while_the_brokers_clock_is_behind() -> None:
    now = 1_000_000
    broker = MemoryBroker(lambda: now)
    bus = broker.connect()
    await bus.ensure(streams.cluster(1))
    bus.publish(SYSTEM, encode(SandboxesEnded("r", 1_000_500, (), "node", Reason.DIED)), "in")
    async with running(shell_of(bus, Toy(), now_ms=lambda: now + 1000)):
        await until(lambda: len(broker.messages(INBOX)) >= 3)
        assert not out(broker)
        now += 600
        await until(lambda: out(broker))
    assert [rollout for _, rollout in out(broker)] == ["tick"]


async def test_inspections_are_performed_and_answered(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    tries: list[str] = []

    async def perform(effect: Inspect) -> Sequence[Publish]:
        tries.append(effect.template)
        if len(tries) == 1:
            raise OSError("not yet")
        return [Publish(SYSTEM, TemplateInspected(effect.template, None, "absent"))]

    bus.publish(SYSTEM, encode(ResolveTemplate(0, "t", "dir:/x")), "in")
    async with running(shell_of(bus, Toy(), perform=perform)) as shell:
        await until(lambda: shell.acknowledged == 2)
    assert tries == ["dir:/x", "dir:/x"]
    assert [rollout for _, rollout in out(memory_broker)] == ["dir:/x"]


async def test_an_inspection_without_an_answer_is_repeated_after_a_recovery(bus: MemoryBus) -> None:
    bus.publish(SYSTEM, encode(ResolveTemplate(0, "t", "dir:/lost")), "in-1")
    bus.publish(SYSTEM, encode(ResolveTemplate(0, "t", "dir:/told")), "in-2")
    bus.publish(SYSTEM, encode(TemplateInspected("dir:/told", None)), "in-3")
    await acknowledge(bus, 3)
    performed: list[str] = []

    async def perform(effect: Inspect) -> Sequence[Publish]:
        performed.append(effect.template)
        return [Publish(SYSTEM, TemplateInspected(effect.template, None))]

    async with running(shell_of(bus, Toy(), perform=perform)) as shell:
        await until(lambda: shell.acknowledged == 4)
    assert performed == ["dir:/lost"]


class Troubled(MemoryBus):
    """Refuses effects: the first few publications fail."""

    def __init__(self, broker: MemoryBroker, errors: list[BusError]) -> None:
        super().__init__(broker)
        self.errors = errors

    def publish(self, subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
        if self.errors:
            future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
            future.set_exception(self.errors.pop(0))
            return future
        return super().publish(subject, payload, id)


async def test_a_failing_effect_is_published_until_it_is_stored(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    bus.publish(REQUEST, encode(RolloutReleased("r")), "in")
    troubled = Troubled(memory_broker, [StreamFullError("full"), PublishTimeoutError("late"), StreamFullError("full")])
    async with running(shell_of(troubled, Toy())) as shell:
        await until(lambda: shell.acknowledged == 1)
    assert sorted(out(memory_broker)) == [(f"{INBOX}:1:0", "r-0"), (f"{INBOX}:1:1", "r-1")]


async def test_an_effect_too_large_is_named_in_a_dead_letter() -> None:
    broker = MemoryBroker(max_payload=2000)
    bus = broker.connect()
    await bus.ensure(streams.cluster(1))
    name = "r" * 1900  # fits on its way in, not as an effect with a longer id
    bus.publish(REQUEST, encode(RolloutReleased(name)), "i")
    broker.max_payload = 1500
    shell = shell_of(bus, Toy())
    broker_store = broker.store

    def store(subject: str, payload: bytes, id: str) -> Stored:
        broker.max_payload = 10_000 if subject.startswith("shoal.dead.") else 1500
        return broker_store(subject, payload, id)

    broker.store = store  # type: ignore[method-assign]
    async with running(shell):
        await until(lambda: shell.acknowledged == 1)
    letters = [decode(delivery.payload) for delivery in broker.messages("SHOAL_DEAD")]
    assert len(letters) == 2
    assert all(isinstance(each, DeadLetter) and "exceeds" in each.reason for each in letters)
    (cause,) = broker.messages(INBOX)
    assert [each.reader for each in letters if isinstance(each, DeadLetter)] == [
        f"toy.0:{INBOX}:1:{cause.time_ms}:0",
        f"toy.0:{INBOX}:1:{cause.time_ms}:1",
    ]


async def test_stopping_acknowledges_what_was_folded(bus: MemoryBus) -> None:
    shell = shell_of(bus, Toy())
    async with running(shell):
        await shell.ready()
        for n in range(100):
            bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")
        await until(lambda: shell.folded)
    assert await position_of(bus, "toy.0") == shell.position > 0
