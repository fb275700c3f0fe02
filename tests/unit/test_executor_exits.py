"""Sandboxes that are gone, of which some end before their start is heard: none lives on in the books."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import pytest

from shoal.runtime.cluster import ensure_cluster
from shoal.wire import streams, subjects
from shoal.wire.messages import (
    Command,
    CommandFinished,
    DestroySandboxes,
    EndReason,
    Resources,
    RunCommand,
    SandboxesEnded,
    SandboxesReady,
    SlotsReleased,
    Snapshot,
    StartSandboxes,
)
from shoal_executor.drivers.protocol import BadInputError, DriverReport, ExitSink, Started, StartFailed, StartSpec
from shoal_executor.drivers.simulated import Profile, SimulatedDriver
from shoal_executor.service.waits import Waits
from unit.test_executor_recovery import Lasting, World, until
from unit.test_executor_service import HEAD, benched, indices


class Brief(SimulatedDriver):
    """Tells the end of the second of each order before its start; `fails`: which does not start then."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.exit: ExitSink | None = None
        self._fails = fails

    async def open(self, on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
        self.exit = on_exit
        return await super().open(on_exit, keep)

    async def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
        assert self.exit is not None
        for place, name in enumerate(names):
            async for outcome in super().start([name], spec):
                if place == 1:
                    self.exit(name, EndReason.OUT_OF_MEMORY, "its first process was killed")
                    await self.destroy([name])
                yield StartFailed(name, "it ended") if place == 1 and self._fails else outcome


@pytest.mark.parametrize("jobs", [False, True])
async def test_one_that_ended_before_it_was_noted_is_ready_and_then_ended(jobs: bool) -> None:
    async with benched(Profile(), None, Brief()) as bench:
        await bench.order(n=3, commands=(Command(line="work"),) if jobs else ())
        (ended,) = await bench.heard(SandboxesEnded)
        assert (ended.indices, ended.reason) == (((1, 1),), EndReason.OUT_OF_MEMORY)
        freed = [0, 1, 2] if jobs else [1]
        await bench.heard(SlotsReleased, lambda found: indices(found) == freed)
        assert bench.service._exits._early == {}


async def test_one_that_ended_and_did_not_start_has_failed_to_start() -> None:
    async with benched(Profile(), None, Brief(fails=True)) as bench:
        await bench.order(n=3)
        (ended,) = await bench.heard(SandboxesEnded)
        assert (ended.indices, ended.reason) == (((1, 1),), EndReason.START_FAILED)
        assert bench.service._exits._early == {}


async def test_nothing_is_kept_of_sandboxes_that_are_gone() -> None:
    async with benched(Profile(), None, SimulatedDriver()) as bench:
        deadline_ms = int((time.time() + 600) * 1000)
        order = StartSandboxes(
            "b1", "n1", "r1", "acme", "run", 0, 0, ((0, 8),), Snapshot("host", "host"), Resources(), (), (), (), "",
            deadline_ms, checkpoint_every_ms=500_000, idle_after_ms=500_000, lifetime_ms=500_000,
        )  # fmt: skip
        await bench.send(subjects.executor_control("e1"), order)
        await bench.heard(SandboxesReady, lambda found: indices(found) == list(range(8)))
        for index in range(4):
            await bench.command(RunCommand(f"c{index}", *HEAD, index, 0, Command(line="work")))
        await bench.heard(CommandFinished, lambda found: len(found) == 4)
        keeping = bench.service._keeping
        await until(lambda: len(keeping.waits) == 3 * 8)
        destroy = DestroySandboxes("b1", "r1", ((0, 2), (6, 2)), EndReason.RELEASED)
        await bench.send(subjects.executor_control("e1"), destroy)
        await bench.heard(SlotsReleased, lambda found: indices(found) == [0, 1, 6, 7])
        await until(lambda: len(bench.service._tasks) == 3 * 4)
        assert (len(keeping.waits), sorted(keeping._used)) == (3 * 4, ["r1-2", "r1-3"])
        await bench.send(subjects.executor_control("e1"), DestroySandboxes("b1", "r1", (), EndReason.RELEASED))
        await bench.heard(SlotsReleased, lambda found: indices(found) == list(range(8)))
        await until(lambda: not bench.service._tasks)
        assert (len(keeping.waits), keeping._used, keeping.waits._of) == (0, {}, {})
        assert not [each for each in bench.said if isinstance(each, SandboxesEnded)]


async def test_a_wait_is_over_when_its_time_is_up() -> None:
    waits, key = Waits(), ("r1", 0, "n1")
    await waits.sleep(key, 0, 0.001)
    left = asyncio.create_task(waits.sleep(key, 1, 600.0))
    given_up = asyncio.create_task(waits.sleep(key, 1, 600.0))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert len(waits) == 1
    waits.gone(key, ((0, 4),))
    waits.gone(("r2", 0, "n1"), ((0, 4),))
    await left
    assert (len(waits), waits._of) == (0, {})


async def test_one_that_ends_while_its_executor_comes_back_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    await ensure_cluster(world.bus)
    await world.bus.ensure([streams.executor("e1")])
    first = await world.live("b1")
    await world.order(2)
    await until(lambda: world.indices(SandboxesReady) == [0, 1])
    await first.kill()

    async def list_(driver: Lasting) -> list[str]:
        assert driver.exit is not None
        driver.exit("r1-1", EndReason.DIED, "its first process ended")  # and is listed until it is cleared away
        return list(driver.node.live)

    monkeypatch.setattr(Lasting, "list", list_)
    second = await world.live("b2")
    await until(lambda: world.indices(SlotsReleased) == [1])
    (ended,) = world.said(SandboxesEnded)
    assert isinstance(ended, SandboxesEnded)
    assert (ended.indices, ended.reason) == (((1, 1),), EndReason.DIED)
    await second.leave()


class Fussy(SimulatedDriver):
    """Cannot use what it is given for all of a template, or for one of its sandboxes."""

    def __init__(self, *, all_of_it: bool) -> None:
        super().__init__()
        self._all = all_of_it

    async def prepare(self, snapshot: Snapshot) -> None:
        if self._all:
            raise BadInputError("warm: ZeroDivisionError")

    async def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
        async for _ in super().start(names[:1], spec):
            yield StartFailed(names[0], "input file /usr/x: Read-only file system", EndReason.BAD_INPUT)
        await self.destroy(names[:1])
        async for outcome in super().start(names[1:], spec):
            yield outcome


@pytest.mark.parametrize("all_of_it", [False, True])
async def test_what_was_given_and_cannot_be_used_is_told_as_that(all_of_it: bool) -> None:
    async with benched(Profile(), None, Fussy(all_of_it=all_of_it)) as bench:
        await bench.order(n=3)
        (ended,) = await bench.heard(SandboxesEnded)
        assert (ended.indices, ended.reason) == (((0, 3 if all_of_it else 1),), EndReason.BAD_INPUT)
        assert ended.detail.startswith("warm: Zero" if all_of_it else "input file /usr/x: Read-only")
