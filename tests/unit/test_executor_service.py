"""The executor's edge on an in-memory bus with the simulated driver: what goes in, what comes out."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
import pytest_asyncio

from shoal.blobs.cache import Cache
from shoal.blobs.files import FileStore
from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.machine import ranges
from shoal.runtime.cluster import ensure_cluster
from shoal.wire import subjects
from shoal.wire.codec import decode, encode
from shoal.wire.messages import (
    AnyMessage,
    Blob,
    BlobKept,
    BlobRead,
    Command,
    CommandFinished,
    CommandOutput,
    CommandRefused,
    CommandResult,
    DeadLetter,
    DestroySandboxes,
    EndReason,
    ExecutorBeat,
    ExecutorJoined,
    ExecutorLeft,
    FileManaged,
    FileOp,
    FileRead,
    FileWritten,
    GiveUp,
    ManageFile,
    NodeSpec,
    ReadBlob,
    ReadFile,
    Resources,
    RunCommand,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesReady,
    SlotsReleased,
    Snapshot,
    StartSandboxes,
    Step,
    StepBegun,
    WriteFile,
)
from shoal.wire.outputs import heading
from shoal_executor.core.names import name_of
from shoal_executor.drivers.protocol import (
    DriverReport,
    ExitSink,
    NotEndedError,
    OutputSink,
    Started,
    StartFailed,
    StartSpec,
)
from shoal_executor.drivers.simulated import Profile, SimulatedDriver
from shoal_executor.service import ExecutorService, Offer
from shoal_executor.service.answers import Answers

M = TypeVar("M")
HEAD = ("acme", "run", 0, "r1")


class Bench:
    """An executor, and everything it said."""

    def __init__(self, bus: MemoryBus, driver: SimulatedDriver, cache: Cache | None = None) -> None:
        self.bus = bus
        self.driver = driver
        offer = Offer("e1", 0, (NodeSpec("n1", 8, 2**30),))
        self.service = ExecutorService(bus, driver, offer, "b1", None, cache)
        self.stop = asyncio.Event()
        self.said: list[object] = []
        self.trajectory: list[object] = []
        self._sent = 0
        self._news = asyncio.Event()

    async def listen(self, stream: str) -> None:
        reader = await self.bus.reader(stream)
        while True:
            news = [decode(delivery.payload) for delivery in await reader.batch()]
            self.said += news
            self.trajectory += news if stream == "SHOAL_TRAJECTORY_0" else []
            self._news.set()

    async def send(self, subject: str, message: AnyMessage) -> None:
        self._sent += 1
        await self.bus.publish(subject, encode(message), f"test:{self._sent}")

    async def order(
        self, *, n: int = 4, commands: tuple[Command, ...] = (), boot: str = "b1", deadline_s: float = 60
    ) -> None:
        deadline_ms = int((time.time() + deadline_s) * 1000)
        order = StartSandboxes(
            boot,
            "n1",
            "r1",
            "acme",
            "run",
            0,
            0,
            ((0, n),),
            Snapshot("host", "host"),
            Resources(),
            commands,
            (),
            (),
            "",
            deadline_ms,
        )
        await self.send(subjects.executor_control("e1"), order)

    async def command(self, message: AnyMessage) -> None:
        await self.send(subjects.executor_command("e1", "acme"), message)

    async def heard(self, kind: type[M], until: Callable[[list[M]], bool] = bool) -> list[M]:
        """Wait until what was said of this kind is enough."""
        async with asyncio.timeout(10):
            while not until(found := [message for message in self.said if isinstance(message, kind)]):
                self._news.clear()
                await self._news.wait()
        return found

    async def heard_answers(self, number: int) -> None:
        """Wait until so many answers about files were heard."""
        async with asyncio.timeout(10):
            while sum(isinstance(each, FileWritten | FileManaged) for each in self.said) < number:
                self._news.clear()
                await self._news.wait()


@pytest_asyncio.fixture(params=[Profile()])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with benched(request.param, None) as bench:
        yield bench


@asynccontextmanager
async def benched(profile: Profile, cache: Cache | None, driver: SimulatedDriver | None = None) -> AsyncIterator[Bench]:
    bus = MemoryBus(MemoryBroker())
    await ensure_cluster(bus)
    bench = Bench(bus, driver or SimulatedDriver(profile), cache)
    tasks = [
        asyncio.create_task(bench.listen(stream))
        for stream in (
            "SHOAL_ROLLOUT_0",
            "SHOAL_PLACEMENT_0",
            "SHOAL_TRAJECTORY_0",
            "SHOAL_BLOB_0",
            "SHOAL_SNAPSHOT",
            "SHOAL_DEAD",
        )
    ]
    running = asyncio.create_task(bench.service.run(bench.stop))
    await bench.heard(ExecutorJoined)
    yield bench
    bench.stop.set()
    await running
    assert (await bench.heard(ExecutorLeft))[-1].boot == "b1"
    assert await bench.driver.list() == []
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await bus.close()


def indices(messages: Sequence[SandboxesReady | SandboxesEnded | SlotsReleased]) -> list[int]:
    return sorted(i for message in messages for i in ranges.indices(message.indices))


def covers(n: int) -> Callable[[Sequence[SandboxesReady | SandboxesEnded | SlotsReleased]], bool]:
    return lambda messages: indices(messages) == list(range(n))


async def test_a_job_is_started_run_reported_once_and_frees_its_slots(bench: Bench) -> None:
    await bench.order(n=4, commands=(Command(line="work"),))
    finished = await bench.heard(SandboxesFinished, lambda found: sum(len(m.results) for m in found) == 4)
    assert {r.result.stdout for m in finished for r in m.results} == {b"simulated: work\n"}
    assert sorted(r.index for m in finished for r in m.results) == [0, 1, 2, 3]
    assert all(m.isolation == "simulated" for m in finished)
    await bench.heard(SlotsReleased, covers(4))
    await bench.order(n=4, commands=(Command(line="work"),))  # a repeat
    await bench.order(n=4, commands=(Command(line="work"),), boot="older")
    await bench.heard(ExecutorBeat)
    assert sum(len(m.results) for m in await bench.heard(SandboxesFinished)) == 4


async def test_each_sandbox_runs_its_own_command(bench: Bench) -> None:
    await bench.order(n=3, commands=tuple(Command((f"c{i}",)) for i in range(3)))
    finished = await bench.heard(SandboxesFinished, lambda found: sum(len(m.results) for m in found) == 3)
    assert {r.index: r.result.stdout for m in finished for r in m.results} == {
        i: f"simulated: c{i}\n".encode() for i in range(3)
    }


class Narrow(SimulatedDriver):
    """Starts one at a time, each when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.may_start = asyncio.Semaphore(0)
        self.destroyed: list[list[str]] = []
        self.unending: set[str] = set()

    async def open(self, on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
        return replace(await super().open(on_exit, keep), starts_at_once=1)

    async def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
        for name in names:
            await self.may_start.acquire()
            async for outcome in super().start([name], spec):
                yield outcome

    async def destroy(self, names: Sequence[str]) -> None:
        self.destroyed.append(sorted(names))
        await super().destroy(names)
        if left := self.unending.intersection(names):
            raise NotEndedError(left, "it is stuck")


async def test_ends_give_way_while_starts_wait_for_one_another_and_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_executor.service.giving_way.LONGEST_S", 60.0)
    driver = Narrow()
    async with benched(Profile(), None, driver) as bench:
        await bench.order(n=4, commands=(Command(line="work"),))
        for _ in range(2):
            driver.may_start.release()
        await bench.heard(SandboxesFinished, lambda found: sum(len(m.results) for m in found) == 2)
        assert driver.destroyed == []
        driver.may_start.release()  # the last one waits for none
        await bench.heard(SlotsReleased, covers(3))
        driver.may_start.release()
        await bench.heard(SlotsReleased, covers(4))
        assert list(map(len, driver.destroyed)) == [2, 1, 1]


async def test_what_cannot_be_ended_keeps_its_slot_and_no_other_until_it_can(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal_executor.service.executor.AGAIN_S", 0.02)
    driver = Narrow()
    driver.unending.add(name_of(("r1", 0, "n1"), 1))
    async with benched(Profile(), None, driver) as bench:
        for _ in range(4):
            driver.may_start.release()
        await bench.order(n=4)
        await bench.heard(SandboxesReady, covers(4))
        await bench.send(subjects.executor_control("e1"), DestroySandboxes("b1", "r1", (), EndReason.RELEASED))
        await bench.heard(SlotsReleased, lambda found: indices(found) == [0, 2, 3])
        beats = len(await bench.heard(ExecutorBeat))
        await bench.heard(ExecutorBeat, lambda found: len(found) > beats)
        assert indices(await bench.heard(SlotsReleased)) == [0, 2, 3]
        async with asyncio.timeout(10):
            while len(driver.destroyed) < 4:
                await asyncio.sleep(0.01)
        driver.unending.clear()
        await bench.heard(SlotsReleased, covers(4))
        assert driver.destroyed[1:] == [[name_of(("r1", 0, "n1"), 1)]] * (len(driver.destroyed) - 1)
    told = capsys.readouterr().out
    assert re.findall(r"again_s=(\S+)", told)[:3] == ["0.02", "0.04", "0.08"]
    assert "1 could not be ended" in told


class Confused(SimulatedDriver):
    """Tells of the first, and then what `says` makes of all names."""

    def __init__(self, says: Callable[[Sequence[str]], Sequence[str]]) -> None:
        super().__init__()
        self.says = says

    async def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
        async for outcome in super().start(names[:1], spec):
            yield outcome
        yield Started(self.says(names))


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (lambda names: names[:2], "told again"),
        (lambda names: [name_of(("r1", 0, "n1"), 7)], "never asked for"),
        (lambda names: ["who"], "invalid literal"),
        (lambda names: [], "no outcome"),
    ],
)
async def test_of_whom_a_driver_says_nothing_true_has_failed_to_start(
    says: Callable[[Sequence[str]], Sequence[str]], why: str
) -> None:
    async with benched(Profile(), None, Confused(says)) as bench:
        await bench.order(n=3)
        ended = await bench.heard(SandboxesEnded, lambda found: indices(found) == [1, 2])
        assert {m.reason for m in ended} == {EndReason.START_FAILED}
        assert all(why in m.detail for m in ended)
        assert indices(await bench.heard(SandboxesReady)) == [0]


