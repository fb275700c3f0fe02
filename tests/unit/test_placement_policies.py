"""Placement: exact room of every kind, labels, groups that stay together, hedges, draining, pace."""

from collections import Counter
from typing import Any

import pytest

from shoal.machine import ranges
from shoal.machine.core import Cause
from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m
from shoal_placement.core.fleet import pace_class
from shoal_placement.core.placement import PARKED_MS, PlacementCore

GIB = 2**30
HOST = m.Snapshot("host", "host")


class Fleet:
    """A core and the nodes that have joined it."""

    def __init__(self, policy: str = "soonest") -> None:
        self.core = PlacementCore(0, policy)
        self.now = 1_000

    def __call__(self, message: Any, passes_ms: int = 1) -> list[Any]:
        self.now += passes_ms
        effects = self.core.handle(message, Cause("S", self.now, self.now))
        self.core.check()
        copy = PlacementCore(0)
        copy.load(self.core.dump())
        assert copy.dump() == self.core.dump()
        return [effect.message for effect in effects]  # type: ignore[union-attr]  # all of them are Publish

    def join(self, name: str, rate: float = 100.0, isolation: str = "zygote", **spec: Any) -> list[Any]:
        values = {"slots": 8, "memory": 8 * GIB, **spec}
        return self(m.ExecutorJoined(f"e-{name}", "b", isolation, (m.NodeSpec(name, **values),), rate))

    def place(self, n: int, rollout: str = "r", attempt: int = 0, *, together: bool = False, **spec: Any) -> list[Any]:
        asked = m.RolloutSpec("host", n, resources=spec.pop("resources", m.Resources(memory=GIB)), **spec)
        return self(
            m.PlaceRequested(
                rollout, "t", "u", 0, attempt, ranges.whole(n), asked, HOST, 10**12, together=together
            )
        )  # fmt: skip

    def release(self, name: str, indices: m.Ranges, rollout: str = "r", attempt: int = 0) -> list[Any]:
        return self(m.SlotsReleased(f"e-{name}", "b", name, rollout, attempt, indices))


