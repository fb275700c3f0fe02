"""Leaders, standbys and what happens between them; and states that come back from checkpoints."""

import asyncio
import os
from collections.abc import Sequence

import msgspec
import pytest

from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.bus.protocol import Delivery, Entry, Reader, Stored, StreamAnewError
from shoal.machine.checkpoint import Checkpoint
from shoal.runtime.checkpoints import Checkpoints
from shoal.runtime.lease import NOBODY, Lease, LeaseLostError, Owner, Record, position_of
from shoal.runtime.retention import retain
from shoal.runtime.spread import Spread, run_together
from shoal.wire import streams
from shoal.wire.codec import encode
from shoal.wire.messages import RolloutReleased
from unit.toy_core import INBOX, OUT, REQUEST, Toy, acknowledge, out, running, shell_of, until


def stranger(id: str) -> Owner:
    """A process of another machine: whether it lives cannot be known."""
    return Owner(id, "elsewhere", 1, 1)


@pytest.fixture
async def bus(memory_broker: MemoryBroker) -> MemoryBus:
    bus = memory_broker.connect()
    await bus.ensure(streams.cluster(1))
    return bus


def submit(bus: MemoryBus, first: int, count: int) -> None:
    for n in range(first, first + count):
        bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")


def expected(count: int) -> list[tuple[str, str]]:
    return [(f"{INBOX}:{n + 1}:{k}", f"r{n}-{k}") for n in range(count) for k in range(2)]