async def test_interactive_commands_files_and_the_end(bench: Bench) -> None:
    await bench.order(n=2)
    ready = await bench.heard(SandboxesReady, covers(2))
    assert ready[0].executor == "e1"
    await bench.command(RunCommand("c1", *HEAD, 1, 0, Command(line="hello"), stream=True))
    assert (await bench.heard(CommandOutput))[0].data == b"simulated: hello\n"
    done = await bench.heard(CommandFinished)
    assert done[0].result.exit_code == 0
    await bench.command(RunCommand("c1", *HEAD, 1, 0, Command(line="hello"), stream=True))  # the same id again
    done = await bench.heard(CommandFinished, lambda found: len(found) == 2)
    assert done[0] == done[1]
    assert len(await bench.heard(CommandOutput)) == 1  # answered, not run
    await bench.command(WriteFile("c2", *HEAD, 1, 0, "a.txt", b"12345"))
    assert (await bench.heard(FileWritten))[0].size == 5
    await bench.command(ReadFile("c3", *HEAD, 1, 0, "a.txt", offset=1, limit=2))
    (read,) = await bench.heard(FileRead)
    assert read == FileRead("c3", "r1", 1, 0, "a.txt", b"23", 5, eof=False, step=read.step, offset=1)
    await bench.command(ReadFile("c4", *HEAD, 0, 0, "a.txt"))
    (refused,) = await bench.heard(CommandRefused)
    assert (refused.code, refused.what, refused.path, refused.step.number) == ("file_error", "read", "a.txt", 1)
    await bench.send(subjects.executor_control("e1"), DestroySandboxes("b1", "r1", (), EndReason.RELEASED))
    await bench.heard(SlotsReleased, covers(2))
    await bench.command(RunCommand("c5", *HEAD, 1, 0, Command(line="late")))
    late = (await bench.heard(CommandRefused, lambda found: len(found) == 2))[1]
    assert (late.code, late.reason, late.step) == ("sandbox_gone", EndReason.RELEASED, Step())


