"""Placement: what a fleet that changes does to those that wait, and to what is told of it."""

import math
from typing import Any

import pytest

from shoal.machine import ranges
from shoal.machine.core import LawBrokenError
from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m
from shoal.wire.codec import decode, encode
from shoal_placement.core.placement import PARKED_MS
from shoal_placement.core.roster import SILENCE_MS
from unit.test_placement_policies import GIB, Fleet, started


def told(said: list[Any]) -> list[m.CellCapacity]:
    return [each for each in said if isinstance(each, m.CellCapacity)]


def ended(said: list[Any]) -> list[m.SandboxesEnded]:
    return [each for each in said if isinstance(each, m.SandboxesEnded)]


def test_of_a_drained_node_what_is_held_there_counts_until_it_is_gone() -> None:
    fleet = Fleet()
    fleet.join("a", cpu_milli=8_000)
    fleet.place(8, resources=m.Resources(memory=GIB, cpu_milli=500))
    fleet.join("b", cpu_milli=8_000)
    (capacity,) = told(fleet(m.NodeDrained("a", drained=True)))
    open_, held = capacity.pools
    assert (capacity.nodes, capacity.slots) == (1, 8)
    assert (open_.nodes, open_.total) == (1, m.Room(8, 8 * GIB, 8_000))
    assert (held.nodes, held.largest) == (0, m.Room(0)), "it is no offer"
    assert (held.total.slots, held.total.memory, held.total.cpu_milli) == (8, 8 * GIB, 4_000)
    assert told(fleet.release("a", ((0, 3),))) == told(fleet.release("a", ((3, 2),))) == [], "not at each of them"
    assert fleet.core.wake_at_ms() == fleet.now + 1_000 - 1
    (capacity,) = told(fleet(m.Tick(fleet.now), 1_000))
    assert (capacity.pools[1].total.slots, capacity.pools[1].total.cpu_milli) == (3, 1_500)
    fleet.release("a", ((5, 3),))
    (capacity,) = told(fleet(m.Tick(fleet.now), 1_000))
    assert capacity.pools == (open_,)
    assert told(fleet(m.Tick(fleet.now), 1_000)) == [], "nothing has changed"


def test_what_is_there_now_is_told_before_what_ended_because_of_it() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.place(2)
    assert [type(each) for each in fleet(m.ExecutorLeft("e-a", "b"))] == [m.CellCapacity, m.SandboxesEnded]


@pytest.mark.parametrize("leaves", [True, False])
def test_what_only_a_lost_node_could_hold_waits_for_it(*, leaves: bool) -> None:
    fleet = Fleet()
    fleet.join("small")
    fleet.join("large", memory=64 * GIB)
    large: dict[str, Any] = {"resources": m.Resources(memory=32 * GIB)}
    assert started(fleet.place(1, **large)) == {"large": 1}
    if leaves:
        fleet(m.ExecutorLeft("e-large", "b"))
    else:
        fleet(m.ExecutorBeat("e-small", "b"), SILENCE_MS)
        assert ended(fleet(m.Tick(fleet.now)))[0].reason is m.EndReason.NODE_LOST
        fleet(m.ExecutorBeat("e-small", "b"))
    assert fleet.place(1, attempt=1, **large) == [], "it waits"
    (back,) = ended(fleet(m.Tick(fleet.now), PARKED_MS))
    assert (back.reason, back.node) == (m.EndReason.PREEMPTED, ""), "which counts as no attempt"
    fleet.place(1, "r2", attempt=1, **large)
    said = fleet(m.ExecutorJoined("e-large", "b2", "zygote", (m.NodeSpec("large", 8, 64 * GIB),)))
    assert started(said) == {"large": 1}


def test_an_executor_that_left_is_not_counted_on_for_ever() -> None:
    fleet = Fleet()
    fleet.join("small")
    fleet.join("large", memory=64 * GIB)
    fleet(m.ExecutorLeft("e-large", "b"))
    for _ in range(3_600):
        fleet(m.ExecutorBeat("e-small", "b"), 1_000)
    fleet(m.Tick(fleet.now))
    (end,) = ended(fleet.place(1, resources=m.Resources(memory=32 * GIB)))
    assert end.reason is m.EndReason.START_FAILED
    assert end.detail == f"it asks for {32 * GIB} bytes of memory, and the largest node that would do has {8 * GIB}"


def test_the_largest_node_is_said_of_those_that_would_do_otherwise() -> None:
    fleet = Fleet()
    fleet.join("memory", memory=64 * GIB, cpu_milli=1_000)
    fleet.join("cpu", memory=8 * GIB, cpu_milli=64_000)
    (end,) = ended(fleet.place(1, resources=m.Resources(memory=32 * GIB, cpu_milli=2_000)))
    assert end.detail == f"it asks for {32 * GIB} bytes of memory, and the largest node that would do has {8 * GIB}"


