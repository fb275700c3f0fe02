"""Snapshots and what they have behind them: exactly what had come to its end when the sandbox stood still."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from shoal.blobs.cache import Cache
from shoal.blobs.files import FileStore
from shoal.blobs.protocol import BlobSpaceError, Progress
from shoal.bus.protocol import PublishTimeoutError, Stored
from shoal.machine.core import Cause, Collect, Effect
from shoal.machine.lineage import identified
from shoal.runtime.sealing import Seals, seals_of
from shoal.wire import streams, subjects
from shoal.wire.messages import (
    AnyMessage,
    Blob,
    BlobKept,
    Command,
    CommandFinished,
    CommandRefused,
    CommandResult,
    DeadLetter,
    DestroySandboxes,
    EndReason,
    FileWritten,
    Hibernate,
    Hibernated,
    PrefetchSnapshot,
    RollBack,
    RolledBack,
    RunCommand,
    SandboxesReady,
    SandboxSaved,
    SandboxSlept,
    SlotsReleased,
    Snapshot,
    SnapshotAdded,
    SnapshotHeld,
    SnapshotTaken,
    TakeSnapshot,
    Tick,
    WriteFile,
)
from shoal_executor.drivers.layers import DEEPEST
from shoal_executor.drivers.protocol import Captured, OutputSink, Started, StartFailed, StartSpec
from shoal_executor.drivers.simulated import Profile, SimulatedDriver
from shoal_executor.service.announcing import Unannounced
from shoal_executor.service.settling import LATER_S
from shoal_snapshot.core.snapshot import SnapshotCore
from shoal_snapshot.service import Collector
from unit.test_executor_service import HEAD, Bench, benched, covers, indices


class Keeping(SimulatedDriver):
    """Sandboxes that can be kept, at a moment that a test chooses; commands end when it says so."""

    def __init__(self) -> None:
        super().__init__()
        self.still = asyncio.Event()  # a capture has begun
        self.go = asyncio.Event()  # and goes on
        self.go.set()
        self.finished: tuple[str, ...] = ()
        self.gates: dict[str, asyncio.Event] = {}
        self.waits = asyncio.Event()  # a command is under way
        self.settled: list[str] = []
        self.captures = 0
        self.prepared: list[Snapshot] = []
        self.stop_at = ""  # once a rollback has come to `prepare` or to `start`, it waits
        self.reached = asyncio.Event()
        self.went_on = asyncio.Event()

    async def _come_to(self, what: str) -> None:
        if self.stop_at == what:
            self.reached.set()
            await self.went_on.wait()

    async def prepare(self, snapshot: Snapshot) -> None:
        await self._come_to("prepare")
        self.prepared = [*self.prepared, snapshot]
        await super().prepare(snapshot)

    async def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
        await self._come_to("start")
        async for outcome in super().start(names, spec):
            yield outcome

    async def capture(self, name: str, directory: Path, *, memory: bool, hold: bool = False) -> Captured:
        self.captures += 1
        self.still.set()
        await self.go.wait()
        layer = directory / "layer"
        layer.write_bytes(f"layer {self.captures}".encode())
        return Captured(layer, None, 1000, self.finished)

    async def run(
        self, name: str, command: Command, output: OutputSink | None = None, *, id: str = ""
    ) -> CommandResult:
        if id in self.gates:
            self.waits.set()
            await self.gates[id].wait()
        return await super().run(name, command, output, id=id)

    def settle(self, name: str, ids: "tuple[str, ...] | list[str]") -> None:  # type: ignore[override]  # as given here
        self.settled += ids


@asynccontextmanager
async def caching(store: FileStore, directory: Path) -> AsyncIterator[Cache]:
    """A cache that is closed whatever a test finds."""
    cache = Cache(store, directory, 2**30)
    try:
        yield cache
    finally:
        await cache.close()


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = FileStore(tmp_path / "blobs")
    async with caching(store, tmp_path / "cache") as cache, benched(Profile(), cache, Keeping()) as bench:
        await bench.order(n=1)
        await bench.heard(SandboxesReady)
        yield bench


def driver(bench: Bench) -> Keeping:
    assert isinstance(bench.driver, Keeping)
    return bench.driver


def run(id: str) -> RunCommand:
    return RunCommand(id, *HEAD, 0, 0, Command(line=id))


def saved(bench: Bench) -> list[SandboxSaved]:
    """Return what the trajectory has of snapshots: the rollout log has them, too."""
    return [each for each in bench.trajectory if isinstance(each, SandboxSaved)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_ended_before_the_moment_is_in_it_and_told_before_it(bench: Bench) -> None:
    kept = driver(bench)
    kept.gates = {"ended": asyncio.Event(), "on": asyncio.Event()}
    await bench.command(run("first"))
    await bench.command(run("ended"))
    await bench.command(run("on"))
    await bench.heard(CommandFinished)
    kept.go.clear()
    kept.finished = ("ended",)  # so the agent says, though nobody has heard what came of it
    await bench.command(TakeSnapshot("snap", *HEAD, 0, 0))
    await kept.still.wait()
    await bench.command(WriteFile("late", *HEAD, 0, 0, "a", b"1"))  # it waits while the sandbox stands still
    await asyncio.sleep(0.05)
    assert not [each for each in bench.said if isinstance(each, FileWritten)]
    kept.go.set()
    await bench.heard(FileWritten)
    await asyncio.sleep(0.05)
    assert not saved(bench)
    await until(lambda: kept.settled == ["first"])
    kept.gates["ended"].set()
    (taken,) = await bench.heard(SnapshotTaken)
    (told,) = saved(bench)
    # The third step is under way, the fifth came after the moment; the fourth is the snapshot itself.
    assert (told.steps, told.commands) == (((1, 2), (4, 1)), 2)
    assert taken.step.number == 4
    ended = next(each for each in bench.trajectory if isinstance(each, CommandFinished) and each.id == "ended")
    assert bench.trajectory.index(ended) < bench.trajectory.index(told)
    kept.gates["on"].set()
    await bench.heard(CommandFinished, lambda found: len(found) == 3)


async def test_a_result_is_not_settled_while_a_sandbox_is_asked_what_it_has_done(bench: Bench) -> None:
    kept = driver(bench)
    kept.gates = {"ends": asyncio.Event()}
    await bench.command(run("ends"))
    kept.go.clear()
    kept.finished = ("ends",)
    await bench.command(TakeSnapshot("snap", *HEAD, 0, 0))
    await kept.still.wait()
    kept.gates["ends"].set()
    await bench.heard(CommandFinished)
    await asyncio.sleep(2 * LATER_S)
    assert kept.settled == []
    kept.go.set()
    await bench.heard(SnapshotTaken)
    await until(lambda: kept.settled == ["ends"])
    assert saved(bench)[0].steps == ((1, 2),)


async def test_what_sleeps_has_everything_behind_it_and_the_log_knows_before(bench: Bench) -> None:
    await bench.command(run("a"))
    await bench.command(Hibernate("nap", *HEAD, 0, 0))
    await bench.heard(Hibernated)
    await bench.heard(SandboxSlept, lambda found: len(found) == 2)
    (told,) = saved(bench)
    assert told.steps == ((1, 2),)
    slept = next(each for each in bench.trajectory if isinstance(each, SandboxSlept))
    assert bench.trajectory.index(told) < bench.trajectory.index(slept)
    assert slept.snapshot.digest == told.snapshot.digest


async def test_a_sandbox_goes_back_to_what_was_taken_and_to_nothing_made_up(bench: Bench) -> None:
    await bench.command(TakeSnapshot("snap", *HEAD, 0, 0))
    (taken,) = await bench.heard(SnapshotTaken)
    made_up = [
        Snapshot("x/../../../etc", "host"),
        msgspec.structs.replace(taken.snapshot, kind="dir", path="/root"),  # under the other's digest
        identified(Snapshot("", "host", layers=(Blob("../../x", 1),))),
    ]
    prepared = driver(bench).prepared
    for number, snapshot in enumerate(made_up):
        await bench.command(RollBack(f"bad{number}", *HEAD, 0, 0, snapshot))
    refused = await bench.heard(CommandRefused, lambda found: len(found) == len(made_up))
    assert [each.code for each in refused] == ["snapshot_failed"] * len(made_up)
    assert [each.detail.partition(":")[0] for each in refused] == ["snapshot.digest"] * 2 + ["snapshot.blobs"]
    for number, snapshot in enumerate(made_up):
        await bench.send(subjects.executor_control("e1"), PrefetchSnapshot(snapshot))
        await bench.heard(DeadLetter, lambda found, number=number: len(found) == number + 1)  # type: ignore[misc]  # bound
    assert driver(bench).prepared == prepared
    await bench.command(RollBack("back", *HEAD, 0, 0, taken.snapshot))
    await bench.heard(RolledBack)
    assert driver(bench).prepared == [*prepared, taken.snapshot]


async def test_what_the_cluster_did_not_make_for_this_tenant_is_no_sandboxs_and_no_nodes(bench: Bench) -> None:
    """The digests of all of these are right: whoever stored an output, or has read of a blob, can write them."""
    seals = await seals_of(bench.bus)
    await bench.command(TakeSnapshot("snap", *HEAD, 0, 0))
    (taken,) = await bench.heard(SnapshotTaken)
    assert seals.right("acme", taken.snapshot)
    (added,) = await bench.heard(SnapshotAdded)
    assert added.snapshot == taken.snapshot
    output = identified(Snapshot("", "disk", disks=(Blob("e" * 64, 4096),)))
    foreign = [
        (output, "has none"),
        (msgspec.structs.replace(output, seal=taken.snapshot.seal), "not of this cluster for tenant 'acme'"),
        (seals.sealed("umbra", taken.snapshot), "not of this cluster for tenant 'acme'"),
        (Seals(b"another").sealed("acme", taken.snapshot), "not of this cluster for tenant 'acme'"),
        (msgspec.structs.replace(taken.snapshot, seal=""), "has none"),
    ]
    prepared = driver(bench).prepared
    for number, (snapshot, why) in enumerate(foreign, 1):
        await bench.command(RollBack(f"bad{number}", *HEAD, 0, 0, snapshot))
        refused = await bench.heard(CommandRefused, lambda found, number=number: len(found) == number)  # type: ignore[misc]  # bound
        assert refused[-1].code == "snapshot_failed"
        assert refused[-1].detail.startswith(f"snapshot.seal: {snapshot.digest[:12]} ")
        assert why in refused[-1].detail
        assert "cluster.snapshots()" in refused[-1].detail
        await bench.send(subjects.executor_control("e1"), PrefetchSnapshot(snapshot, "acme"))
        dead = await bench.heard(DeadLetter, lambda found, number=number: len(found) == number)  # type: ignore[misc]  # bound
        assert "snapshot.seal: " in dead[-1].reason
    await bench.send(subjects.executor_control("e1"), PrefetchSnapshot(taken.snapshot, "umbra"))
    await bench.heard(DeadLetter, lambda found: len(found) == len(foreign) + 1)
    assert driver(bench).prepared == prepared
    await bench.send(subjects.executor_control("e1"), PrefetchSnapshot(taken.snapshot, "acme"))
    await until(lambda: driver(bench).prepared == [*prepared, taken.snapshot])


async def test_what_a_sandbox_goes_back_to_is_held_before_that_is_told(bench: Bench) -> None:
    other = (await seals_of(bench.bus)).sealed("acme", identified(Snapshot("", "disk", disks=(Blob("e" * 64, 9),))))
    kept = driver(bench)
    kept.stop_at = "prepare"
    await bench.command(RollBack("back", *HEAD, 0, 0, other))
    (held,) = await bench.heard(SnapshotHeld)  # so its blobs stay while they are fetched, too
    await kept.reached.wait()
    group = bench.service._core.groups["r1", 0, "n1"]
    assert held == SnapshotHeld("acme", other.digest, "r1", group.order.deadline_ms)
    kept.went_on.set()
    await bench.heard(RolledBack)
    kept.stop_at = ""
    await bench.command(RollBack("plain", *HEAD, 0, 0, Snapshot("host", "host")))  # needs nothing kept
    await bench.heard(RolledBack, lambda found: len(found) == 2)
    assert len(await bench.heard(SnapshotHeld)) == 1


async def test_whoever_asked_hears_that_the_executor_failed(bench: Bench, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)  # of the state directory nothing is left to put a snapshot into
    await bench.command(TakeSnapshot("s1", *HEAD, 0, 0))
    (refused,) = await bench.heard(CommandRefused)
    assert (refused.id, refused.code) == ("s1", "snapshot_failed")
    assert refused.detail.startswith("its executor failed: FileNotFoundError")
    await bench.command(run("c1"))
    assert [each.id for each in await bench.heard(CommandFinished)] == ["c1"], "the sandbox goes on"


async def test_a_sandbox_that_is_kept_at_every_step_stands_on_no_more_than_before(bench: Bench) -> None:
    for number in range(DEEPEST + 5):
        await bench.command(TakeSnapshot(f"s{number}", *HEAD, 0, 0))
    taken = await bench.heard(SnapshotTaken, lambda found: len(found) == DEEPEST + 5)
    assert {len(each.snapshot.disks) + len(each.snapshot.layers) for each in taken} == {1}


class Image(Keeping):
    """One that keeps memory, too."""

    async def capture(self, name: str, directory: Path, *, memory: bool, hold: bool = False) -> Captured:
        captured = await super().capture(name, directory, memory=memory, hold=hold)
        (directory / "memory").write_bytes(b"memory")
        return replace(captured, memory=directory / "memory")


@pytest.mark.parametrize("failing", ["store", "announcement"])
async def test_what_is_stored_and_never_announced_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store = FileStore(tmp_path / "blobs")
    async with caching(store, tmp_path / "cache") as cache, benched(Profile(), cache, Image()) as bench:
        await bench.order(n=1)
        await bench.heard(SandboxesReady)
        put, publish = store.put, bench.bus.publish

        async def full(source: Path, progress: Progress | None = None) -> Blob:
            if source.name == "memory":
                raise BlobSpaceError("there is no room left")
            return await put(source, progress)

        def refused(subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
            if id.startswith("snapshot:"):
                raise PublishTimeoutError("the broker did not confirm it")
            return publish(subject, payload, id)

        if failing == "store":
            monkeypatch.setattr(store, "put", full)
        else:
            monkeypatch.setattr(bench.service._keeping._bus, "publish", refused)
        await bench.command(TakeSnapshot("s1", *HEAD, 0, 0))
        (answer,) = await bench.heard(CommandRefused)
        assert answer.code == "snapshot_failed"
        count = 1 if failing == "store" else 2
        given_up = await bench.heard(BlobKept, lambda found: len(found) == count)
        monkeypatch.undo()
        await bench.command(TakeSnapshot("s2", *HEAD, 0, 0))
        (taken,) = await bench.heard(SnapshotTaken)
        added = await bench.heard(SnapshotAdded)
        assert len(await bench.heard(BlobKept)) == count  # nothing of what is announced
    assert [each.until_ms for each in given_up] == [0] * count
    catalogue, effects = SnapshotCore(), list[Effect]()
    told: list[AnyMessage] = [*added, *given_up]
    for number, message in enumerate(told, 1):
        effects += catalogue.handle(message, Cause("SHOAL_SNAPSHOT", number, 10_000_000))
        catalogue.check()
    kept = {blob.digest for blob in taken.snapshot.blobs}
    lost = {each.blob.digest for each in given_up} - kept
    assert lost
    asked = [digest for each in effects if isinstance(each, Collect) for digest in each.digests]
    assert set(asked) == lost
    collector = Collector(store, lambda digest: not catalogue.collects(digest))
    still = next(each for each in effects if isinstance(each, Collect))
    assert await collector.perform(still) == []  # it may be about to be announced
    for digest in lost:
        os.utime(store._place(digest), (1, 1))
    (gone,) = await collector.perform(Collect(tuple(asked)))
    assert set(getattr(gone.message, "digests", ())) == lost
    assert not any([await store.has(each.blob) for each in given_up if each.blob.digest in lost])
    assert all([await store.has(blob) for blob in taken.snapshot.blobs])


async def test_what_a_process_stored_that_was_killed_before_it_announced_it_is_collected(tmp_path: Path) -> None:
    async with caching(FileStore(tmp_path / "blobs"), tmp_path / "cache") as cache:
        async with benched(Profile(), cache, Keeping()) as bench:
            await bench.order(n=1)
            await bench.heard(SandboxesReady)
            await bench.command(TakeSnapshot("s1", *HEAD, 0, 0))
            await bench.heard(SnapshotTaken)
            assert list(cache.unannounced.iterdir()) == []  # what is announced
            (tmp_path / "made").write_bytes(b"a layer")
            lost = await cache.add(tmp_path / "made")
            Unannounced("acme", cache.unannounced).note(lost)
            assert not [each for each in bench.said if isinstance(each, BlobKept)]
        (cache.unannounced / "torn").write_bytes(b"{")  # it was killed while it wrote
        async with benched(Profile(), cache, Keeping()) as bench:
            assert await bench.heard(BlobKept) == [BlobKept("acme", lost, 0)]
            await until(lambda: not list(cache.unannounced.iterdir()))


async def test_a_rollouts_log_that_is_full_holds_no_snapshot_up(bench: Bench) -> None:
    bench.bus._broker.ensure(replace(streams.rollout(0), max_bytes=1))
    bench.service._known.outgoing.send(subjects.rollout_sandbox(0, "acme", "run"), Tick(1))  # a report, say
    await bench.command(TakeSnapshot("snap", *HEAD, 0, 0))
    await bench.heard(SnapshotTaken)
    assert bench.service._known.outgoing.outstanding == 1
    bench.bus._broker.ensure(streams.rollout(0))


async def test_nobody_asks_for_it_while_a_command_is_under_way(bench: Bench) -> None:
    kept = driver(bench)
    kept.gates = {"long": asyncio.Event()}
    await bench.command(run("long"))
    await kept.waits.wait()
    checkpoint = asyncio.create_task(bench.service._keeping._checkpoint(("r1", 0, "n1"), 0))
    await asyncio.sleep(0.1)
    assert not kept.still.is_set()
    kept.gates["long"].set()
    await checkpoint
    assert saved(bench)[0].steps == ((1, 1),)


async def test_one_that_stands_on_too_many_layers_is_not_kept_and_goes_on(bench: Bench) -> None:
    layers = tuple(Blob(f"{number:064x}", 1) for number in range(DEEPEST))
    deepest = identified(Snapshot("", "host", layers=layers, template="host"))
    seals = await seals_of(bench.bus)
    await bench.command(RollBack("back", *HEAD, 0, 0, seals.sealed("acme", deepest)))
    await bench.heard(RolledBack)
    await bench.command(TakeSnapshot("snap", *HEAD, 0, 0))
    await bench.command(Hibernate("nap", *HEAD, 0, 0))
    refused = await bench.heard(CommandRefused, lambda found: len(found) == 2)
    assert {answer.code for answer in refused} == {"unsupported"}
    assert all(f"stands on {DEEPEST} layers" in answer.detail for answer in refused)
    assert driver(bench).captures == 0
    await bench.command(run("on"))
    await bench.heard(CommandFinished)


@pytest.mark.parametrize("moment", ["prepare", "start"])
async def test_one_that_is_released_while_it_is_rolled_back_is_gone_before_its_slot_is_free(
    bench: Bench, moment: str
) -> None:
    kept = driver(bench)
    kept.stop_at = moment
    await bench.command(RollBack("back", *HEAD, 0, 0, Snapshot("host", "host")))
    await kept.reached.wait()
    released = DestroySandboxes("b1", "r1", (), EndReason.RELEASED)
    await bench.send(subjects.executor_control("e1"), released)
    await until(lambda: not bench.service._core.live)
    if moment == "prepare":  # nothing of it has begun: the end need not wait for it
        await bench.heard(SlotsReleased)
    kept.went_on.set()
    await bench.heard(CommandRefused if moment == "prepare" else RolledBack)
    await bench.heard(SlotsReleased)
    assert await kept.list() == []


async def test_one_that_is_rolled_back_holds_up_no_end_but_its_own(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "blobs")
    async with caching(store, tmp_path / "cache") as cache, benched(Profile(), cache, Keeping()) as bench:
        await bench.order(n=3)
        await bench.heard(SandboxesReady, covers(3))
        kept = driver(bench)
        kept.stop_at = "start"
        await bench.command(RollBack("back", *HEAD, 1, 0, Snapshot("host", "host")))
        await kept.reached.wait()
        await bench.send(subjects.executor_control("e1"), DestroySandboxes("b1", "r1", (), EndReason.RELEASED))
        await bench.heard(SlotsReleased, lambda found: indices(found) == [0, 2])
        kept.went_on.set()
        await bench.heard(SlotsReleased, covers(3))
        assert await kept.list() == []
