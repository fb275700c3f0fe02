"""A message that its core fails on stops no partition for good, and is left out by all who fold its log."""

import asyncio
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from typing import Any

import msgspec
import pytest

from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.bus.protocol import Entry
from shoal.machine import passing
from shoal.machine.core import Cause, Effect, Publish, Task
from shoal.machine.passing import Failure, Record, decoded
from shoal.runtime.lease import Lease, Owner, Record as LeaseRecord
from shoal.runtime.shell import Shell
from shoal.runtime.wall import PassedOverError, Wall
from shoal.wire import streams
from shoal.wire.codec import decode, encode
from shoal.wire.messages import AnyMessage, DeadLetter, RolloutReleased
from unit.toy_core import INBOX, REQUEST, Toy, acknowledge, out, running, shell_of, until

KEY = streams.passed_key("toy.0")
SECRET = "what only its tenant may read"


class PlantedError(Exception):
    """The core fails."""


class Fragile(Toy):
    """Fails on some rollouts, having half changed its state."""

    def __init__(self, *bad: str, error: type[Exception] = PlantedError) -> None:
        super().__init__()
        self.bad = bad
        self.error = error

    def handle(self, message: AnyMessage, cause: Cause) -> Sequence[Effect]:
        if isinstance(message, RolloutReleased) and message.rollout in self.bad:
            self.seen = ["half", "a", "state"]
            self.asked = {"half a wish": None}
            raise self.error(SECRET)
        return super().handle(message, cause)


@pytest.fixture
async def bus(memory_broker: MemoryBroker) -> MemoryBus:
    bus = memory_broker.connect()
    await bus.ensure(streams.cluster(1))
    return bus


async def submit(bus: MemoryBus, first: int, count: int) -> None:
    for n in range(first, first + count):
        await bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")


async def fail(shell: Shell, error: type[Exception] = PlantedError) -> None:
    """Have a shell serve until it fails."""
    async with asyncio.timeout(10):
        with pytest.raises(error):
            await shell.run()


async def record(bus: MemoryBus) -> Record:
    entry = await bus.get(streams.CLUSTER_BUCKET, KEY)
    return decoded(entry.value if entry else None, "toy.0")


async def passed(bus: MemoryBus) -> list[int]:
    return [each.sequence for each in (await record(bus)).passed]


def effects(*numbers: int) -> list[tuple[str, str]]:
    """What follows from these releases: that with the number n is the message n + 1."""
    return [(f"{INBOX}:{n + 1}:{k}", f"r{n}-{k}") for n in numbers for k in range(2)]


def letters(broker: MemoryBroker) -> list[DeadLetter]:
    found = [decode(each.payload) for each in broker.messages("SHOAL_DEAD")]
    assert all(isinstance(each, DeadLetter) for each in found)
    return found  # type: ignore[return-value]  # looked at the line above


async def test_a_core_that_fails_twice_on_a_message_goes_on_without_it(
    memory_broker: MemoryBroker, bus: MemoryBus
) -> None:
    await submit(bus, 0, 5)
    await fail(shell_of(bus, Fragile("r2")))
    noted = (await record(bus)).noted
    assert noted is not None
    assert (noted.sequence, await passed(bus)) == (3, [])
    assert "PlantedError at " in noted.why
    assert "unit/test_wall.py:" in noted.why
    await fail(shell_of(bus, Fragile("r2")))
    assert await passed(bus) == [3]
    core = Fragile("r2")
    async with running(shell_of(bus, core)) as shell:
        await until(lambda: shell.acknowledged == 5)
        await submit(bus, 5, 2)
        await until(lambda: shell.acknowledged == 7)
    assert core.seen == ["r0", "r1", "r3", "r4", "r5", "r6"]
    assert out(memory_broker) == effects(0, 1, 3, 4, 5, 6)
    (letter,) = letters(memory_broker)
    assert (letter.stream, letter.sequence, letter.reader) == (INBOX, 3, "toy.0")
    assert letter.payload == encode(RolloutReleased("r2"))
    assert letter.reason.startswith("passed over: the core failed on it")
    stored = await bus.get(streams.CLUSTER_BUCKET, KEY)
    assert stored is not None
    assert SECRET.encode() not in stored.value  # tenants may read that bucket


