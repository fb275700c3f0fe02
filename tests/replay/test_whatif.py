"""Recorded demand, once more: what a recording asks for is asked again, and changes have their effect."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from replay.recordings import Recording
from shoal.archive.exporting import export
from shoal.archive.source import ArchiveError
from shoal.bus.protocol import Delivery
from shoal.cli.exits import Exit
from shoal.cli.replay import replay
from shoal.cli.whatif import Prices, report, show
from shoal.replay.changes import changed
from shoal.replay.course import Course, Seen, measure
from shoal.replay.demand import Demand, Group, Machine
from shoal.replay.loading import Loading, requests, same_cluster
from shoal.replay.recorded import read
from shoal.replay.services import services
from shoal.replay.simulating import Simulation
from shoal.wire import messages as m, streams, subjects
from shoal.wire.codec import decode, encode
from shoal.wire.quantities import BadValueError

GIB = 2**30
JOB = (m.Command(("true",)),)


def machine(number: int, slots: int = 4, **fields: Any) -> Machine:
    spec = m.NodeSpec(f"n{number}", slots, slots * GIB)
    return Machine(f"e{number}", 0, "zygote", (spec,), 100.0, 10.0, **fields)


def group(number: int, n: int, busy_ms: int, at_ms: int = 100, **fields: Any) -> Group:
    tenant = fields.pop("tenant", "t")
    spec = m.RolloutSpec("host", n, fields.pop("commands", JOB), m.Resources(memory=GIB), **fields)
    return Group(at_ms, f"r{number}", tenant, "u", 0, spec, (busy_ms,) * n)


class Tapped(Simulation):
    """One whose every message is kept, as a broker would."""

    def __init__(self, demand: Demand, seed: int = 0) -> None:
        self.kept: dict[str, list[Delivery]] = {}
        super().__init__(demand, services(), seed)

    def publish(self, subject: str, message: m.AnyMessage) -> None:
        kept = self.kept.setdefault(streams.stream_of(subject), [])
        kept.append(Delivery(subject, encode(message), len(kept) + 1, 1_000_000 + self.now, ""))
        super().publish(subject, message)


class Kept(Recording):
    """What a tapped simulation kept, as history."""

    def __init__(self, simulation: Tapped) -> None:
        self.messages = simulation.kept
        self._values = {"cells": str(simulation.demand.cells).encode(), "id": b"it"}
        self._first = {}
        self._states = {}


DEMAND = Demand(
    (
        group(0, 8, 500), group(1, 6, 300, 150, tenant="other"), group(2, 4, 200, 400, commands=()),
        group(3, 5, 400, 450, min_ready=5),
    ),
    tuple(machine(number) for number in range(3)),
)  # fmt: skip


def test_everybody_is_served_and_the_seed_decides_when() -> None:
    noisy = Demand(DEMAND.groups, tuple(machine(number, spread=0.5) for number in range(3)))
    courses = [Simulation(noisy, services(), seed).run() for seed in (1, 1, 2)]
    for course in courses:
        assert {name: (len(seen.ready), len(seen.done)) for name, seen in course.seen.items()} == {
            "r0": (8, 8), "r1": (6, 6), "r2": (4, 4), "r3": (5, 5),
        }  # fmt: skip
    assert courses[0] == courses[1] != courses[2]


async def test_what_was_recorded_is_asked_again_and_comes_to_the_same() -> None:
    simulation = Tapped(DEMAND)
    course = simulation.run()
    found = await read(Kept(simulation))
    assert {g.rollout: (g.tenant, g.spec.n, bool(g.spec.commands)) for g in found.demand.groups} == {
        "r0": ("t", 8, True), "r1": ("other", 6, True), "r2": ("t", 4, False), "r3": ("t", 5, True),
    }  # fmt: skip
    for each in found.demand.groups[:3]:  # the recording ends before all of the last one is done
        wanted = next(g for g in DEMAND.groups if g.rollout == each.rollout)
        assert all(abs(one - other) <= 5 for one, other in zip(each.busy_ms, wanted.busy_ms, strict=True))
    before, again = measure(course), measure(Simulation(found.demand, services()).run())
    assert abs(again.full_p50_s - before.full_p50_s) <= 0.05
    assert abs(again.makespan_s - before.makespan_s) <= 0.1
    assert measure(found.course).groups == 4


async def test_a_recording_in_which_nothing_was_asked_says_so() -> None:
    nothing = Tapped(Demand((), (machine(0),)))
    nothing.publish(subjects.rollout_system(0), m.CellCapacity(1, 1, ()))
    with pytest.raises(ArchiveError, match="no rollout was submitted"):
        await read(Kept(nothing))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("nodes+=2", lambda d: len(d.machines) == 5),
        ("nodes=1", lambda d: len(d.machines) == 1),
        ("nodes*=2", lambda d: d.slots == 24),
        ("slots*=2", lambda d: d.slots == 24),
        ("start_ms*=3", lambda d: d.machines[0].start_ms == 30.0),
        ("cells=2", lambda d: {each.cell for each in d.machines} == {0, 1}),
        ("arrivals*=2", lambda d: d.groups[2].at_ms == 200),
        ("rollouts*=3", lambda d: len(d.groups) == 12),
        ("busy*=2", lambda d: d.groups[0].busy_ms == (1000,) * 8),
        ("scheduler.order=fifo", lambda d: d.settings == {"scheduler": {"order": "fifo"}}),
        ("tenant.t.sandboxes=3", lambda d: d.told[0][2].limits.sandboxes == 3),
    ],
)
def test_changes(change: str, what: Any) -> None:
    other = changed(DEMAND, [change])
    assert what(other)
    course = Simulation(other, services()).run()
    assert all(len(seen.done) == seen.n for seen in course.seen.values())


def test_a_change_given_twice_takes_names_that_are_free() -> None:
    other = changed(DEMAND, ["rollouts*=2", "rollouts*=2"])
    assert len({each.rollout for each in other.groups}) == len(other.groups) == 16
    more = changed(DEMAND, ["nodes=1", "nodes+=3", "nodes+=3"])
    assert len({each.executor for each in more.machines}) == len(more.machines) == 7
    assert len({node.node for each in more.machines for node in each.nodes}) == 7
    course = Simulation(changed(other, ["nodes+=2", "nodes+=2"]), services()).run()
    assert len(course.seen) == 16
    assert all(len(seen.done) == seen.n for seen in course.seen.values())
    assert [each.rollout for each in changed(DEMAND, ["rollouts*=3"]).groups[:4]] == ["r0", "r0x1", "r0x2", "r1"]


def test_what_has_the_name_of_another_is_refused() -> None:
    with pytest.raises(ValueError, match="two rollouts"):
        Simulation(Demand((group(0, 1, 1), group(0, 1, 1)), DEMAND.machines), services())
    with pytest.raises(ValueError, match="two machines"):
        Simulation(Demand((group(0, 1, 1),), (machine(0), machine(0))), services())


@pytest.mark.parametrize(
    "change", [
        "nodes", "nodes=0", "nodes=x", "colour=red", "busy*=0", "tenant.t.colour=1", "start_ms+=1", "cells=0",
        "nodes=inf", "nodes=nan", "nodes*=1e300", "nodes-=3", "slots=0", "slots=nan", "slots*=-1", "start_ms=-5",
        "start_ms=inf", "cells=nan", "arrivals*=1e-300", "arrivals*=nan", "busy*=inf", "busy*=-1", "rollouts*=0.5",
        "rollouts*=2.5", "rollouts*=inf", "tenant.t.weight=0", "tenant.t.weight=-1", "tenant.t.weight=nan",
        "tenant.t.sandboxes=-5", "tenant.t.sandboxes=inf", "tenant.t.starts_per_s=-1",
    ],
)  # fmt: skip
def test_a_change_that_is_none_is_refused_and_named(change: str) -> None:
    with pytest.raises(BadValueError, match="set"):
        changed(DEMAND, [change])


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(BadValueError, match="no settings of placement"):
        Simulation(changed(DEMAND, ["placement.policy=best"]), services())


@pytest.mark.parametrize("change", ["tenant.t.weight=0.001", "tenant.t.weight=1000", "tenant.t.sandboxes=1000000000"])
def test_the_scheduler_takes_the_limits_that_can_be_given(change: str) -> None:
    course = Simulation(changed(DEMAND, [change]), services()).run()
    assert all(len(seen.done) == seen.n for seen in course.seen.values())


async def test_what_is_rejected_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    simulation = Tapped(changed(DEMAND, ["scheduler.quota=5"]))
    course = simulation.run()
    assert set(course.seen) == {"r2", "r3"}
    assert {name: each.n for name, each in course.rejected.items()} == {"r0": 8, "r1": 6}
    measures = measure(course)
    assert (measures.groups, measures.rejected, measures.rejected_sandboxes) == (2, 2, 14)
    recorded = await read(Kept(simulation))
    assert recorded.course.rejected == course.rejected
    courses = {"recorded": (DEMAND, Simulation(DEMAND, services()).run()), "simulated": (DEMAND, course)}
    found = report(courses, (), Prices(1, 1))
    assert found["simulated"]["rejections"] == {each.why: 1 for each in course.rejected.values()}
    assert found["recorded"]["rejections"] == {}
    show(found)
    said = capsys.readouterr()
    assert "rollouts rejected" in said.out
    assert "simulated: 2 rollouts were rejected; the other rows are without them" in said.err
    assert all(f"  1: {each.why}" in said.err for each in course.rejected.values())


def test_a_rollout_that_was_rejected_is_over_though_its_time_comes() -> None:
    long, short = group(0, 8, 500, timeout_ms=200), group(1, 4, 500)
    course = Simulation(changed(Demand((long, short), DEMAND.machines), ["scheduler.quota=5"]), services()).run()
    assert (set(course.seen), set(course.rejected)) == ({"r1"}, {"r0"})


def test_more_nodes_are_sooner_done_and_a_quota_later() -> None:
    busy = Demand(tuple(group(number, 8, 1000, 100) for number in range(8)), DEMAND.machines)
    plain = measure(Simulation(busy, services()).run())
    more = measure(Simulation(changed(busy, ["nodes*=3"]), services()).run())
    less = measure(Simulation(changed(busy, ["tenant.t.sandboxes=4"]), services()).run())
    assert more.makespan_s < plain.makespan_s < less.makespan_s
    assert more.waited_gpu_s < plain.waited_gpu_s < less.waited_gpu_s


def test_a_machine_that_leaves_loses_what_it_has_and_others_take_over() -> None:
    machines = (machine(0, until_ms=300), machine(1))
    asked = Demand((group(0, 8, 500, on_lost=m.OnLost.RESTART),), machines)
    course = Simulation(asked, services()).run()
    assert len(course.seen["r0"].done) == 8
    assert max(course.seen["r0"].done.values()) > 800


def test_what_is_preempted_comes_back_and_goes_on_where_it_was() -> None:
    low = group(0, 4, 2_000, 100, commands=())
    high = group(1, 4, 300, 600, priority=5)
    course = Simulation(Demand((low, high), (machine(0),)), services()).run()
    assert max(course.seen["r1"].done.values()) < min(course.seen["r0"].done.values())
    assert max(course.seen["r0"].done.values()) < 100 + 2_000 + 2_000


def test_a_simulation_goes_on_event_by_event_as_in_one_go() -> None:
    whole, bit_by_bit = Simulation(DEMAND, services(), 3), Simulation(DEMAND, services(), 3)
    assert bit_by_bit.advance(1)
    while bit_by_bit.advance(7):
        pass
    assert not bit_by_bit.advance()
    assert bit_by_bit.course == whole.run()


def test_whatif_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Tapped(DEMAND)
    simulation.run()
    asyncio.run(export(Kept(simulation), tmp_path / "x.shoal"))

    def endless(_: Simulation) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return True

    monkeypatch.setattr(Simulation, "advance", endless, raising=False)
    monkeypatch.setattr(Simulation, "run", lambda simulation: simulation.course)
    found = CliRunner().invoke(replay, ["whatif", str(tmp_path / "x.shoal")], standalone_mode=False)
    assert found.exception is None
    assert found.return_value == Exit.INTERRUPTED


def test_measures_of_nothing_and_of_little() -> None:
    assert measure(Course(4)).sandboxes == 0
    half = Course(2, {"r": Seen(0, "t", 2, {0: 10}, {0: 20, 1: 20})})
    found = measure(half)
    assert (found.full_p50_s, found.first_p50_s, found.utilisation) == (0.0, 0.01, 10 / 40)


async def test_requests_are_sent_again_under_names_of_their_own() -> None:
    from shoal.bus.memory import MemoryBroker
    from shoal.runtime.cluster import ensure_cluster

    simulation = Tapped(DEMAND)
    simulation.run()
    history = Kept(simulation)
    due = await requests(history)
    broker = MemoryBroker()
    bus = broker.connect()
    await ensure_cluster(bus, 2)
    assert not await same_cluster(history, bus)
    loaded = await Loading(bus, due, "shadow", speed=50.0, scale=2).run()
    sent = [each for cell in (0, 1) for each in broker.messages(streams.rollout(cell).name)]
    submitted = [decode(each.payload) for each in sent if isinstance(decode(each.payload), m.RolloutSubmitted)]
    assert (loaded.rollouts, loaded.sandboxes, len(submitted)) == (8, 46, 8)
    names = {each.rollout for each in submitted if isinstance(each, m.RolloutSubmitted)}
    assert len(names) == 8
    assert not names & {"r0", "r1", "r2", "r3"}
    assert all(".shadow." in each.subject for each in sent)
    released = [decode(each.payload) for each in sent if isinstance(decode(each.payload), m.RolloutReleased)]
    assert len(released) == 8
    for wrong in ({"speed": 0.0}, {"scale": 0}):
        with pytest.raises(BadValueError):
            Loading(bus, due, "shadow", **wrong)