class Cut(MemoryBus):
    """A connection that can be paused, as a process is by SIGSTOP: nothing gets through until it goes on."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.late: list[tuple[str, bytes, str, asyncio.Future[Stored]]] = []

    def publish(self, subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
        if self.flowing.is_set():
            return super().publish(subject, payload, id)
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self.late.append((subject, payload, id, future))
        return future

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        await self.flowing.wait()
        return await super().replace(bucket, key, value, revision)

    async def get(self, bucket: str, key: str) -> Entry | None:
        await self.flowing.wait()
        return await super().get(bucket, key)

    def go_on(self) -> None:
        """What was about to be sent is sent now."""
        self.flowing.set()
        for subject, payload, id, future in self.late:
            sent = super().publish(subject, payload, id)
            if not future.cancelled():
                future.set_result(sent.result())
        self.late.clear()


async def test_a_standby_folds_in_silence_and_takes_over_at_once_when_the_leader_leaves(
    memory_broker: MemoryBroker, bus: MemoryBus
) -> None:
    async with running(shell_of(bus, Toy(), owner=stranger("a"))) as leader:
        await leader.ready()
        standby_core = Toy()
        standby = shell_of(bus, standby_core, owner=stranger("b"))
        async with running(standby):
            submit(bus, 0, 100)
            await until(lambda: leader.acknowledged == 100)
            await until(lambda: len(standby_core.seen) == 100)
            assert not standby.leading
            assert standby.published == 0
            leaving = asyncio.create_task(_leave(leader))
            await until(lambda: standby.leading)
            submit(bus, 100, 50)
            await until(lambda: standby.acknowledged == 150)
            await leaving
    assert out(memory_broker) == expected(150)
    assert standby.published == 100


async def _leave(shell: object) -> None:
    await shell._lease.release(shell.acknowledged)  # type: ignore[attr-defined]  # as a leader does on SIGTERM


async def test_a_standby_sends_what_a_killed_leader_had_not_stored(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    cut = Cut(memory_broker)
    leader = shell_of(cut, Toy(), owner=stranger("a"))
    task = asyncio.create_task(leader.run())
    await leader.ready()
    submit(bus, 0, 30)
    await until(lambda: leader.acknowledged == 30)
    cut.flowing.clear()
    standby = shell_of(bus, Toy(), owner=stranger("b"))
    async with running(standby):
        submit(bus, 30, 30)
        await until(lambda: leader.position == 60)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: standby.acknowledged == 60)
    assert out(memory_broker) == expected(60)
    assert standby.published == 60


async def test_two_leaders_at_once_change_nothing(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    cut = Cut(memory_broker)
    paused = shell_of(cut, Toy(), owner=stranger("a"))
    async with running(paused):
        await paused.ready()
        submit(bus, 0, 20)
        await until(lambda: paused.acknowledged == 20)
        cut.flowing.clear()
        submit(bus, 20, 20)
        await until(lambda: paused.position == 40)
        async with running(shell_of(bus, Toy(), owner=stranger("b"))) as second:
            await until(lambda: second.acknowledged == 40)
            assert paused.leading  # it does not know yet
            cut.go_on()
            submit(bus, 40, 20)
            await until(lambda: not paused.leading)
            await until(lambda: second.acknowledged == 60)
            await until(lambda: paused.position == 60)
        await until(lambda: paused.leading)  # its turn again
        submit(bus, 60, 20)
        await until(lambda: paused.acknowledged == 80)
    assert out(memory_broker) == expected(80)
    record = msgspec.json.decode((await bus.get(streams.LEASE_BUCKET, "toy.0")).value, type=Record)  # type: ignore[union-attr]  # it is there
    assert (record.epoch, record.owner, record.position) == (3, NOBODY, 80)


async def test_a_process_known_to_be_dead_is_not_waited_for(bus: MemoryBus) -> None:
    here = Owner.local()
    dead = Owner("dead", here.place, here.pid, here.start - 1)
    assert dead.known_dead()
    assert not here.known_dead()
    assert not stranger("x").known_dead()
    await bus.put(streams.LEASE_BUCKET, "toy.0", msgspec.json.encode(Record(dead, 7, 0, 3)))
    async with running(shell_of(bus, Toy(), ttl_s=3600)) as shell:
        async with asyncio.timeout(10):
            await shell.ready()


async def test_a_lease_is_taken_only_after_its_time_and_never_from_one_who_renews(bus: MemoryBus) -> None:
    now = 0.0
    first = Lease(bus, "x", stranger("a"), ttl_s=2, clock=lambda: now)
    second = Lease(bus, "x", stranger("b"), ttl_s=2, clock=lambda: now)
    assert await first.look()
    assert await second.look()
    assert await first.take()
    assert not await second.take()  # both saw it free, one got it
    for _ in range(5):
        now += 1.5
        await first.renew(int(now))
        assert not await second.look()
    now += 2
    assert await second.look()
    assert await second.take()
    assert second.record.epoch == 2
    assert second.record.position == first.record.position
    with pytest.raises(LeaseLostError):
        await first.renew(99)
    assert await position_of(bus, "x") == 7
    await second.release(9)
    assert await first.look()


async def test_partitions_are_shared_and_taken_over(memory_broker: MemoryBroker) -> None:
    bus = memory_broker.connect()
    await bus.ensure(streams.cluster(6))

    def process(id: str) -> tuple[Spread, list[object], asyncio.Event, asyncio.Task[None]]:
        owner = stranger(id)
        spread = Spread(bus, "toys", owner, 6, ttl_s=0.2)
        shells = [
            shell_of(
                bus, Toy(), name=f"toy.{cell}", stream=streams.rollout(cell).name, owner=owner, turns=spread, ttl_s=0.2
            )
            for cell in range(6)
        ]
        stop = asyncio.Event()
        return spread, list(shells), stop, asyncio.create_task(run_together(shells, spread, stop))

    def led(shells: list[object]) -> int:
        return sum(shell.leading for shell in shells)  # type: ignore[attr-defined]  # shells

    _, one, stop_one, running_one = process("one")
    await until(lambda: led(one) == 6)
    _, two, _, running_two = process("two")
    await until(lambda: led(one) == 3 and led(two) == 3)  # nobody died: half is handed on
    _, three, stop_three, running_three = process("three")
    await until(lambda: led(one) == led(two) == led(three) == 2)
    running_two.cancel()  # killed: nothing is released
    await asyncio.gather(running_two, return_exceptions=True)
    await until(lambda: led(one) == 3 and led(three) == 3)
    stop_one.set()
    await running_one
    await until(lambda: led(three) == 6)
    stop_three.set()
    await running_three
    assert await bus.keys(streams.LEASE_BUCKET, "member.toys") == []


async def checkpointed(bus: MemoryBus, count: int) -> Toy:
    """A core that folded `count` messages, with its checkpoint stored."""
    core = Toy()
    shell = shell_of(bus, core, checkpoint_every=1)
    async with running(shell):
        submit(bus, 0, count)
        checkpoints = Checkpoints(bus, "toy.0")
        async with asyncio.timeout(10):
            while not (kept := (await checkpoints.manifest())[0].generations) or kept[0].sequence < count:
                await asyncio.sleep(0.01)
    return core


async def test_a_restart_loads_the_checkpoint_and_folds_the_tail(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    before = await checkpointed(bus, 500)
    submit(bus, 500, 20)
    core = Toy()
    shell = shell_of(bus, core)
    async with running(shell):
        await until(lambda: shell.acknowledged == 520)
    assert shell.replayed + shell.folded == 20
    assert core.seen[:500] == before.seen
    assert len(core.seen) == 520
    assert out(memory_broker) == expected(520)


@pytest.mark.parametrize("harm", ["flipped", "missing", "older version", "other core", "manifest", "unloadable"])
async def test_a_checkpoint_that_cannot_be_used_is_never_misread(bus: MemoryBus, harm: str) -> None:
    await checkpointed(bus, 50)
    bucket = streams.CHECKPOINT_BUCKET
    piece = (await bus.keys(bucket, "toy.0"))[0]
    stored = await bus.get(bucket, piece)
    assert stored is not None

    class Newer(Toy):
        state_version = Toy.state_version + (harm == "older version")

        def load(self, state: bytes) -> None:
            if harm == "unloadable":
                raise ValueError("not mine")
            super().load(state)

    if harm == "flipped":
        middle = len(stored.value) // 2
        bad = stored.value[:middle] + bytes([stored.value[middle] ^ 1]) + stored.value[middle + 1 :]
        await bus.put(bucket, piece, bad)
    elif harm == "missing":
        await bus.delete(bucket, piece)
    elif harm == "manifest":
        await bus.put(bucket, "toy.0", b"potatoes")
    elif harm == "other core":
        await bus.put(streams.LEASE_BUCKET, "toy.1", msgspec.json.encode(Record(position=50)))
        for key in [key for key in await bus.keys(bucket) if key.startswith("toy.0")]:
            entry = await bus.get(bucket, key)
            assert entry is not None
            await bus.put(bucket, key.replace("toy.0", "toy.1", 1), entry.value)
    core = Newer()
    options = {"name": "toy.1"} if harm == "other core" else {}
    shell = shell_of(bus, core, **options)
    async with running(shell):
        await shell.ready()
    assert shell.replayed == 50  # from the beginning
    assert core.seen == [f"r{n}" for n in range(50)]


async def test_two_generations_are_kept_and_an_older_one_never_replaces_a_newer(bus: MemoryBus) -> None:
    checkpoints = Checkpoints(bus, "toy.0")

    def at(sequence: int) -> Checkpoint:
        return Checkpoint("toy.0", 1, INBOX, sequence, 1000 * sequence, os.urandom(1_500_000))

    for sequence in (10, 20, 30):
        assert await checkpoints.save(at(sequence), 1)
    assert not await checkpoints.save(at(25), 1)
    found = await checkpoints.load(core="toy.0", version=1, stream=INBOX)
    assert [each.sequence for each in found] == [30, 20]
    pieces = await bus.keys(streams.CHECKPOINT_BUCKET, "toy.0")
    assert {key.split(".")[2] for key in pieces} == {"1-20", "1-30"}


class Slow(MemoryBus):
    """A connection whose process is slow, or about to end, after it has replaced a manifest; and while it writes."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.saved, self.written = asyncio.Event(), asyncio.Event()
        self.sweep, self.name = asyncio.Event(), asyncio.Event()

    async def keys(self, bucket: str, prefix: str = "") -> Sequence[str]:
        self.saved.set()
        await self.sweep.wait()
        return await super().keys(bucket, prefix)

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        self.written.set()
        await self.name.wait()
        return await super().replace(bucket, key, value, revision)


