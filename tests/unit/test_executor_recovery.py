"""An executor that is killed and started again goes on with what it had: nothing twice, nothing forgotten."""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.bus.protocol import Stored
from shoal.machine import ranges
from shoal.runtime.cluster import ensure_cluster
from shoal.wire import streams, subjects
from shoal.wire.codec import decode, encode
from shoal.wire.messages import (
    AnyMessage,
    Command,
    CommandFinished,
    CommandOutput,
    CommandRefused,
    CommandResult,
    DestroySandboxes,
    EndReason,
    ExecutorJoined,
    ExecutorLeft,
    ExecutorReplaced,
    NodeSpec,
    Resources,
    RunCommand,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesReady,
    SlotsReleased,
    Snapshot,
    StartSandboxes,
)
from shoal.wire.subjects import token
from shoal_executor.__main__ import machine_name
from shoal_executor.core import ExecutorCore
from shoal_executor.drivers.each import side_by_side
from shoal_executor.drivers.protocol import DriverError, DriverReport, ExitSink, OutputSink, Ran
from shoal_executor.drivers.simulated import SimulatedDriver
from shoal_executor.service import ExecutorService, Offer
from shoal_executor.service.journal import VERSION, Began, Journal, JournalError, Stored as StoredTo, Took, Up
from shoal_executor.service.leaving import ReplacedError

HEAD = ("acme", "run", 0, "r1")


class Node:
    """What outlives an executor: its sandboxes, what ran in them, and how often."""

    def __init__(self) -> None:
        self.live: dict[str, dict[str, asyncio.Future[CommandResult]]] = {}
        self.started: Counter[str] = Counter()
        self.ran: Counter[tuple[str, str]] = Counter()
        self.gate = asyncio.Event()  # commands end when it is set
        self.gate.set()
        self.starts = asyncio.Event()
        self.starts.set()

    async def carry_out(self, name: str, id: str) -> CommandResult:
        self.ran[name, id] += 1
        await self.gate.wait()
        return CommandResult(0, f"{name} {id}".encode())