async def test_files_are_looked_at_and_changed_and_each_is_a_step(bench: Bench) -> None:
    await bench.order(n=1)
    await bench.heard(SandboxesReady)
    asked: list[WriteFile | ManageFile] = [
        WriteFile("c1", *HEAD, 0, 0, "d/a", b"1"),
        WriteFile("c2", *HEAD, 0, 0, "d/a", b"2", offset=-1),
        ManageFile("c3", *HEAD, 0, 0, FileOp.RENAME, "d/a", "b", idempotent=False),
        ManageFile("c4", *HEAD, 0, 0, FileOp.LIST, "."),
        ManageFile("c5", *HEAD, 0, 0, FileOp.REMOVE, "d", recursive=True),
    ]
    for number, each in enumerate([*asked, *asked], 1):  # all of it is delivered twice
        await bench.command(each)
        await bench.heard_answers(number)
    await bench.command(ManageFile("c6", *HEAD, 0, 0, FileOp.REMOVE, "d", recursive=True))
    await bench.command(ManageFile("c7", *HEAD, 0, 0, FileOp.STAT, "b"))
    renamed, listed, removed, *again, found = await bench.heard(FileManaged, lambda found: len(found) == 7)
    assert again == [renamed, listed, removed]
    assert [(each.op, each.path, each.to, each.recursive, each.step.number) for each in (renamed, removed)] == [
        (FileOp.RENAME, "d/a", "b", False, 3), (FileOp.REMOVE, "d", "", True, 5),
    ]  # fmt: skip
    assert [(each.name, each.kind, each.size) for each in listed.entries] == [("b", "file", 2), ("d", "directory", 0)]
    assert [(each.name, each.size) for each in found.entries] == [("b", 2)]
    (begun,) = await bench.heard(StepBegun)
    assert (begun.id, begun.what, begun.path) == ("c3", "rename", "d/a")
    (refused,) = await bench.heard(CommandRefused)
    assert (refused.code, refused.what, refused.path) == ("file_error", "remove", "d")
    assert "d: " in refused.detail
    known = bench.service._known.commands("r1", 0, 0)
    assert known == 4  # two pieces written, one renamed, one removed; what only looks is none
    await bench.command(ManageFile("c8", *HEAD, 0, 0, FileOp.REMOVE, "b", "c"))
    assert "to: it is the new path" in (await bench.heard(DeadLetter))[0].reason