async def test_who_saves_while_leaving_takes_nothing_from_a_successor_who_saves_too(
    memory_broker: MemoryBroker, bus: MemoryBus
) -> None:
    def at(sequence: int) -> Checkpoint:
        return Checkpoint("toy.0", 1, INBOX, sequence, 0, b"%d" % sequence)

    async def found() -> list[int]:
        loaded = await Checkpoints(bus, "toy.0").load(core="toy.0", version=1, stream=INBOX)
        return [each.sequence for each in loaded]

    for sequence in (10, 20):
        assert await Checkpoints(bus, "toy.0").save(at(sequence), 1)
    leaving, coming = Slow(memory_broker), Slow(memory_broker)
    leaving.name.set()
    coming.sweep.set()
    last = asyncio.create_task(Checkpoints(leaving, "toy.0").save(at(30), 1))
    await leaving.saved.wait()
    first = asyncio.create_task(Checkpoints(coming, "toy.0").save(at(40), 2))
    await coming.written.wait()  # its pieces are there, and named by no manifest yet
    leaving.sweep.set()
    assert await last
    coming.name.set()
    assert await first
    assert await found() == [40, 30]
    leaving.sweep.clear()
    leaving.saved.clear()
    last = asyncio.create_task(Checkpoints(leaving, "toy.0").save(at(50), 3))
    await leaving.saved.wait()
    for sequence in (60, 70):
        assert await Checkpoints(coming, "toy.0").save(at(sequence), 4)
    leaving.sweep.set()
    assert await last
    assert await found() == [70, 60]
    assert not await Checkpoints(bus, "toy.0").save(at(65), 5)  # nor does an older state take a newer one's place
    pieces = await bus.keys(streams.CHECKPOINT_BUCKET, "toy.0")
    assert {key.split(".")[2] for key in pieces} == {"4-60", "4-70"}