async def test_a_core_that_failed_leads_nothing(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    performed: list[Task] = []

    async def perform(task: Task) -> Sequence[Publish]:
        performed.append(task)
        return ()

    await submit(bus, 0, 3)
    await fail(shell_of(bus, Fragile("r2"), perform=perform))
    assert performed == []
    assert out(memory_broker) == []


async def test_a_version_that_could_fold_it_leaves_it_out_too(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    await submit(bus, 0, 3)
    for _ in range(2):
        await fail(shell_of(bus, Fragile("r1")))

    class Mended(Toy):
        state_version = Toy.state_version + 1

    async with running(shell_of(bus, Fragile("r1"))) as shell:
        await until(lambda: shell.acknowledged == 3)
    for key in await bus.keys(streams.CHECKPOINT_BUCKET):
        await bus.delete(streams.CHECKPOINT_BUCKET, key)
    core = Mended()
    async with running(shell_of(bus, core)) as shell:
        await shell.ready()
        assert shell.replayed == 3
    assert core.seen == ["r0", "r2"]
    assert out(memory_broker) == effects(0, 2)


async def test_leader_and_standbys_come_to_the_same_state(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    cores: dict[int, Fragile] = {}
    shells: dict[int, Shell] = {}
    fell: list[int] = []

    async def live(number: int) -> None:
        """A process, and its supervisor."""
        while True:
            cores[number] = Fragile("r3")
            shells[number] = shell_of(memory_broker.connect(), cores[number], owner=Owner(f"{number}-{len(fell)}"))
            try:
                await shells[number].run()
            except PlantedError:
                fell.append(number)

    lives = [asyncio.create_task(live(number)) for number in range(3)]
    await until(lambda: any(shell.leading for shell in shells.values()))
    await submit(bus, 0, 8)
    await until(lambda: len(out(memory_broker)) == 14)
    await until(lambda: all(shell.position == 8 for shell in shells.values()))
    for life in lives:
        life.cancel()
    await asyncio.gather(*lives, return_exceptions=True)
    assert len({core.dump() for core in cores.values()}) == 1
    assert cores[0].seen == [f"r{n}" for n in range(8) if n != 3]
    assert sorted(out(memory_broker)) == sorted(effects(0, 1, 2, 4, 5, 6, 7))
    assert await passed(bus) == [4]
    assert len(fell) <= 9  # each falls at most three times: at first, then until it is passed over


async def test_a_standby_that_fails_beside_its_leader_has_not_been_built_anew(
    memory_broker: MemoryBroker, bus: MemoryBus
) -> None:
    first = shell_of(bus, Fragile("r1"), owner=Owner("first"))
    leading = asyncio.create_task(fail(first))
    await first.ready()
    second = shell_of(memory_broker.connect(), Fragile("r1"), owner=Owner("second"))
    standing = asyncio.create_task(fail(second))
    await second.caught_up()
    await submit(bus, 0, 3)
    await asyncio.gather(leading, standing)
    noted = (await record(bus)).noted
    assert noted is not None
    assert (noted.sequence, await passed(bus)) == (2, [])


async def test_a_version_that_fails_on_everything_eats_no_log(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    await submit(bus, 0, 20)
    for _ in range(12):
        await fail(shell_of(bus, Fragile(*(f"r{n}" for n in range(20)))))
    assert await passed(bus) == [1, 2, 3]
    assert out(memory_broker) == []
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 20)
    assert out(memory_broker) == effects(*range(3, 20))
    assert [each.sequence for each in letters(memory_broker)] == [1, 2, 3]


def failures(count: int, at_ms: int = 0, version: str = "v") -> tuple[Failure, ...]:
    return tuple(Failure(n, "d", "", version, at_ms) for n in range(1, count + 1))


def test_how_many_are_passed_over_is_bounded_by_the_hour_and_by_the_version() -> None:
    lately = Record(passed=failures(passing.MOST_AN_HOUR, 1000))
    assert "within an hour" in passing.unheeded(lately, "another", 2000)
    assert passing.unheeded(lately, "v", 1000 + 3_600_000) == ""
    assert passing.unheeded(Record(passed=lately.passed[1:]), "v", 2000) == ""
    many = Record(passed=failures(passing.MOST))
    assert "this version has passed over 10" in passing.unheeded(many, "v", 10**12)
    assert passing.unheeded(many, "another", 10**12) == ""


async def test_what_went_well_the_second_time_is_not_passed_over(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    await submit(bus, 0, 3)
    await fail(shell_of(bus, Fragile("r1")))
    assert (await record(bus)).noted is not None
    async with running(shell_of(bus, Fragile())) as shell:
        await until(lambda: shell.acknowledged == 3)
    assert await record(bus) == Record(epoch=(await lease(bus)).epoch)
    assert out(memory_broker) == effects(0, 1, 2)
    assert letters(memory_broker) == []


async def lease(bus: MemoryBus) -> LeaseRecord:
    entry = await bus.get(streams.LEASE_BUCKET, "toy.0")
    assert entry is not None
    return msgspec.json.decode(entry.value, type=LeaseRecord)


async def test_a_first_failure_since_another_message_failed_is_a_first_one(bus: MemoryBus) -> None:
    await submit(bus, 0, 3)
    for bad in ("r1", "r2", "r1"):
        await fail(shell_of(bus, Fragile(bad)))
    assert await passed(bus) == []
    await fail(shell_of(bus, Fragile("r1")))
    assert await passed(bus) == [2]


async def test_what_one_version_failed_on_another_may_try(bus: MemoryBus) -> None:
    class Newer(Fragile):
        state_version = Toy.state_version + 1

    await submit(bus, 0, 2)
    await fail(shell_of(bus, Fragile("r1")))
    await fail(shell_of(bus, Newer("r1")))
    assert await passed(bus) == []
    await fail(shell_of(bus, Newer("r1")))
    assert await passed(bus) == [2]


async def test_a_process_without_memory_blames_no_message(bus: MemoryBus) -> None:
    await submit(bus, 0, 2)
    for _ in range(3):
        await fail(shell_of(bus, Fragile("r1", error=MemoryError)), MemoryError)
    assert await record(bus) == Record()


async def test_what_somebody_was_done_with_is_not_passed_over(bus: MemoryBus) -> None:
    """What was said since then was said by those who folded it."""
    await submit(bus, 0, 3)
    await acknowledge(bus, 3)
    for _ in range(3):
        await fail(shell_of(bus, Fragile("r1")))
    assert await record(bus) == Record()


async def test_another_message_with_its_sequence_is_folded(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    """A log that has lost its end uses sequences again."""
    await submit(bus, 0, 2)
    found = Failure(2, passing.digest_of(REQUEST, b"of before", 1, "in-1"), "", "", 0)
    await bus.put(streams.CLUSTER_BUCKET, KEY, passing.encoded(Record(passed=(found,))))
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 2)
    assert out(memory_broker) == effects(0, 1)


@pytest.mark.parametrize("change", [("subject", "s"), ("payload", b"q"), ("time_ms", 8), ("id", "other")])
def test_a_message_is_known_by_all_it_is_made_of(change: tuple[str, Any]) -> None:
    message: dict[str, Any] = {"subject": "subject", "payload": b"p", "time_ms": 7, "id": "id"}
    name, other = change
    assert passing.digest_of(**message) == passing.digest_of(**message)
    assert passing.digest_of(**message) != passing.digest_of(**message | {name: other})


async def mark(broker: MemoryBroker, bus: MemoryBus, sequence: int, record: Record | None = None) -> None:
    each = broker.messages(INBOX)[sequence - 1]
    digest = passing.digest_of(each.subject, each.payload, each.time_ms, each.id)
    marked = passing.passing(record or Record(), Failure(sequence, digest, "", "another version", 0))
    await bus.put(streams.CLUSTER_BUCKET, KEY, passing.encoded(marked))


async def test_a_standby_that_folded_what_was_passed_over_meanwhile_begins_anew(
    memory_broker: MemoryBroker, bus: MemoryBus
) -> None:
    leader = shell_of(bus, Toy(), owner=Owner("leader"))
    stop = asyncio.Event()
    leading = asyncio.create_task(leader.run(stop))
    await leader.ready()
    standby = shell_of(memory_broker.connect(), Toy(), owner=Owner("standby"))
    standing = asyncio.create_task(standby.run())
    await standby.caught_up()
    stop.set()
    leading.cancel()  # as if it had failed on what comes now
    await asyncio.gather(leading, return_exceptions=True)
    await submit(bus, 0, 2)
    await mark(memory_broker, bus, 2)
    async with asyncio.timeout(10):
        with pytest.raises(PassedOverError, match=r"message 2 of the log of toy\.0 is passed over and was folded here"):
            await standing
    assert out(memory_broker) == []
    core = Toy()
    async with running(shell_of(bus, core)) as shell:
        await until(lambda: shell.acknowledged == 2)
    assert core.seen == ["r0"]
    assert out(memory_broker) == effects(0)


class Paused(MemoryBus):
    """A connection of a process that is paused before it writes down what is passed over."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.reached = asyncio.Event()
        self.flowing = asyncio.Event()

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        if bucket == streams.CLUSTER_BUCKET:
            self.reached.set()
            await self.flowing.wait()
        return await super().replace(bucket, key, value, revision)


async def test_who_was_paused_while_another_went_on_with_a_message_does_not_have_it_passed_over(
    memory_broker: MemoryBroker, bus: MemoryBus
) -> None:
    await submit(bus, 0, 3)
    await fail(shell_of(bus, Fragile("r1")))
    late = Paused(memory_broker)
    failing = asyncio.create_task(fail(shell_of(late, Fragile("r1"), owner=Owner("late"))))
    await late.reached.wait()
    core = Toy()
    async with running(shell_of(bus, core, owner=Owner("other"))) as shell:
        await until(lambda: shell.acknowledged == 3)
        late.flowing.set()
        await failing
        assert await passed(bus) == []
    assert core.seen == ["r0", "r1", "r2"]
    assert out(memory_broker) == effects(0, 1, 2)


class Slow(MemoryBus):
    """A connection of a process that is paused before it reads what was noted, once `slow`."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.slow = False
        self.reached = asyncio.Event()
        self.flowing = asyncio.Event()

    async def get(self, bucket: str, key: str) -> Entry | None:
        if self.slow and bucket == streams.CLUSTER_BUCKET:
            self.reached.set()
            await self.flowing.wait()
        return await super().get(bucket, key)


async def test_who_lost_the_lease_before_it_looked_at_what_was_noted_passes_over_nothing(
    memory_broker: MemoryBroker, bus: MemoryBus
) -> None:
    """The other one leads before it comes to the message, so that the note stays; then it comes past it."""
    await submit(bus, 0, 3)
    await fail(shell_of(bus, Fragile("r1")))
    late = Slow(memory_broker)
    mine, other = (Lease(each, "toy.0", Owner(name), ttl_s=0.2) for each, name in ((late, "late"), (bus, "other")))
    wall = Wall(late, "toy.0", mine, Toy.state_version)
    await wall.begin()
    wall.failed(memory_broker.messages(INBOX)[1], PlantedError())
    late.slow = True
    judging = asyncio.create_task(wall.judge())
    await late.reached.wait()
    async with asyncio.timeout(10):
        while not (await other.look() and await other.take()):
            await asyncio.sleep(0.01)
    await Wall(bus, "toy.0", other, Toy.state_version).claim(lambda: 1)
    await other.renew(3)
    late.flowing.set()
    await judging
    assert (await record(bus)).noted is not None
    assert await passed(bus) == []


async def test_nobody_folds_where_it_cannot_be_read_what_is_passed_over(bus: MemoryBus) -> None:
    await submit(bus, 0, 2)
    await bus.put(streams.CLUSTER_BUCKET, KEY, b"potatoes")
    with pytest.raises(ValueError, match=r"what is passed over of the log of toy\.0 cannot be read"):
        await shell_of(bus, Toy()).run()


async def test_a_wait_for_the_lease_has_an_end(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    """Somebody leads and comes to no message: who fails beside it waits for a while, and passes over nothing."""
    await submit(bus, 0, 2)
    core = Fragile("r1")
    await fail(shell_of(bus, core, ttl_s=0.05))
    noted = (await record(bus)).noted

    async def beat() -> None:
        while True:
            await bus.put(streams.LEASE_BUCKET, "toy.0", msgspec.json.encode(LeaseRecord(Owner("slow"), 7, 0)))
            await asyncio.sleep(0.01)

    beating = asyncio.create_task(beat())
    await fail(shell_of(bus, Fragile("r1"), ttl_s=0.05))
    beating.cancel()
    assert ((await record(bus)).noted, await passed(bus)) == (noted, [])


async def test_a_failure_that_cannot_be_noted_is_still_what_the_process_ends_for(
    bus: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    await submit(bus, 0, 2)
    monkeypatch.setattr("shoal.runtime.wall.version", unknown)
    await fail(shell_of(bus, Fragile("r1")))
    assert await record(bus) == Record()


async def test_what_has_not_failed_is_not_judged(bus: MemoryBus) -> None:
    shell = shell_of(bus, Toy())
    await Wall(bus, "toy.0", shell._lease, 1).judge()
    assert await record(bus) == Record()