class Slow(SimulatedDriver):
    """Its one command lasts until its sandbox ends, of which it says what drivers say that were told to end it."""

    def __init__(self) -> None:
        super().__init__(Profile(command_ms=60_000))
        self.begun = asyncio.Event()

    async def run(
        self, name: str, command: Command, output: OutputSink | None = None, *, id: str = ""
    ) -> CommandResult:
        self.begun.set()
        return await super().run(name, command, output, id=id)


async def test_what_a_command_under_way_hears_of_its_sandboxs_end_is_what_the_log_says() -> None:
    driver = Slow()
    async with benched(Profile(), None, driver) as bench:
        await bench.order(n=1)
        await bench.heard(SandboxesReady, covers(1))
        await bench.command(RunCommand("c1", *HEAD, 0, 0, Command(line="sleep 600")))
        await driver.begun.wait()
        await bench.send(subjects.executor_control("e1"), DestroySandboxes("b1", "r1", (), EndReason.TIMED_OUT))
        (refused,) = await bench.heard(CommandRefused)
        assert (refused.code, refused.reason) == ("sandbox_gone", EndReason.TIMED_OUT)


async def test_the_trajectory_tells_the_whole_story(bench: Bench) -> None:
    began = int(time.time() * 1000)
    await bench.order(n=2)
    told = await bench.heard(SandboxesReady, covers(2))
    assert {(each.attempt, each.node, each.executor, each.isolation, each.digest) for each in told} == {
        (0, "n1", "e1", "simulated", "host")
    }
    fed = Command(line="feed", stdin=b"in")
    await bench.command(RunCommand("c1", *HEAD, 0, 0, fed))
    await bench.command(WriteFile("c2", *HEAD, 0, 0, "a", b"12", mode=0o600))
    await bench.command(WriteFile("c3", *HEAD, 0, 0, "large", b"x" * 200_000))
    await bench.command(RunCommand("c4", *HEAD, 0, 0, Command(line="feed", stdin=b"x" * 200_000)))
    small, large = await bench.heard(FileWritten, lambda found: len(found) == 2)
    first, last = await bench.heard(CommandFinished, lambda found: len(found) == 2)
    assert (first.command, first.stdin) == (fed, Blob(hashlib.sha256(b"in").hexdigest(), 2))
    assert (last.command.stdin, last.stdin and last.stdin.size) == (b"", 200_000)
    assert (small.data, small.mode, small.content) == (b"12", 0o600, Blob(hashlib.sha256(b"12").hexdigest(), 2))
    assert (large.data, large.content and large.content.size) == (b"", 200_000)
    steps = [each.step for each in (first, small, large, last)]
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert [step.sequence for step in steps] == [2, 3, 4, 5]
    assert {step.executor for step in steps} == {"e1"}
    assert all(began <= step.asked_ms <= time.time() * 1000 for step in steps)