async def test_a_log_that_seems_short_for_a_moment_loses_no_checkpoint(
    memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, bus: MemoryBus
) -> None:
    submit(bus, 0, 10)
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 10)
    await bus.purge(INBOX, 8)  # its state is in the checkpoint alone
    mine = memory_broker.connect()
    looks: list[int] = []

    async def behind(stream: str, subject: str = "") -> int:
        looks.append(1)
        return 4 if len(looks) < 6 else await bus.last_sequence(stream, subject)

    monkeypatch.setattr(mine, "last_sequence", behind)
    core = Toy()
    async with running(shell_of(mine, core)) as shell:
        await shell.ready()
    assert core.seen == [f"r{n}" for n in range(10)]
    assert [each.sequence for each in (await Checkpoints(bus, "toy.0").manifest())[0].generations] == [10]


async def test_a_checkpoint_of_an_end_that_the_log_has_lost_is_not_loaded_when_the_log_is_long_again(
    bus: MemoryBus,
) -> None:
    submit(bus, 0, 10)
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 10)
    checkpoints, lost = Checkpoints(bus, "toy.0"), Toy()
    lost.seen = ["lost"]
    assert await checkpoints.save(Checkpoint("toy.0", 1, INBOX, 15, 1, lost.dump()), 1)
    async with running(shell_of(bus, Toy())) as shell:
        await shell.ready()
    assert [each.sequence for each in (await checkpoints.manifest())[0].generations] == [10]
    submit(bus, 10, 10)
    core = Toy()
    async with running(shell_of(bus, core)) as shell:
        await until(lambda: shell.acknowledged == 20)
    assert core.seen == [f"r{n}" for n in range(20)]


async def test_nothing_is_removed_that_is_young_or_not_covered_twice() -> None:
    now = 1_000_000_000
    broker = MemoryBroker(lambda: now)
    bus = broker.connect()
    await bus.ensure(streams.cluster(1))
    checkpoints = Checkpoints(bus, "toy.0")

    async def covers(*sequences: int) -> None:
        for sequence in sequences:
            assert await checkpoints.save(Checkpoint("toy.0", 1, INBOX, sequence, now, b""), 1)

    for n in range(100):
        now += 1000
        await bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")
    assert await retain(bus, INBOX, checkpoints, now, kept_s=10) == 0
    await covers(80)
    assert await retain(bus, INBOX, checkpoints, now, kept_s=10) == 0  # one checkpoint may turn out unusable
    await covers(95)
    assert await retain(bus, INBOX, checkpoints, now, kept_s=3600) == 0
    assert await retain(bus, INBOX, checkpoints, now, kept_s=50) == 49
    assert await retain(bus, INBOX, checkpoints, now, kept_s=10) == 80
    assert await bus.first_sequence(INBOX) == 81
    assert len(broker.messages(OUT)) == 0


async def test_a_log_made_anew_is_folded_from_its_beginning(memory_broker: MemoryBroker, bus: MemoryBus) -> None:
    await acknowledge(bus, 5000)
    submit(bus, 0, 10)
    async with running(shell_of(bus, Toy())) as shell:
        await shell.ready()
        submit(bus, 10, 10)
        await until(lambda: shell.position == 20)
        await until(lambda: shell.acknowledged == 20)
    assert out(memory_broker) == expected(20)  # what was there may have been done with, or its effects lost as well
    assert await position_of(bus, "toy.0") == 20


