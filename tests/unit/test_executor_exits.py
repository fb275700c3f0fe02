"""Sandboxes whose end is heard before their start, or while their executor was away: none lives on in the books."""

from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import pytest

from shoal.runtime.cluster import ensure_cluster
from shoal.wire import streams
from shoal.wire.messages import Command, EndReason, SandboxesEnded, SandboxesReady, SlotsReleased
from shoal_executor.drivers.protocol import DriverReport, ExitSink, Started, StartFailed, StartSpec
from shoal_executor.drivers.simulated import Profile, SimulatedDriver
from unit.test_executor_recovery import Lasting, World, until
from unit.test_executor_service import benched, indices


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