async def test_what_must_not_be_done_twice_is_told_before_it_is_done(bench: Bench) -> None:
    await bench.order(n=1)
    await bench.heard(SandboxesReady)
    await bench.command(RunCommand("c1", *HEAD, 0, 0, Command(line="pay", stdin=b"7"), idempotent=False))
    await bench.command(WriteFile("c2", *HEAD, 0, 0, "a", b"1", idempotent=False))
    await bench.heard(FileWritten)
    (finished,) = await bench.heard(CommandFinished)
    begun = await bench.heard(StepBegun)
    assert [(each.id, each.what, each.path, each.step.number) for each in begun] == [
        ("c1", "run", "", 1), ("c2", "write", "a", 2),
    ]  # fmt: skip
    assert begun[0].command == Command(line="pay")
    assert not finished.step.idempotent
    assert bench.said.index(begun[0]) < bench.said.index(finished)


async def test_an_output_that_fits_no_message_is_cut_and_counted_where_there_is_no_store(bench: Bench) -> None:
    await bench.order(n=1)
    await bench.heard(SandboxesReady)
    line = "x" * 600_000
    await bench.command(RunCommand("c1", *HEAD, 0, 0, Command(line=line, output_limit=2**20)))
    (finished,) = await bench.heard(CommandFinished)
    result = finished.result
    whole = len(f"simulated: {line}\n")
    assert 0 < len(result.stdout) <= 262_144
    assert result.stdout.startswith(b"simulated: xxx")
    assert result.stdout.endswith(b"x\n")
    assert result.stdout_tail == len(result.stdout) // 2
    assert (len(result.stdout) + result.stdout_dropped, result.stdout_blob) == (whole, None)
    blob = Blob("0" * 64, 5)
    await bench.command(ReadBlob("q1", "acme", "run", 0, blob, 0, 10))
    assert "no blob store" in (await bench.heard(BlobRead))[0].error
    await bench.send(subjects.executor_command("e1", "zeta"), ReadBlob("q2", "acme", "run", 0, blob, 0, 10))
    assert "ReadBlob" in (await bench.heard(DeadLetter))[0].reason  # in another tenant's name


