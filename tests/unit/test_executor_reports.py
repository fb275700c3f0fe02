"""When what an executor has to say is said."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest
import pytest_asyncio

from shoal.bus.memory import MemoryBroker
from shoal.machine import ranges
from shoal.runtime.cluster import ensure_cluster
from shoal.runtime.steady import SteadyPublisher
from shoal.wire import streams, subjects
from shoal.wire.codec import decode
from shoal.wire.messages import (
    AnyMessage,
    Command,
    CommandOutput,
    CommandResult,
    EndReason,
    Ranges,
    Resources,
    SandboxesBegan,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesReady,
    SandboxResult,
    SlotsReleased,
    Snapshot,
    StartSandboxes,
)
from shoal_executor.core import ReportEnded, ReportFinished, ReportReady, ReportReleased
from shoal_executor.service import reports
from shoal_executor.service.outgoing import Outgoing
from shoal_executor.service.reports import Reports

KEY = ("r1", 0, "n1")
ORDER = StartSandboxes(
    "b1", "n1", "r1", "acme", "run", 0, 0, ((0, 8),), Snapshot("host", "host"), Resources(), (Command(("true",)),), (),
    (), "", 0,
)  # fmt: skip
LONG_S = 60.0


class Said:
    """Reports over a bus in memory, and what came of them."""

    def __init__(self, broker: MemoryBroker, publisher: SteadyPublisher) -> None:
        self._broker = broker
        outgoing = self.outgoing = Outgoing(publisher, "e1:b1")
        self.reports = Reports(outgoing, "e1", "simulated", 0, lambda _: None, lambda _: None)
        outgoing.on_stored = self.reports.stored
        outgoing.go()
        self.reports.go()

    async def now(self) -> list[AnyMessage]:
        """Return all that was said once nothing moves any more: the trajectory, the rollout's log, the placement's."""
        await asyncio.sleep(0.02)
        logs = map(self._broker.log, ("SHOAL_TRAJECTORY_0", "SHOAL_ROLLOUT_0", "SHOAL_PLACEMENT_0"))
        return [decode(entry.payload) for log in logs for entry in log.messages]

    def ready(self, indices: Ranges) -> None:
        self.reports.add(ReportReady(KEY, ORDER, indices, job=True))

    def finished(self, *indices: int, more: bool) -> None:
        self.reports.add(ReportFinished(KEY, ORDER, ranges.collect(indices), tuple(map(result, indices)), more))


def result(index: int) -> SandboxResult:
    return SandboxResult(index, CommandResult(0), 7)


@pytest_asyncio.fixture
async def said(memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Said]:
    """A group that has taken so long already that its results may wait for a minute."""
    monkeypatch.setattr(reports, "_WAIT_PART", 1e12)
    monkeypatch.setattr(reports, "_LONGEST_WAIT_S", LONG_S)
    monkeypatch.setattr(reports, "_JOB_READY_PAUSE_S", LONG_S)
    bus = memory_broker.connect()
    await ensure_cluster(bus, 1)
    said = Said(memory_broker, SteadyPublisher(bus, "executor.e1"))
    said.ready(((0, 8),))
    await asyncio.sleep(0.001)
    yield said


async def test_results_wait_for_others_of_their_group_and_the_last_for_nothing(said: Said) -> None:
    said.finished(0, 1, more=True)
    said.finished(2, more=True)
    assert await said.now() == []
    said.finished(3, more=False)
    (told,) = await said.now()
    assert isinstance(told, SandboxesFinished)
    assert [each.index for each in told.results] == [0, 1, 2, 3]


async def test_what_cannot_wait_takes_along_what_waits(said: Said) -> None:
    said.finished(0, more=True)
    said.reports.add(ReportReleased(KEY, ORDER, ((0, 1),), True))
    assert await said.now() == []
    said.reports.add(ReportEnded(KEY, ORDER, ((5, 1),), EndReason.DIED, "it died"))
    finished, ended, released = await said.now()
    assert isinstance(finished, SandboxesFinished)
    assert isinstance(ended, SandboxesEnded)
    assert isinstance(released, SlotsReleased)
    assert released.indices == ((0, 1),)


async def test_what_first_attempts_are_comes_with_their_readiness_and_of_others_in_the_trajectory(said: Said) -> None:
    again = msgspec.structs.replace(ORDER, attempt=1, snapshot=Snapshot("s1", "host"))
    other = msgspec.structs.replace(again, snapshot=Snapshot("s2", "host"))
    said.reports.add(ReportReady(KEY, ORDER, ((0, 2),), job=False))
    said.reports.add(ReportReady(("r1", 1, "n1"), again, ((2, 1),), job=False))
    said.reports.add(ReportReady(("r1", 1, "n1"), other, ((3, 1),), job=False))
    where = ("n1", "e1", "simulated")
    assert await said.now() == [
        SandboxesBegan("r1", 1, ((2, 1),), *where, "s1"),
        SandboxesBegan("r1", 1, ((3, 1),), *where, "s2"),
        SandboxesReady("r1", 0, ((0, 2),), *where, "host"),
        SandboxesReady("r1", 1, ((2, 2),), *where),
    ]


async def test_slots_wait_as_results_do_and_the_last_of_a_group_for_nothing(said: Said) -> None:
    said.reports.add(ReportReleased(KEY, ORDER, ((0, 3),), True))
    assert await said.now() == []
    said.reports.add(ReportReleased(KEY, ORDER, ((3, 5),), False))
    (released,) = await said.now()
    assert isinstance(released, SlotsReleased)
    assert released.indices == ((0, 8),)


async def test_they_do_not_wait_longer_than_that(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_LONGEST_WAIT_S", 0.005)
    said.finished(0, more=True)
    assert len(await said.now()) == 1


async def test_in_a_group_that_has_just_begun_nothing_waits(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_WAIT_PART", 0.0)
    said.finished(0, more=True)
    assert len(await said.now()) == 1


async def test_an_earlier_process_began_the_group_and_nothing_waits(said: Said) -> None:
    other = (KEY[0], 1, KEY[2])
    said.reports.add(ReportFinished(other, ORDER, ((0, 1),), (result(0),), True))
    assert len(await said.now()) == 1


def fill(broker: MemoryBroker, *full: streams.Stream) -> None:
    for stream in full:
        broker.ensure(replace(stream, max_bytes=1))


async def test_a_log_that_takes_nothing_silences_no_other(said: Said, memory_broker: MemoryBroker) -> None:
    await ensure_cluster(memory_broker.connect(), 1)
    fill(memory_broker, streams.trajectory(0))
    for number in range(40):  # answers, say
        said.outgoing.send(subjects.trajectory(0, "acme", "run"), CommandOutput(f"c{number}", "r1", 0, 0, 1, b"", 0))
    for number in range(20):
        said.reports.add(ReportReady((f"r{number}", 0, "n1"), ORDER, ((0, 1),), job=False))
        await asyncio.sleep(0.001)
    assert len([each for each in await said.now() if isinstance(each, SandboxesReady)]) == 20


async def test_a_cells_log_that_takes_nothing_silences_no_other_cell(
    memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "_IN_FLIGHT", 2)
    bus = memory_broker.connect()
    await ensure_cluster(bus, 2)
    said = Said(memory_broker, SteadyPublisher(bus, "executor.e1"))
    fill(memory_broker, streams.rollout(1))
    far = msgspec.structs.replace(ORDER, cell=1)
    for number in range(6):
        said.reports.add(ReportReady((f"far{number}", 0, "n1"), far, ((0, 1),), job=False))
        await said.now()
    assert said.outgoing.outstanding == 2  # the others gather
    said.reports.add(ReportReady(KEY, ORDER, ((0, 1),), job=False))
    assert [type(each) for each in await said.now()] == [SandboxesReady]
    memory_broker.ensure(streams.rollout(1))
    async with asyncio.timeout(10):
        while len(memory_broker.log("SHOAL_ROLLOUT_1").messages) < 6:
            await asyncio.sleep(0.01)