def started(said: list[Any]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for each in said:
        if isinstance(each, m.StartSandboxes):
            found[each.node] += ranges.count(each.indices)
    return dict(found)


@pytest.mark.parametrize(
    ("room", "resources"),
    [
        ({"slots": 3}, {}),
        ({"memory": 3 * GIB}, {}),
        ({"cpu_milli": 7_000}, {"cpu_milli": 2_000}),
        ({"disk": 3 * GIB}, {"disk": GIB}),
    ],
)
def test_no_kind_of_room_is_promised_twice(room: dict[str, Any], resources: dict[str, Any]) -> None:
    fleet = Fleet()
    fleet.join("n", **room)
    assert started(fleet.place(8, resources=m.Resources(memory=GIB, **resources))) == {"n": 3}
    assert started(fleet.release("n", ((1, 2),))) == {"n": 2}


def test_a_group_is_not_cut_finer_than_anybody_would_notice() -> None:
    for rate, shares in ((100.0, [3, 3]), (1_200.0, [6]), (20_000.0, [6])):
        fleet = Fleet()
        fleet.join("a", rate)
        fleet.join("b", rate)
        assert sorted(started(fleet.place(6)).values()) == shares


def test_nodes_are_told_apart_by_their_labels() -> None:
    fleet = Fleet()
    fleet.join("a", labels=(("zone", "a"),))
    fleet.join("b", labels=(("zone", "b"), ("disk", "fast")))
    assert started(fleet.place(2, labels=(("disk", "fast"),))) == {"b": 2}
    capacity = fleet.join("c", isolation="gvisor", labels=(("zone", "a"),))[0]
    assert [(pool.isolation, pool.labels, pool.total.slots) for pool in capacity.pools] == [
        ("gvisor", (("zone", "a"),), 8), ("zygote", (("disk", "fast"), ("zone", "b")), 8),
        ("zygote", (("zone", "a"),), 8),
    ]  # fmt: skip


def test_a_group_is_spread_over_zones_as_far_as_there_is_room() -> None:
    fleet = Fleet()
    for number in range(4):
        fleet.join(f"a{number}", labels=(("zone", "a"),))
    fleet.join("b", labels=(("zone", "b"),), slots=4)
    fleet.join("c", labels=(("zone", "c"),), slots=2)
    said = started(fleet.place(12, spread_over="zone"))
    zones = Counter({zone: sum(count for node, count in said.items() if node[0] == zone) for zone in "abc"})
    assert zones == {"a": 6, "b": 4, "c": 2}
    said = started(fleet.place(4, "r2", spread_over="zone"))
    assert sum(count for node, count in said.items() if node[0] == "a") == 4


def test_what_belongs_together_is_placed_whole_or_not_at_all() -> None:
    fleet = Fleet()
    fleet.join("n1")
    fleet.join("n2")
    fleet.place(10, "other")
    assert started(fleet.place(8, together=True)) == {}
    assert started(fleet.place(6, "small", resources=m.Resources(memory=GIB // 2))) != {}
    fleet.release("n1", ((0, 5),), "other")
    fleet.release("n2", ((0, 10),), "other")
    assert sum(started(fleet.release("n1", ((5, 5),), "other")).values()) in (0, 8)


def test_what_finds_no_room_for_a_while_goes_back_to_the_queue() -> None:
    fleet = Fleet()
    fleet.join("n")
    fleet.place(8, "other")
    assert fleet.place(2) == []
    assert fleet.core.wake_at_ms() == fleet.now + PARKED_MS
    (back,) = fleet(m.Tick(fleet.now), PARKED_MS)
    assert back == m.SandboxesEnded(
        "r", 0, ((0, 2),), "", m.EndReason.PREEMPTED, "there was no room for it after all"
    )  # fmt: skip


def test_a_hedge_goes_to_another_node_or_nowhere() -> None:
    fleet = Fleet()
    fleet.join("n1")
    fleet.place(2)
    said = fleet.place(2, attempt=HEDGE)
    assert started(said) == {}
    (back,) = [each for each in said if isinstance(each, m.SandboxesEnded)]  # it is hedged again while it is late
    assert (back.attempt, back.indices, back.reason) == (HEDGE, ((0, 2),), m.EndReason.PREEMPTED)
    fleet.join("n2")
    assert started(fleet.place(2, "r2")) == {"n2": 2}
    assert started(fleet.place(2, "r2", attempt=HEDGE)) == {"n1": 2}
    (destroy,) = fleet(m.ReleaseRequested("r2", ((0, 2),), m.EndReason.RELEASED, 0))
    assert (destroy.attempt, destroy.boot) == (0, "b")


def test_a_slow_node_is_found_out_by_what_it_reports() -> None:
    fleet = Fleet()
    fleet.join("slow", slots=100, memory=100 * GIB)
    fleet.join("fast", slots=100, memory=100 * GIB)
    assert started(fleet.place(20)) == {"slow": 10, "fast": 10}
    for number in range(1, 11):
        fleet(m.ExecutorBeat("e-slow", "b", 10, 0, 10 * number, 10 * number * 90))
        fleet(m.ExecutorBeat("e-fast", "b", 10, 0, 10 * number, 10 * number * 10))
    said = started(fleet.place(40, "r2"))
    assert said["fast"] >= 8 * said["slow"]


def test_a_start_queue_is_not_filled_beyond_its_throttle() -> None:
    fleet = Fleet()
    fleet.join("n", rate=1.0, slots=100, memory=100 * GIB)
    assert started(fleet.place(40)) == {"n": 11}  # what it starts in 10 s
    assert fleet.core.wake_at_ms() is not None
    assert started(fleet.join("n2", slots=100, memory=100 * GIB)) == {"n2": 29}


def test_a_drained_node_takes_nothing_more_and_lets_sleep_what_can() -> None:
    fleet = Fleet()
    fleet.join("n1")
    fleet.join("n2")
    fleet.place(4)
    said = fleet(m.NodeDrained("n1", drained=True, hibernate=True))
    (preempt,) = [each for each in said if isinstance(each, m.PreemptSandboxes)]
    assert (preempt.rollout, ranges.count(preempt.indices), preempt.how) == ("r", 2, m.OnPreempted.HIBERNATE)
    assert [each.slots for each in said if isinstance(each, m.CellCapacity)] == [8]
    assert set(started(fleet.place(4, "r2"))) == {"n2"}
    fleet(m.ExecutorJoined("e-n1", "b2", "zygote", (m.NodeSpec("n1", 8, 8 * GIB),)))  # it restarts, and stays drained
    assert set(started(fleet.place(2, "r3"))) == {"n2"}
    fleet(m.NodeDrained("n1", drained=False))
    assert set(started(fleet.place(4, "r4"))) == {"n1"}


def test_making_room_takes_what_waits_and_asks_for_what_runs() -> None:
    fleet = Fleet()
    fleet.join("n", slots=2)
    fleet.place(4)
    said = fleet(m.PreemptRequested("r", 0, ((0, 4),), m.OnPreempted.RESTART))
    (back,) = [each for each in said if isinstance(each, m.SandboxesEnded)]
    assert (back.indices, back.reason) == (((2, 2),), m.EndReason.PREEMPTED)
    (order,) = [each for each in said if isinstance(each, m.PreemptSandboxes)]
    assert (order.indices, order.how) == (((0, 2),), m.OnPreempted.RESTART)


def test_chance_is_there_to_compare_with() -> None:
    fleet = Fleet("random")
    for number in range(20):
        fleet.join(f"n{number}")
    said = started(fleet.place(60))
    assert sum(said.values()) == 60
    assert max(said.values()) > 3
    assert started(fleet.place(200, "r2"))
    assert sum(node.slots for e in fleet.core._executors.values() for node in e.by_number) == 0


def test_paces_are_told_apart_in_steps_of_a_quarter() -> None:
    assert pace_class(10.0) == pace_class(10.1)
    assert len({pace_class(2.0 ** (step / 4)) for step in range(40)}) >= 30
    assert pace_class(0.0) < pace_class(1.0)


def test_an_executor_whose_nodes_are_all_drained_and_empty_may_leave() -> None:
    fleet = Fleet()
    fleet.join("n1")
    fleet.place(2)
    assert not [each for each in fleet(m.NodeDrained("n1", drained=True)) if isinstance(each, m.ExecutorDismissed)]
    assert fleet(m.SlotsReleased("e-n1", "b", "n1", "r", 0, ((0, 1),))) == []
    said = fleet(m.SlotsReleased("e-n1", "b", "n1", "r", 0, ((1, 1),)))
    assert [each for each in said if isinstance(each, m.ExecutorDismissed)] == [m.ExecutorDismissed("b")]
    again = fleet(m.ExecutorJoined("e-n1", "b2", "zygote", (m.NodeSpec("n1", 8, 8 * GIB),)))
    assert [each for each in again if isinstance(each, m.ExecutorDismissed)] == [m.ExecutorDismissed("b2")]
    fleet(m.NodeDrained("n1", drained=False))
    beat = m.ExecutorJoined("e-n1", "b2", "zygote", (m.NodeSpec("n1", 8, 8 * GIB),))
    assert not [each for each in fleet(beat) if isinstance(each, m.ExecutorDismissed)]