@pytest.mark.parametrize("stored", [True, False])
async def test_of_an_output_over_its_limit_that_fits_no_message_either_the_gap_stays_where_it_is(
    tmp_path: Path, stored: bool
) -> None:
    cache = Cache(FileStore(tmp_path / "blobs"), tmp_path / "cache", 2**30) if stored else None
    async with benched(Profile(), cache) as bench:
        await bench.order(n=1)
        await bench.heard(SandboxesReady)
        line = "".join(f"{number:09}\n" for number in range(60_000))
        await bench.command(RunCommand("c1", *HEAD, 0, 0, Command(line=line, output_limit=300_000)))
        result = (await bench.heard(CommandFinished))[0].result
        whole = f"simulated: {line}\n".encode()
        if stored:
            assert result.stdout == whole[:150_000]  # what comes next in the blob is not what came next
            assert (result.stdout_dropped, result.stdout_tail) == (len(whole) - 300_000, 150_000)
        else:
            begin, end = result.stdout[: -result.stdout_tail], result.stdout[-result.stdout_tail :]
            assert len(begin) - len(end) in (0, 1)
            assert 50_000 < len(end) < 131_073  # the answer has the command, too
            assert whole.startswith(begin)
            assert whole.endswith(end)
            assert result.stdout_dropped == len(whole) - len(result.stdout)
    if cache is not None:
        await cache.close()


async def test_an_output_waits_while_nobody_can_be_told_that_it_is_kept(tmp_path: Path) -> None:
    async with benched(Profile(), Cache(FileStore(tmp_path / "blobs"), tmp_path / "cache", 2**30)) as bench:
        await bench.order(n=1)
        await bench.heard(SandboxesReady)
        log = bench.bus._broker._logs["SHOAL_SNAPSHOT"]
        whole = log.spec
        log.spec = replace(whole, max_bytes=1)
        await bench.command(RunCommand("c1", *HEAD, 0, 0, Command(line="0123456789" * 60_000, output_limit=2**20)))
        async with asyncio.timeout(20):  # until it was refused
            while not any(subject.endswith(".added") for _, subject, _ in bench.service._loose.unstored):
                assert not [each for each in bench.said if isinstance(each, CommandFinished)]
                await asyncio.sleep(0.01)
        await bench.command(RunCommand("c2", *HEAD, 0, 0, Command(line="short")))
        await bench.heard(CommandFinished, lambda found: [each.id for each in found] == ["c2"])
        log.spec = whole
        first = (await bench.heard(CommandFinished, lambda found: len(found) == 2))[-1].result
        assert (first.stdout_dropped, first.stdout_blob is not None) == (0, True)


async def test_what_cannot_be_understood_is_kept_as_a_dead_letter(bench: Bench) -> None:
    await bench.bus.publish(subjects.executor_control("e1"), b"\xc1", "bad")
    await bench.send(subjects.executor_control("e1"), ExecutorLeft("e1", "b1"))
    letters = await bench.heard(DeadLetter, lambda found: len(found) == 2)
    assert [letter.sequence for letter in letters] == [1, 2]
    await bench.order(n=1)  # and the executor goes on
    await bench.heard(SandboxesReady)
    assert SandboxesEnded not in {type(message) for message in bench.said}


@pytest.mark.parametrize("bench", [Profile(start_failure_rate=1.0)], indirect=True)
async def test_failed_starts_are_reported_and_free_their_slots(bench: Bench) -> None:
    await bench.order(n=3, commands=(Command(line="work"),))
    ended = await bench.heard(SandboxesEnded, covers(3))
    assert {m.reason for m in ended} == {EndReason.START_FAILED}
    await bench.heard(SlotsReleased, covers(3))
    service = bench.service
    assert (service._core.groups, len(service._deadlines)) == ({}, 0)


@pytest.mark.parametrize("bench", [Profile(command_ms=3_600_000)], indirect=True)
async def test_a_rollout_whose_time_is_up_is_ended_by_the_executor_itself(bench: Bench) -> None:
    await bench.order(n=2, commands=(Command(line="work"),), deadline_s=-2)
    ended = await bench.heard(SandboxesEnded, covers(2))
    assert {m.reason for m in ended} == {EndReason.TIMED_OUT}