@pytest.mark.parametrize(
    "offer",
    [
        {"executor": "node.7"},
        {"starts_per_s": math.inf},
        {"starts_per_s": math.nan},
        {"starts_per_s": 5e-324},
        {"starts_per_s": 0.0},
        {"nodes": (m.NodeSpec("n", 8, 2**62),)},
        {"nodes": (m.NodeSpec("n", -1, GIB),)},
        {"nodes": (m.NodeSpec("n", 8, GIB), m.NodeSpec("n", 8, GIB))},
    ],
)
def test_an_offer_that_makes_no_sense_changes_nothing(offer: dict[str, Any]) -> None:
    fleet = Fleet()
    fleet.join("a")
    before = fleet.core.dump()
    values = {
        "executor": "e", "boot": "b", "isolation": "zygote", "nodes": (m.NodeSpec("n", 8, GIB),), "starts_per_s": 1.0,
    }  # fmt: skip
    with pytest.raises(LawBrokenError):
        fleet(m.ExecutorJoined(**{**values, **offer}))
    assert fleet.core.dump() == before


def test_what_many_large_nodes_have_together_can_be_said() -> None:
    fleet = Fleet()
    nodes = tuple(m.NodeSpec(f"n{number}", 8, 2**53) for number in range(2_048))
    (capacity,) = told(fleet(m.ExecutorJoined("e", "b", "zygote", nodes, 1.0)))
    assert decode(encode(capacity)) == capacity
    assert capacity.pools[0].total.memory == 2**62


def test_a_gang_that_finds_no_room_leaves_start_queues_as_they_were() -> None:
    fleet = Fleet()
    fleet.join("n", rate=20.0)
    fleet.place(2)
    fleet(m.ExecutorBeat("e-n", "b"), 1_000)
    for number in range(60):
        fleet.place(7, f"gang{number}", together=True, resources=m.Resources(memory=GIB + 1))
    queue_ms = max(fleet.core._executors["e-n"].busy_until_ms - fleet.now, 0)  # its one other trace is when starts come
    assert queue_ms == 0
    assert started(fleet.place(1, "r1")) == {"n": 1}


def test_those_behind_a_gang_that_is_given_back_are_tried() -> None:
    fleet = Fleet()
    fleet.join("n")
    fleet.place(2)
    assert fleet.place(7, "gang", together=True) == []
    assert started(fleet.place(1, "r1")) == {}, "its turn is after the gang's"
    fleet.now += PARKED_MS
    said = fleet(m.Tick(fleet.now))
    assert [end.rollout for end in ended(said)] == ["gang"]
    assert started(said) == {"n": 1}


def test_nobody_stands_behind_a_hedge() -> None:
    fleet = Fleet()
    fleet.join("n", slots=100, memory=100 * GIB)
    fleet.place(20)
    (back,) = ended(fleet.place(20, attempt=HEDGE))
    assert (back.attempt, back.reason) == (HEDGE, m.EndReason.PREEMPTED)
    assert started(fleet.place(8, "r1")) == {"n": 8}


def test_what_ended_or_was_lost_no_longer_counts_where_a_group_is_spread() -> None:
    fleet = Fleet()
    for zone in ("1", "2"):
        fleet.join(f"n{zone}", slots=100, memory=100 * GIB, labels=(("rack", "1"), ("zone", zone)))
    said = fleet.place(20, spread_over="zone")
    assert started(said) == {"n1": 10, "n2": 10}
    (there,) = [each for each in said if isinstance(each, m.StartSandboxes) and each.node == "n2"]
    assert ranges.count(there.indices) == 10
    fleet.release("n2", ranges.take(there.indices, 8)[0])
    assert started(fleet.place(8, attempt=1, spread_over="zone")) == {"n2": 8}
    node = m.NodeSpec("n1", 100, 100 * GIB, labels=(("rack", "1"), ("zone", "1")))
    fleet(m.ExecutorJoined("e-n1", "b2", "zygote", (node,), 100.0))
    assert started(fleet.place(10, attempt=2, spread_over="zone")) == {"n1": 10}


def test_a_beat_that_tells_of_a_shorter_queue_places_those_that_wait_for_it() -> None:
    fleet = Fleet()
    fleet.join("n", rate=0.5, slots=300, memory=300 * GIB)
    first = started(fleet.place(100))["n"]
    assert first < 100, "the others wait until its start queue is shorter"
    said = fleet(m.ExecutorBeat("e-n", "b", first, 0, first, first * 10), 1_000)
    assert started(said)["n"] > 0