class Lasting(SimulatedDriver):
    """A driver whose sandboxes are the node's, not the process's."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node
        self.killed = False
        self.exit: ExitSink | None = None

    async def open(self, on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
        self.exit = on_exit
        for name in keep:
            if name not in self.node.live:
                on_exit(name, EndReason.OUT_OF_MEMORY, "while nobody looked")
        for name in set(self.node.live) - set(keep):
            del self.node.live[name]
        return DriverReport()

    async def start(self, names, spec):  # type: ignore[no-untyped-def]  # as the protocol's
        for name in names:
            async for outcome in super().start((name,), spec):
                await self.node.starts.wait()
                self.node.started[name] += 1
                self.node.live[name] = {}
                yield outcome

    async def run(
        self, name: str, command: Command, output: OutputSink | None = None, *, id: str = ""
    ) -> CommandResult:
        known = self.node.live[name]
        if id not in known:
            known[id] = asyncio.ensure_future(self.node.carry_out(name, id))
        if output is not None:  # whoever waits hears what is written from then on
            for piece in (b"a", b"b"):
                output(1, piece)
        return await asyncio.shield(known[id])

    def run_each(
        self, names: Sequence[str], commands: Sequence[Command], *, id: str = ""
    ) -> AsyncIterator[Sequence[Ran]]:
        return side_by_side(partial(self.run, id=id), names, commands)

    async def destroy(self, names):  # type: ignore[no-untyped-def]  # as the protocol's
        for name in names:
            self.node.live.pop(name, None)

    async def list(self) -> list[str]:
        return list(self.node.live)

    async def close(self) -> None:
        if not self.killed:
            self.node.live.clear()


class Mortal(MemoryBus):
    """A connection that dies with its process: what it says after that, nobody hears."""

    dead = False
    deaf_after: int | None = None

    def publish(self, subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
        if self.deaf_after is not None and subject.startswith(("shoal.rollout", "shoal.placement.0.release")):
            self.deaf_after -= 1
        if self.dead or (self.deaf_after is not None and self.deaf_after < 0):
            return asyncio.get_running_loop().create_future()
        return super().publish(subject, payload, id)


class Life:
    """One process of the executor."""

    def __init__(self, broker: MemoryBroker, node: Node, state: Path, boot: str) -> None:
        self.bus = Mortal(broker)
        self.driver = Lasting(node)
        offer = Offer("e1", 0, (NodeSpec("n1", 64, 2**40),))
        self.service = ExecutorService(self.bus, self.driver, offer, boot, Journal(state))
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.service.run(self.stop))

    async def kill(self) -> None:
        self.bus.dead = self.driver.killed = True
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def leave(self) -> None:
        self.stop.set()
        await self.task


class World:
    def __init__(self, state: Path) -> None:
        self.broker = MemoryBroker()
        self.bus = self.broker.connect()
        self.node = Node()
        self.state = state
        self.sent = 0

    async def live(self, boot: str) -> Life:
        before = len(self.said(ExecutorJoined))
        life = Life(self.broker, self.node, self.state, boot)
        await until(lambda: len(self.said(ExecutorJoined)) > before)
        return life

    async def send(self, subject: str, message: AnyMessage) -> None:
        self.sent += 1
        await self.bus.publish(subject, encode(message), f"test:{self.sent}")

    async def order(self, n: int, *, commands: tuple[Command, ...] = (), boot: str = "b1", rollout: str = "r1") -> None:
        deadline_ms = int((time.time() + 600) * 1000)
        order = StartSandboxes(
            boot, "n1", rollout, "acme", "run", 0, 0, ((0, n),), Snapshot("host", "host"), Resources(), commands, (),
            (), "", deadline_ms,
        )  # fmt: skip
        await self.send(subjects.executor_control("e1"), order)

    async def ask(self, id: str, index: int, *, stream: bool = False) -> None:
        asked = RunCommand(id, *HEAD, index, 0, Command(line="work"), stream)
        await self.send(subjects.executor_command("e1", "acme"), asked)

    def said(self, *kinds: type) -> list[AnyMessage]:
        found = []
        for stream in ("SHOAL_PLACEMENT_0", "SHOAL_ROLLOUT_0", "SHOAL_TRAJECTORY_0"):
            found += [decode(each.payload) for each in self.broker.messages(stream)]
        return [each for each in found if isinstance(each, kinds)]

    def indices(self, kind: type) -> list[int]:
        """Each index this was said of, as often as it was."""
        return sorted(i for each in self.said(kind) for i in ranges.indices(each.indices))  # type: ignore[union-attr]  # of kinds that have indices

    def finished(self) -> list[int]:
        return sorted(r.index for each in self.said(SandboxesFinished) for r in each.results)  # type: ignore[union-attr]  # as above

    def ids(self) -> list[str]:
        return [
            each.id
            for stream in ("SHOAL_ROLLOUT_0", "SHOAL_PLACEMENT_0", "SHOAL_TRAJECTORY_0")
            for each in self.broker.messages(stream)
        ]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
async def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    await ensure_cluster(world.bus)
    await world.bus.ensure([streams.executor("e1")])
    return world


async def test_live_sandboxes_are_adopted_and_take_commands(world: World) -> None:
    first = await world.live("b1")
    await world.order(3)
    await until(lambda: world.indices(SandboxesReady) == [0, 1, 2])
    await world.ask("c1", 1)
    await until(lambda: world.said(CommandFinished))
    await first.kill()
    second = await world.live("b2")
    await world.ask("c1", 1)  # the same again: answered, not run
    await world.ask("c2", 2)
    await until(lambda: len(world.said(CommandFinished)) == 3)
    joined = world.said(ExecutorJoined)
    assert {each.boot for each in joined} == {"b1"}  # type: ignore[union-attr]  # as asked
    assert world.indices(SandboxesReady) == [0, 1, 2]
    assert world.node.started == {"r1-0": 1, "r1-1": 1, "r1-2": 1}
    assert world.node.ran == {("r1-1", "c1"): 1, ("r1-2", "c2"): 1}
    await world.send(subjects.executor_control("e1"), DestroySandboxes("b1", "r1", (), EndReason.RELEASED))
    await until(lambda: world.indices(SlotsReleased) == [0, 1, 2])
    assert world.said(SandboxesEnded) == []
    await second.leave()
    assert not (world.state / "journal").exists()
    third = await world.live("b3")
    await until(lambda: {each.boot for each in world.said(ExecutorJoined)} == {"b1", "b3"})  # type: ignore[union-attr]  # as asked
    await third.leave()


async def test_commands_under_way_have_one_result(world: World) -> None:
    first = await world.live("b1")
    await world.order(2)
    await until(lambda: len(world.node.live) == 2)
    world.node.gate.clear()
    await world.ask("c1", 0)
    await until(lambda: world.node.ran)
    await first.kill()
    await world.ask("c2", 1)  # nobody is there
    second = await world.live("b2")
    await until(lambda: len(world.node.ran) == 2)
    assert not world.said(CommandFinished)
    world.node.gate.set()
    await until(lambda: len(world.said(CommandFinished)) == 2)
    assert set(world.node.ran.values()) == {1}
    await second.leave()


async def test_pieces_of_output_are_numbered_on_by_each_next_process(world: World) -> None:
    life = await world.live("b1")
    await world.order(1)
    await until(lambda: len(world.node.live) == 1)
    world.node.gate.clear()
    await world.ask("c1", 0, stream=True)
    heard: list[AnyMessage] = []
    for boot in ("b2", "b3", "b4"):
        await until(lambda: len(world.said(CommandOutput)) > len(heard) + 1)  # both of this process
        heard[:] = world.said(CommandOutput)
        await life.kill()
        life = await world.live(boot)
    world.node.gate.set()
    await until(lambda: world.said(CommandFinished))
    parts = [each.part for each in world.said(CommandOutput)]  # type: ignore[union-attr]  # as asked
    assert len(parts) == 8
    assert all(earlier < later for earlier, later in pairwise(parts))  # else a trainer takes them for copies
    await life.leave()


async def test_a_sandboxs_story_goes_on_with_the_next_number(world: World) -> None:
    first = await world.live("b1")
    await world.order(1)
    await until(lambda: world.said(SandboxesReady))
    await world.ask("c1", 0)
    await until(lambda: world.said(CommandFinished))
    world.node.gate.clear()
    await world.ask("c2", 0)
    await until(lambda: len(world.node.ran) == 2)
    await first.kill()
    second = await world.live("b2")
    await world.ask("c3", 0)
    await until(lambda: len(world.node.ran) == 3)
    world.node.gate.set()
    await until(lambda: len(world.said(CommandFinished)) == 3)
    told = {each.id: each.step for each in world.said(CommandFinished) if isinstance(each, CommandFinished)}
    assert {id: (step.number, step.beside) for id, step in told.items()} == {
        "c1": (1, ()), "c2": (2, ()), "c3": (3, ((2, 1),)),
    }  # fmt: skip
    assert [step.sequence for step in told.values()] == sorted(step.sequence for step in told.values())
    assert world.said(SandboxesReady) == [SandboxesReady("r1", 0, ((0, 1),), "n1", "e1", "simulated", "host")]
    await second.leave()


async def test_a_journal_of_another_version_is_not_continued(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    first = await world.live("b1")
    await world.order(1)
    await until(lambda: world.said(SandboxesReady))
    await first.kill()
    journal = Journal(world.state)
    began, *rest = journal.open()
    assert isinstance(began, Began)
    journal.rewrite(msgspec.structs.replace(began, version=1), *rest)
    journal.close(remove=False)
    second = await world.live("b2")
    assert {each.boot for each in world.said(ExecutorJoined)} == {"b1", "b2"}  # type: ignore[union-attr]  # as asked
    assert f"its journal is of version 1, and this program's is {VERSION}" in capsys.readouterr().out
    await second.leave()


@pytest.mark.parametrize(
    "bad",
    [
        RunCommand("c", "evil", "run", 0, "r1", -1, 0, Command(line="x")),
        RunCommand("c", "evil", "a b", 0, "nope", 0, 0, Command(line="x")),
        RunCommand("c", "evil", "run", -1, "nope", 0, 0, Command(line="x")),
        RunCommand("c", "evil", "run", 77, "nope", 0, 0, Command(line="x")),  # of no cell of this cluster
        RunCommand("c", *HEAD, 0, 0, Command(line="steal")),  # in another tenant's name
        DestroySandboxes("b1", "r1", (), EndReason.RELEASED),  # as only the system may say
    ],
    ids=["index", "run", "cell", "no such cell", "tenant", "control"],
)
async def test_what_makes_no_sense_is_put_aside_and_the_executor_goes_on(world: World, bad: AnyMessage) -> None:
    first = await world.live("b1")
    await world.order(2)
    await until(lambda: world.indices(SandboxesReady) == [0, 1])
    await world.send(subjects.executor_command("e1", "evil"), bad)
    await until(lambda: world.broker.messages("SHOAL_DEAD"))
    await world.ask("c1", 0)
    await until(lambda: world.said(CommandFinished))
    await first.kill()
    second = await world.live("b2")
    await world.ask("c2", 1)
    await until(lambda: len(world.said(CommandFinished)) == 2)
    assert world.node.ran == {("r1-0", "c1"): 1, ("r1-1", "c2"): 1}
    assert sorted(world.node.live) == ["r1-0", "r1-1"]
    assert len(world.broker.messages("SHOAL_DEAD")) == 1
    await second.leave()


async def test_a_journal_with_a_message_that_makes_no_sense_is_read_on(world: World) -> None:
    first = await world.live("b1")
    await world.order(2)
    await until(lambda: world.indices(SandboxesReady) == [0, 1])
    await first.kill()
    journal = Journal(world.state)
    journal.open()
    last = await world.bus.last_sequence("SHOAL_EXECUTOR_e1")
    journal.append(Took(last, RunCommand("c", "evil", "run", 0, "r1", -1, 0, Command(line="x"))))
    journal.append(Took(last, RunCommand("c", "evil", "a b", 0, "nope", 0, 0, Command(line="x"))))
    journal.close(remove=False)
    second = await world.live("b2")
    await world.ask("c1", 1)
    await until(lambda: world.said(CommandFinished))
    assert world.node.started == {"r1-0": 1, "r1-1": 1}
    await second.leave()


async def test_one_that_was_killed_after_it_said_it_left_begins_under_a_new_boot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal_executor.service.known.LARGE", 100)  # the journal is written anew all the time
    first = await world.live("b1")
    await world.order(2)
    await until(lambda: world.indices(SandboxesReady) == [0, 1])
    never = asyncio.Event()

    async def close() -> None:
        await never.wait()  # clearing away takes long

    first.driver.close = close  # type: ignore[method-assign]  # of this one only
    first.stop.set()
    await until(lambda: world.said(ExecutorLeft))
    kept = world.state / "kept"
    kept.mkdir()
    shutil.copy(world.state / "journal", kept / "journal")  # as a kill leaves it
    await first.kill()
    world.state = kept
    second = await world.live("b2")
    assert [each.boot for each in world.said(ExecutorJoined)] == ["b1", "b2"]  # type: ignore[union-attr]  # of that kind
    assert world.node.live == {}
    await second.leave()


async def test_a_driver_that_cannot_clear_away_leaves_no_journal_in_hand(world: World) -> None:
    first = await world.live("b1")

    async def close() -> None:
        raise DriverError("something is stuck")

    first.driver.close = close  # type: ignore[method-assign]  # of this one only
    first.stop.set()
    with pytest.raises(DriverError):
        await first.task
    assert not (world.state / "journal").exists()
    second = await world.live("b2")
    await second.leave()


async def test_one_that_failed_before_it_joined_has_not_taken_what_was_said_before(world: World) -> None:
    first = await world.live("b1")
    await world.order(1)
    await until(lambda: world.indices(SandboxesReady) == [0])
    await world.ask("c1", 0)
    await until(lambda: world.said(CommandFinished))
    await first.leave()
    second = Life(world.broker, world.node, world.state, "b2")

    async def fails(on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
        raise DriverError("its walls do not hold")

    second.driver.open = fails  # type: ignore[method-assign]  # of this one only
    await asyncio.wait([second.task])
    assert isinstance(second.task.exception(), DriverError)
    third = await world.live("b3")
    await world.ask("c2", 0)  # the first thing it hears
    await until(lambda: world.said(CommandRefused))
    assert [each.id for each in world.said(CommandFinished, CommandRefused)] == ["c1", "c2"]  # type: ignore[union-attr]  # of those kinds
    await third.leave()


async def test_jobs_under_way_end_once(world: World) -> None:
    world.node.gate.clear()
    first = await world.live("b1")
    await world.order(5, commands=(Command(line="work"),))
    await until(lambda: len(world.node.ran) == 5)
    await first.kill()
    world.node.gate.set()
    second = await world.live("b2")
    await until(lambda: world.indices(SlotsReleased) == list(range(5)))
    assert world.finished() == list(range(5))
    assert set(world.node.ran.values()) == {1}
    assert set(world.node.started.values()) == {1}
    await second.leave()


async def test_what_was_accepted_and_not_started_is_started(world: World) -> None:
    world.node.starts.clear()
    first = await world.live("b1")
    await world.order(4, commands=(Command(line="work"),))
    await asyncio.sleep(0.05)
    await first.kill()
    world.node.starts.set()
    second = await world.live("b2")
    await until(lambda: world.indices(SlotsReleased) == list(range(4)))
    assert world.finished() == list(range(4))
    assert world.node.started == {f"r1-{i}": 1 for i in range(4)}
    await second.leave()


async def test_those_that_do_not_run_any_more_are_reported(world: World) -> None:
    first = await world.live("b1")
    await world.order(3)
    await until(lambda: world.indices(SandboxesReady) == [0, 1, 2])
    await first.kill()
    del world.node.live["r1-1"]
    second = await world.live("b2")
    await until(lambda: world.indices(SlotsReleased) == [1])
    (ended,) = world.said(SandboxesEnded)
    assert isinstance(ended, SandboxesEnded)
    assert (ended.indices, ended.reason) == (((1, 1),), EndReason.OUT_OF_MEMORY)
    await second.leave()


@pytest.mark.parametrize("heard", range(8))
async def test_killed_in_the_middle_of_a_sentence_it_says_the_same_again(world: World, heard: int) -> None:
    first = await world.live("b1")
    first.bus.deaf_after = heard
    for number in range(4):
        await world.order(3, commands=(Command(line="work"),), rollout=f"r{number}")
    await until(lambda: len(world.node.ran) == 12 and not world.node.live)
    await first.kill()
    second = await world.live("b2")
    await until(lambda: len(world.indices(SlotsReleased)) >= 12)
    await second.leave()
    assert world.finished() == sorted([0, 1, 2] * 4)
    assert world.indices(SlotsReleased) == sorted([0, 1, 2] * 4)
    assert len(set(world.ids())) == len(world.ids())
    assert set(world.node.started.values()) == set(world.node.ran.values()) == {1}


@pytest.mark.parametrize("cut", range(0, 200, 7))
async def test_a_journal_that_was_cut_off_is_read_up_to_there(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path)
    assert journal.open() == []
    records = [Up(("r1", 0, "n1"), ((index, 1),)) for index in range(5)]
    journal.append(*records)
    size = journal.size
    journal.close(remove=False)
    path = tmp_path / "journal"
    whole = path.read_bytes()
    path.write_bytes(whole[: max(size - cut, 0)])
    again = Journal(tmp_path)
    found = again.open()
    assert found == records[: len(found)]
    assert len(found) == (max(size - cut, 0) * 5) // size
    again.append(StoredTo(7))  # and goes on there
    again.close(remove=False)
    third = Journal(tmp_path)
    assert third.open() == [*found, StoredTo(7)]
    third.close(remove=True)


async def test_a_changed_byte_ends_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    journal.append(StoredTo(1), StoredTo(2), StoredTo(3))
    journal.close(remove=False)
    data = bytearray((tmp_path / "journal").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "journal").write_bytes(data)
    again = Journal(tmp_path)
    assert again.open() == [StoredTo(1)]
    again.close(remove=True)


async def test_one_process_holds_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_executor.service.journal._LOCK_S", 0.1)
    journal = Journal(tmp_path)
    journal.open()
    other = Journal(tmp_path)
    with pytest.raises(JournalError, match="another executor uses this state directory"):
        other.open()
    other.close(remove=False)
    journal.close(remove=True)


async def test_a_long_journal_is_written_anew_and_says_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_executor.service.known.LARGE", 4000)
    first = await world.live("b1")
    await world.order(4)
    await until(lambda: world.indices(SandboxesReady) == [0, 1, 2, 3])
    sizes = []
    for number in range(60):
        await world.ask(f"c{number}", number % 4)
        await until(lambda number=number: len(world.said(CommandFinished)) == number + 1)  # type: ignore[misc]  # bound
        sizes.append((world.state / "journal").stat().st_size)
    assert any(later < earlier for earlier, later in pairwise(sizes))
    await first.kill()
    second = await world.live("b2")
    await world.ask("c7", 3)  # answered from what is remembered
    await until(lambda: len(world.said(CommandFinished)) == 61)
    assert world.node.ran["r1-3", "c7"] == 1
    await second.leave()


async def test_another_offer_or_start_of_the_machine_begins_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await world.live("b1")
    await world.order(2)
    await until(lambda: world.indices(SandboxesReady) == [0, 1])
    await first.kill()
    monkeypatch.setattr("shoal_executor.service.executor.machine", lambda: "started anew")
    second = await world.live("b2")
    await until(lambda: "b2" in {each.boot for each in world.said(ExecutorJoined)})  # type: ignore[union-attr]  # as asked
    assert not world.node.live
    await second.kill()
    journal = Journal(world.state)
    assert not any(isinstance(each, Took) for each in journal.open())
    journal.close(remove=True)


async def test_a_journal_of_another_version_is_begun_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(ExecutorCore, "dump", lambda core: b"\x93\x01\x02\x03")  # as some other version had it
        first = await world.live("b1")
        await world.order(2)
        await until(lambda: len(world.indices(SandboxesReady)) == 2)
        await first.kill()
    second = await world.live("b2")
    boots = [each.boot for each in world.said(ExecutorJoined)]  # type: ignore[union-attr]  # of that kind
    assert boots == ["b1", "b2"]
    assert world.node.live == {}
    await second.leave()


async def test_one_whose_name_another_has_taken_ends_with_its_sandboxes_and_for_good(world: World) -> None:
    first = await world.live("b1")
    await world.order(2)
    await until(lambda: world.indices(SandboxesReady) == [0, 1])
    await world.send(subjects.executor_control("e1"), ExecutorReplaced("of another"))
    await world.ask("c1", 0)
    await until(lambda: world.said(CommandFinished))
    assert not first.task.done(), "that was for another"
    await world.send(subjects.executor_control("e1"), ExecutorReplaced("b1"))
    with pytest.raises(
        ReplacedError, match=r"another executor has joined as 'e1': .* \(--executor or SHOAL_EXECUTOR\)"
    ):
        await first.task
    assert world.node.live == {}
    again = await world.live("b2")
    assert {each.boot for each in world.said(ExecutorJoined)} == {"b1", "b2"}  # type: ignore[union-attr]  # as asked
    await again.leave()


async def test_one_that_was_killed_before_it_heard_that_it_was_replaced_ends_all_the_same(world: World) -> None:
    first = await world.live("b1")
    await world.order(1)
    await until(lambda: world.indices(SandboxesReady) == [0])
    await first.kill()
    await world.send(subjects.executor_control("e1"), ExecutorReplaced("b1"))
    second = await world.live("b2")
    with pytest.raises(ReplacedError):
        await second.task
    assert world.node.live == {}


@pytest.mark.parametrize(
    ("host", "name"),
    [("gpu-7.rack.example", "gpu-7"), ("Jo's Mac", "Jo-s-Mac"), ("_x_", "x"), ("...", "local"), ("a" * 70, "a" * 64)],
)
def test_an_executor_goes_by_its_machines_name(host: str, name: str) -> None:
    assert token(machine_name(host), "executor") == name


async def test_one_whose_journal_was_deleted_ends_at_its_next_beat(world: World) -> None:
    life = await world.live("b1")
    await world.order(1)
    await until(lambda: world.indices(SandboxesReady) == [0])
    shutil.rmtree(world.state)
    with pytest.raises(FileNotFoundError, match="was deleted or replaced while an executor used it"):
        await life.task
    assert not world.said(SandboxesEnded), "what it cannot write down it tells nobody"