async def test_an_output_that_fits_no_message_is_a_blob_that_its_tenant_is_given(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "blobs")
    cache = Cache(store, tmp_path / "cache", 2**30)
    async with benched(Profile(), cache) as bench:
        await bench.order(n=1)
        await bench.heard(SandboxesReady)
        line = "0123456789" * 60_000
        await bench.command(RunCommand("c1", *HEAD, 0, 0, Command(line=line, output_limit=2**20)))
        (finished,) = await bench.heard(CommandFinished)
        result, blob = finished.result, finished.result.stdout_blob
        whole = f"simulated: {line}\n".encode()
        assert blob is not None
        assert (whole.startswith(result.stdout), result.stdout_dropped, result.stderr_blob) == (True, 0, None)
        (kept,) = await bench.heard(BlobKept)
        assert (kept.tenant, kept.blob) == ("acme", blob)
        assert kept.until_ms > time.time() * 1000 + 7 * 86_400_000
        for number in range(0, blob.size, 262_144):
            await bench.command(ReadBlob(f"q{number}", "acme", "run", 0, blob, number, 262_144))
        pieces = {each.id: each for each in await bench.heard(BlobRead, lambda found: len(found) == 3)}
        content = b"".join(pieces[f"q{number}"].data for number in range(0, blob.size, 262_144))
        assert content == heading("acme") + whole
        assert {(each.size, each.error) for each in pieces.values()} == {(blob.size, "")}
        # What is not an output of that tenant's is as if it were not there.
        (tmp_path / "disk").write_bytes(b"disk of another")
        disk = await store.put(tmp_path / "disk")
        strangers = [(disk, "acme"), (blob, "zeta"), (Blob("0" * 64, 9), "acme"), (Blob("../x", 9), "acme")]
        for number, (which, tenant) in enumerate(strangers):
            ask = ReadBlob(f"s{number}", tenant, "run", 0, which, 0, 10)
            await bench.send(subjects.executor_command("e1", tenant), ask)
        refused = [each for each in await bench.heard(BlobRead, lambda found: len(found) == 7) if each.id[0] == "s"]
        assert [each.data for each in refused] == [b""] * 4
        assert sum("is no output of tenant" in each.error for each in refused) == 3
    await cache.close()


def asked(id: str) -> ReadFile:
    return ReadFile(id, *HEAD, 0, 0, "a")


def written(number: int) -> FileWritten:
    return FileWritten(f"c{number}", "r1", 0, 0, "a", 1)


def test_answers_beyond_their_limit_lose_content_but_not_their_id() -> None:
    answers = Answers(limit=1500)
    assert answers.begin(asked("c9"))
    assert answers.running(asked("c9"))
    for number in range(4):
        assert answers.begin(asked(f"c{number}"))
        answers.record(written(number))
    assert [answers.recorded(asked(f"c{number}")) is not None for number in range(4)] == [False, False, True, True]
    assert not answers.begin(asked("c0"))
    assert not answers.running(asked("c0"))
    answers.forget(("r1", 0, 0))
    assert answers.begin(asked("c0"))


def test_steps_are_numbered_as_they_are_begun_and_an_attempt_is_not_another() -> None:
    answers = Answers()
    for number in range(4):
        assert answers.begin(asked(f"c{number}"), 100 + number, "e1", number)
    answers.record(written(0))
    answers.record(written(2))
    assert answers.done(("r1", 0, 0)) == ((1, 1), (3, 1))
    assert answers.step(asked("c3")) == Step(4, 103, "e1", 3, beside=((1, 3),))
    again = msgspec.structs.replace(asked("c0"), attempt=1)
    assert answers.recorded(again) is None
    assert answers.begin(again)
    other = Answers()
    other.load(answers.dump())
    assert other.dump() == answers.dump()
    assert other.done(("r1", 0, 0)) == ((1, 1), (3, 1))
    assert [step.number for _, step in other.under_way_in(("r1", 0, 0))] == [2, 4]
    assert other.step(again).number == 1
    answers.forget(("r1", 0, 0))
    answers.record(written(1))  # of one that is gone
    assert answers.under_way() == [again]


def of_commands(bench: Bench) -> list[tuple[str, str]]:
    found = []
    for told in bench.trajectory:
        if isinstance(told, CommandFinished):
            found.append((told.id, "given up" if told.result.given_up else "done"))
        elif isinstance(told, CommandRefused):
            found.append((told.id, told.code))
    return found