async def test_a_log_that_is_shorter_has_what_follows_from_its_end_stored_again(
    memory_broker: MemoryBroker, bus: MemoryBus
) -> None:
    submit(bus, 0, 10)
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 10)  # and, when it ends, a checkpoint
    submit(bus, 10, 5)
    await acknowledge(bus, 20)
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 15)
    assert out(memory_broker) == expected(15)


async def test_what_follows_from_sequences_that_are_used_again_is_no_copy_of_what_a_lost_end_led_to() -> None:
    now = 1_000_000
    broker = MemoryBroker(lambda: now)
    bus = broker.connect()
    await bus.ensure(streams.cluster(1))
    submit(bus, 0, 10)
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 10)
    inbox = broker.log(INBOX)
    for _ in range(4):
        inbox.ids.pop(inbox.messages.pop().id)  # and what followed from them is stored elsewhere
    now += 5_000  # all of it within the window in which a broker drops copies
    async with running(shell_of(bus, Toy())) as shell:
        await shell.ready()
        submit(bus, 10, 4)
        await until(lambda: shell.acknowledged == 10)
    names = [rollout for _, rollout in out(broker)]
    assert names == [f"r{n}-{k}" for n in (*range(10), *range(10, 14)) for k in range(2)]
    again = [id for id, _ in out(broker)]
    assert again[12:20] == again[20:]  # the same sequences, at another time


@pytest.mark.parametrize("saved", [True, False])
async def test_a_log_that_lost_its_end_and_is_longer_again_is_seen_by_who_starts(saved: bool) -> None:
    now = 1_000_000
    broker = MemoryBroker(lambda: now)
    bus = broker.connect()
    await bus.ensure(streams.cluster(1))
    submit(bus, 0, 5)
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 5)
    submit(bus, 5, 5)
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 10)
        if not saved:  # it is killed before it has saved anything: only its position is there
            shell._checkpointed = 10
    inbox = broker.log(INBOX)
    for _ in range(4):
        inbox.ids.pop(inbox.messages.pop().id)
    now += 5_000
    submit(bus, 10, 6)  # before a service is there to see that the log is short
    core = Toy()
    async with running(shell_of(bus, core)) as shell:
        await until(lambda: shell.acknowledged == 12)
    assert core.seen == [f"r{n}" for n in (*range(6), *range(10, 16))]
    assert {rollout for _, rollout in out(broker)} == {f"r{n}-{k}" for n in range(16) for k in range(2)}
    generations = (await Checkpoints(bus, "toy.0").manifest())[0].generations
    assert [each.sequence for each in generations] == [12, 5]
    kept = [each.sequence for each in broker.messages(INBOX)]
    assert kept == list(range(1, 13))


class Shortened:
    """A reader that is told after a while that its log has lost its end."""

    def __init__(self, reader: Reader, seen: asyncio.Event) -> None:
        self.reader, self.seen = reader, seen

    async def batch(self, limit: int = 1024) -> Sequence[Delivery]:
        waiting = asyncio.ensure_future(self.reader.batch(limit))
        told = asyncio.ensure_future(self.seen.wait())
        try:
            await asyncio.wait({waiting, told}, return_when=asyncio.FIRST_COMPLETED)
            if self.seen.is_set():
                raise StreamAnewError("it has lost its end", 4)
            return waiting.result()
        finally:
            waiting.cancel()
            told.cancel()

    async def close(self) -> None:
        await self.reader.close()


async def test_a_leader_whose_log_lost_its_end_has_its_successor_store_all_again(
    memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, bus: MemoryBus
) -> None:
    seen = asyncio.Event()
    mine = memory_broker.connect()
    real = mine.reader

    async def reader(*given: object, **named: object) -> Reader:
        return Shortened(await real(*given, **named), seen)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(mine, "reader", reader)
    submit(bus, 0, 10)
    shell = shell_of(mine, Toy())
    serving = asyncio.create_task(shell.run())
    await until(lambda: shell.acknowledged == 10)
    memory_broker.log(OUT).messages.clear()  # lost as well; and the log is as long again when it is looked at
    memory_broker.log(OUT).ids.clear()
    seen.set()
    with pytest.raises(StreamAnewError):
        await asyncio.wait_for(serving, 10)
    async with running(shell_of(bus, Toy())) as shell:
        await until(lambda: shell.acknowledged == 10)
    assert out(memory_broker) == expected(10)