@pytest.mark.parametrize("bench", [Profile(command_ms=3_600_000, command_spread=0)], indirect=True)
async def test_a_command_that_nobody_waits_for_is_ended_and_one_that_has_not_come_is_not_begun(bench: Bench) -> None:
    await bench.order(n=2)
    await bench.heard(SandboxesReady, covers(2))
    of = (*HEAD, 1, 0)
    await bench.command(RunCommand("a", *of, Command(line="slow")))
    async with asyncio.timeout(10):
        while not bench.driver._ends:
            await asyncio.sleep(0)
    for message in (
        GiveUp("a", *of), GiveUp("a", *of),
        GiveUp("b", *of), RunCommand("b", *of, Command(line="slow")),
        RunCommand("c", *HEAD, 0, 0, Command(line="slow")), GiveUp("c", *of),  # of another sandbox
    ):  # fmt: skip
        await bench.command(message)
    await bench.heard(CommandFinished)
    await bench.heard(CommandRefused)
    assert sorted(of_commands(bench)) == [("a", "given up"), ("b", "given_up")]
    for message in (
        GiveUp("a", *of),
        RunCommand("a", *of, Command(line="slow")),
        RunCommand("b", *of, Command(("b",))),
    ):
        await bench.command(message)  # too late, and asked again: what was recorded
    await bench.heard(CommandFinished, lambda found: len(found) == 2)
    await bench.heard(CommandRefused, lambda found: len(found) == 2)
    assert sorted(of_commands(bench)) == [("a", "given up"), ("a", "given up"), ("b", "given_up"), ("b", "given_up")]
    assert [told.code for told in bench.trajectory if isinstance(told, CommandRefused)] == ["given_up"] * 2
    await bench.command(GiveUp("c", *HEAD, 0, 0))
    await bench.heard(CommandFinished, lambda found: len(found) == 3)


@pytest.mark.parametrize("given_up", [False, True])
async def test_what_was_given_up_is_known_by_who_goes_on(given_up: bool) -> None:
    asked = RunCommand("a", *HEAD, 1, 0, Command(line="slow"))
    answers = Answers()
    if given_up:
        assert answers.give_up(GiveUp("a", *HEAD, 1, 0))
    answers.begin(asked)
    another = Answers()
    another.load(answers.dump())
    assert another.given_up(asked) is given_up
    another.record(CommandRefused("a", "r1", 1, 0, "given_up", "it was"))
    assert not another.given_up(asked)
    assert not another.give_up(GiveUp("a", *HEAD, 1, 0))  # it has its answer


def test_only_so_many_commands_that_never_came_are_remembered() -> None:
    answers = Answers()
    for number in range(5000):
        answers.give_up(GiveUp(str(number), *HEAD, 1, 0))
    ids = [answers.given_up(RunCommand(str(number), *HEAD, 1, 0, Command())) for number in range(5000)]
    assert (sum(ids), ids[-1]) == (64, True)
    answers.forget(("r1", 1, 0))
    assert answers.sandboxes == ()


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (Command(line="x", timeout_ms=-1), "timeout_ms"), (Command(line="x", timeout_ms=2**62 - 1), "timeout_ms"),
        (Command(line="x", output_limit=-1), "output_limit"), (Command(), "command"),
        (Command(line="x", python="x"), "command"), (Command(line="x", session=True, stdin=b"y"), "stdin"),
        (Command(line="x", session=True, user="nobody"), "user"), (Command(python="x", user="nobody"), "user"),
    ],
)  # fmt: skip
async def test_a_command_that_nobody_could_carry_out_is_refused_and_harms_nothing(
    bench: Bench, command: Command, field: str
) -> None:
    await bench.order(n=1)
    await bench.heard(SandboxesReady)
    await bench.command(RunCommand("bad", *HEAD, 0, 0, command))
    (refused,) = await bench.heard(CommandRefused)
    assert (refused.code, refused.detail.partition(":")[0]) == ("bad_request", field)
    await bench.command(RunCommand("good", *HEAD, 0, 0, Command(line="x", timeout_ms=10_000_000_000)))
    assert (await bench.heard(CommandFinished))[0].result.exit_code == 0
