"""The scheduler's policies: each event in, exactly what follows."""

from typing import Any

import msgspec
import pytest

from shoal.client.fold import RolloutFold
from shoal.machine.core import Cause, LawBrokenError
from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m
from shoal_scheduler.core.dispatch import PATIENCE_MS
from shoal_scheduler.core.order import SLACK
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_scheduler.core.stragglers import LEAST_MS

GIB = 2**30
HOST = m.Snapshot("host", "host")


class Cell:
    """A core in a cell of so many slots of 1 GiB."""

    def __init__(self, slots: int = 8, order: str = "fair", pools: tuple[m.Pool, ...] = ()) -> None:
        self.core = SchedulerCore(0, order=order)
        self.now = 1_000
        self.names = 0
        room = m.Room(slots, slots * GIB)
        pools = pools or (m.Pool("zygote", (), 4, room, room),)
        isolations = tuple(sorted({pool.isolation for pool in pools}))
        self(m.CellCapacity(slots, 4, isolations, pools))

    def __call__(self, message: Any, passes_ms: int = 0) -> list[Any]:
        self.now += passes_ms
        effects = self.core.handle(message, Cause("S", self.now, self.now))
        self.core.check()
        return [effect.message for effect in effects]  # type: ignore[union-attr]  # all of them are Publish

    def submit(
        self, n: int, tenant: str = "t", run: str = "u", memory: int = GIB, cpu_milli: int = 1000, **spec: Any
    ) -> list[Any]:
        name, self.names = f"r{self.names}", self.names + 1
        asked = m.RolloutSpec("host", n, resources=m.Resources(memory, cpu_milli), **spec)
        said = self(m.RolloutSubmitted(name, tenant, run, asked))
        if any(isinstance(each, m.ResolveTemplate) for each in said):
            said = self(m.TemplateResolved(tenant, "host", HOST))
        return said

    def ready(self, name: str, indices: m.Ranges, attempt: int = 0, passes_ms: int = 10) -> list[Any]:
        return self(m.SandboxesReady(name, attempt, indices, "n", "e", "zygote"), passes_ms)

    def end(self, name: str, indices: m.Ranges, reason: m.EndReason, attempt: int = 0, node: str = "n") -> list[Any]:
        return self(m.SandboxesEnded(name, attempt, indices, node, reason, "why"))


def placed(said: list[Any]) -> list[tuple[str, int, m.Ranges]]:
    return [(each.rollout, each.attempt, each.indices) for each in said if isinstance(each, m.PlaceRequested)]


def of(said: list[Any], kind: type) -> Any:
    (found,) = [each for each in said if isinstance(each, kind)]
    return found


def test_a_gang_that_is_released_before_it_began_leaves_nobody_waiting() -> None:
    cell = Cell(8)
    assert placed(cell.submit(5, min_ready=2)) == [("r0", 0, ((0, 2),))]
    assert placed(cell(m.RolloutReleased("r0", ((0, 1),)))) == []  # the other one may still begin it
    (gang,) = [e for e in cell(m.RolloutReleased("r0", ((1, 1),))) if isinstance(e, m.PlaceRequested)]
    assert (gang.indices, gang.together) == (((2, 2),), True)
    (left,) = [e for e in cell(m.RolloutReleased("r0", ((2, 2),))) if isinstance(e, m.PlaceRequested)]
    assert (left.indices, left.together) == (((4, 1),), False)


def test_those_with_less_go_first_by_their_weight() -> None:
    cell = Cell()
    cell(m.TenantSet("big", m.Limits(weight=3.0)))
    cell.submit(8, "first")
    cell.submit(8, "big")
    cell.submit(8, "small")
    given = {"r1": 0, "r2": 0}
    for index in range(8):
        for rollout, _, indices in placed(cell.end("r0", ((index, 1),), m.EndReason.RELEASED)):
            given[rollout] += sum(count for _, count in indices)
    assert given == {"r1": 6, "r2": 2}


@pytest.mark.parametrize(("first", "second", "shares"), [(1, 1, 32), (64, 64, 32), (1000, 1000, 32), (1000, 500, 42)])
def test_shares_go_by_weights_however_large_they_are(first: float, second: float, shares: int) -> None:
    cell = Cell(64)
    cell(m.TenantSet("a", m.Limits(weight=first)))
    cell(m.TenantSet("b", m.Limits(weight=second)))
    cell.submit(64, "before")
    cell.submit(128, "a")
    cell.submit(128, "b")
    for index in range(64):
        cell.end("r0", ((index, 1),), m.EndReason.RELEASED)
    assert cell.core.books.tenants["a"].used[0] == pytest.approx(shares, abs=64 * SLACK)
    assert sum(cell.core.books.tenants[name].used[0] for name in ("a", "b")) == 64


def test_a_runs_thousands_do_not_starve_anothers_eight() -> None:
    cell = Cell()
    cell.submit(1000, run="large")
    cell.submit(8, run="small")
    said = [placed(cell.end("r0", ((index, 1),), m.EndReason.RELEASED)) for index in range(4)]
    assert [each[0][0] for each in said] == ["r1"] * 4


def test_dominant_resource_is_what_counts() -> None:
    cell = Cell(8)
    cell.submit(8, "other")
    cell.submit(4, "memory", memory=2 * GIB)
    cell.submit(8, "slots")
    said: list[str] = []
    for index in range(8):
        said += [name for name, _, _ in placed(cell.end("r0", ((index, 1),), m.EndReason.RELEASED))]
    assert (said.count("r1"), said.count("r2")) == (2, 4)  # half of the memory each


def test_a_queue_has_its_bound_and_says_when_to_come_back() -> None:
    cell = Cell()
    cell(m.TenantSet("t", m.Limits(waiting=10)))
    cell.submit(10)
    rejected = of(cell.submit(9), m.RolloutRejected)
    assert (rejected.code, rejected.retry_after_ms >= 1000) == ("queue_full", True)
    assert "2 sandboxes of tenant 't' wait already, and 10 may" in rejected.detail


def test_who_waits_for_more_than_any_node_has_is_told_that_and_promised_no_start() -> None:
    two = m.Room(16, 16 * GIB, 0, 100 * GIB)
    cell = Cell(pools=(
        m.Pool("zygote", (), 2, two, m.Room(8, 8 * GIB, 0, 50 * GIB)),
        m.Pool("gvisor", (), 2, two, m.Room(8, 12 * GIB, 0, 50 * GIB)),
    ))  # fmt: skip
    cell.submit(20)
    cell.end("r0", ((0, 10),), m.EndReason.RELEASED)  # a pace is known
    told = of(cell.submit(1, memory=500 * GIB), m.RolloutQueued)
    assert told.reason == (
        "waiting for 1 slot of 500 GiB: each takes 500 GiB of memory, and the largest node has 12 GiB of memory"
    )
    assert told.start_ms == 0
    told = of(cell.submit(2, memory=10 * GIB, isolation="zygote", min_ready=2), m.RolloutQueued)
    assert told.reason == (
        "waiting for 2 slots of 10 GiB on nodes with zygote:"
        " each takes 10 GiB of memory, and the largest node has 8 GiB of memory"
    )
    whole = m.Room(8, 8 * GIB, 4000)
    cell(m.CellCapacity(8, 1, ("zygote",), (m.Pool("zygote", (), 1, whole, whole),)))
    told = of(cell.submit(1, cpu_milli=64_500), m.RolloutQueued)
    assert told.reason.endswith("each takes 64.5 cpus, and the largest node has 4 cpus")


def test_who_waits_is_told_why_behind_whom_and_until_when() -> None:
    cell = Cell(pools=(m.Pool("gvisor", (("zone", "a"),), 1, m.Room(8, 8 * GIB), m.Room(8, 8 * GIB)),))
    cell.submit(8)
    told = of(cell.submit(120, isolation="gvisor", labels=(("zone", "a"),)), m.RolloutQueued)
    assert told.reason == "waiting for 120 slots of 1 GiB on nodes with gvisor, zone=a"
    assert (told.ahead, told.waiting, told.start_ms) == (0, 120, 0)
    cell.end("r0", ((0, 4),), m.EndReason.RELEASED)
    told = of(cell.submit(10), m.RolloutQueued)
    assert (told.ahead, told.waiting) == (116, 10)
    assert told.start_ms > cell.now
    cell(m.TenantSet("t2", m.Limits(sandboxes=1)))
    assert of(cell.submit(2, "t2"), m.RolloutQueued).reason.startswith("waiting for 2 slots")
    cell(m.CellCapacity(0, 0, ()))
    assert "no node is alive" in of(cell.submit(1, "t3"), m.RolloutQueued).reason


def test_a_quota_holds_and_can_be_changed() -> None:
    cell = Cell()
    cell(m.TenantSet("t", m.Limits(sandboxes=2, memory=4 * GIB)))
    said = cell.submit(4)
    assert placed(said) == [("r0", 0, ((0, 2),))]
    assert "quota of 2 sandboxes is used up" in of(said, m.RolloutQueued).reason
    assert placed(cell(m.TenantSet("t", m.Limits(sandboxes=3)))) == [("r0", 0, ((2, 1),))]
    assert of(cell.submit(4, min_ready=4), m.RolloutRejected).code == "quota"
    with pytest.raises(LawBrokenError, match="weight"):
        cell(m.TenantSet("t", m.Limits(weight=0.0)))


@pytest.mark.parametrize(
    "limits",
    [
        m.Limits(starts_per_s=1e308),
        m.Limits(starts_per_s=float("nan")),
        m.Limits(starts_per_s=float("inf")),
        m.Limits(starts_per_s=1e9 + 1),
        m.Limits(starts_per_s=-1.0),
        m.Limits(weight=float("nan")),
        m.Limits(memory=2**60),
    ],
)
@pytest.mark.parametrize("kind", ["set", "limited"])
def test_limits_that_cannot_be_kept_to_break_a_law(limits: m.Limits, kind: str) -> None:
    cell = Cell()
    before = cell.core.dump()
    with pytest.raises(LawBrokenError, match="cannot be used"):
        cell(m.TenantSet("t", limits) if kind == "set" else m.TenantLimited("t", limits, 1))
    assert cell.core.dump() == before


def test_a_rate_holds() -> None:
    cell = Cell()
    cell(m.TenantSet("t", m.Limits(starts_per_s=2.0)))
    assert len(placed(cell.submit(6))) == 1
    counts = []
    for _ in range(10):
        said = placed(cell(m.Tick(cell.now), 100))
        counts.append(sum(count for _, _, indices in said for _, count in indices))
    assert sum(counts) == 2


def test_a_gang_that_waits_for_its_rate_is_looked_at_when_all_of_it_may_start() -> None:
    cell = Cell(1000)
    cell(m.TenantSet("t", m.Limits(starts_per_s=100.0)))
    for _ in range(2):
        cell.submit(100, min_ready=100)
    ticks = 0
    while cell.core.books.waiting.lines:
        due = cell.core.wake_at_ms()
        assert due is not None
        cell(m.Tick(due), max(due - cell.now, 1))
        ticks += 1
    assert cell.now >= 2_000
    assert ticks <= 4  # one for each gang, and what the queue is told once a second


def test_what_is_due_together_is_taken_without_comparing_each_to_each() -> None:
    class Name(str):
        """It counts how often it was compared."""

        compared = 0

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    books = Cell().core.books
    names = [Name(f"r{number}") for number in range(1_000)]
    for number, name in enumerate(names):
        books.at(number, "deadline", name)
        books.at(5_000 + number, "deadline", name)
    assert books.due(10_000) == [("deadline", name) for name in names]
    assert Name.compared < 10 * len(names)


def test_a_gang_starts_whole_and_room_is_kept_for_it() -> None:
    cell = Cell()
    cell.submit(6)
    told = of(cell.submit(4, "g", min_ready=4), m.RolloutQueued)
    assert told.reason == "waiting for 4 slots of 1 GiB at once"
    assert placed(cell.submit(3)) == []  # it would take the gang's room, and nobody knows for how long
    assert placed(cell.end("r0", ((0, 1),), m.EndReason.RELEASED)) == []
    (gang,) = [e for e in cell.end("r0", ((1, 1),), m.EndReason.RELEASED) if isinstance(e, m.PlaceRequested)]
    assert (gang.rollout, gang.indices, gang.together) == ("r1", ((0, 4),), True)
    again = cell(m.SandboxesEnded("r1", 0, ((0, 4),), "", m.EndReason.PREEMPTED))  # placement found no room
    assert not [each for each in placed(again) if each[0] == "r1"]
    said = cell(m.Tick(cell.now), 1_000)
    (gang,) = [each for each in said if isinstance(each, m.PlaceRequested)]
    assert (gang.rollout, gang.attempt, gang.indices, gang.together) == ("r1", 1, ((0, 4),), True)


def test_what_is_done_in_time_may_use_the_room_that_is_kept() -> None:
    cell = Cell()
    job = (m.Command(("true",)),)
    cell.submit(1, commands=job)
    result = m.SandboxResult(0, m.CommandResult(0), 5_000_000)
    cell(m.SandboxesFinished("r0", 0, "n", "e", "zygote", (result,)))  # its like run for 5 s
    cell.submit(6)
    cell.submit(4, "g", min_ready=4)
    assert placed(cell.submit(2, commands=job)) == [("r3", 0, ((0, 2),))]
    cell.end("r3", ((0, 2),), m.EndReason.COMMAND_FAILED)
    cell(m.Tick(cell.now), PATIENCE_MS)
    assert placed(cell.submit(2, commands=job)) == []  # it was overtaken for long enough


def test_the_first_of_a_rollout_come_together_and_the_others_follow() -> None:
    cell = Cell()
    assert placed(cell.submit(6, min_ready=2)) == [("r0", 0, ((0, 2),))]
    assert placed(cell.ready("r0", ((0, 1),))) == [("r0", 0, ((2, 4),))]


def test_what_starts_late_starts_elsewhere_too_and_the_first_counts() -> None:
    cell = Cell()
    cell.submit(8)
    for index in range(7):
        cell.ready("r0", ((index, 1),), passes_ms=10)
    said = cell(m.Tick(cell.now), LEAST_MS + 100)
    assert not [each for each in said if isinstance(each, m.SandboxesHedged)]  # there is no room for a second
    cell.end("r0", ((0, 1),), m.EndReason.RELEASED)
    hedged = of(cell(m.Tick(cell.now), LEAST_MS + 100), m.SandboxesHedged)
    assert hedged == m.SandboxesHedged("r0", 0, HEDGE, ((7, 1),))
    assert placed(cell(hedged)) == [("r0", HEDGE, ((7, 1),))]
    copy = SchedulerCore(0)
    copy.load(cell.core.dump())
    cell.core = copy
    said = cell.ready("r0", ((7, 1),), HEDGE)
    assert m.ReleaseRequested("r0", ((7, 1),), m.EndReason.RELEASED, 0) in said
    assert not cell.core.books.rollouts["r0"].starting  # nothing can be late any more
    assert cell.ready("r0", ((7, 1),), 0) == []  # the other is never seen
    assert cell.core.books.rollouts["r0"].ledger.attempt(7) == HEDGE


def test_hedges_keep_to_the_quota() -> None:
    cell = Cell(100)
    cell(m.TenantSet("t", m.Limits(sandboxes=20)))
    cell.submit(20)
    cell.ready("r0", ((0, 18),))
    assert not any(isinstance(each, m.SandboxesHedged) for each in cell(m.Tick(cell.now), LEAST_MS))
    cell.end("r0", ((0, 1),), m.EndReason.RELEASED)
    hedged = of(cell(m.Tick(cell.now), LEAST_MS), m.SandboxesHedged)
    assert hedged.indices == ((18, 1),)
    assert cell.core.books.tenants["t"].owned[0] == 20
    assert placed(cell.submit(1)) == []  # until it is read back, too
    assert placed(cell(hedged)) == [("r0", HEDGE, ((18, 1),))]
    assert cell.core.books.tenants["t"].owned[0] == 20


def test_hedges_are_starts_of_which_a_tenant_has_so_many_a_second() -> None:
    cell = Cell(100)
    cell(m.TenantSet("t", m.Limits(starts_per_s=20.0)))
    cell.submit(20)
    cell.ready("r0", ((0, 16),), passes_ms=0)
    tenant = cell.core.books.tenants["t"]
    tenant.starts, tenant.starts_ms = 0.0, cell.now + LEAST_MS - 50  # it has started others meanwhile
    hedged = of(cell(m.Tick(cell.now), LEAST_MS), m.SandboxesHedged)
    assert hedged.indices == ((16, 1),)  # of two that its size allows
    assert tenant.starts == 0.0
    assert placed(cell.submit(1)) == []  # a hedge counts before it is read back
    assert placed(cell(hedged)) == [("r0", HEDGE, ((16, 1),))]  # and not once more
    assert tenant.starts == 0.0
    assert placed(cell(m.Tick(cell.now), 50)) == [("r1", 0, ((0, 1),))]


def test_what_may_start_nothing_now_is_hedged_when_it_may() -> None:
    cell = Cell(100)
    cell(m.TenantSet("t", m.Limits(starts_per_s=10.0)))
    cell.submit(10)
    cell.ready("r0", ((0, 9),), passes_ms=0)
    tenant = cell.core.books.tenants["t"]
    tenant.starts, tenant.starts_ms = -9.5, cell.now
    assert not [each for each in cell(m.Tick(cell.now), LEAST_MS) if isinstance(each, m.SandboxesHedged)]
    assert of(cell(m.Tick(cell.now), LEAST_MS), m.SandboxesHedged).indices == ((9, 1),)


def test_of_several_that_are_late_at_once_no_more_are_hedged_than_a_quota_allows() -> None:
    cell = Cell(100)
    cell(m.TenantSet("t", m.Limits(sandboxes=21)))
    for name in ("r0", "r1"):
        cell.submit(10)
        cell.ready(name, ((0, 9),), passes_ms=0)
    said = cell(m.Tick(cell.now), LEAST_MS)
    assert len([each for each in said if isinstance(each, m.SandboxesHedged)]) == 1


def test_what_is_kept_for_a_hedge_is_free_again_when_there_is_no_use_for_it() -> None:
    cell = Cell(10)
    cell.submit(10)
    cell.end("r0", ((0, 1),), m.EndReason.RELEASED)
    cell.ready("r0", ((1, 8),), passes_ms=0)
    hedged = of(cell(m.Tick(cell.now), LEAST_MS), m.SandboxesHedged)
    cell.ready("r0", ((9, 1),), passes_ms=0)  # it is there before that is read back
    assert cell.core.books.rooms.given == 10
    assert placed(cell.submit(1)) == []
    assert placed(cell(hedged)) == [("r1", 0, ((0, 1),))]
    assert placed(cell(hedged)) == []
    assert cell.core.books.rooms.given == 10


def test_what_is_kept_for_a_hedge_is_free_again_with_the_end_of_its_rollout() -> None:
    cell = Cell(20)
    cell.submit(10)
    cell.ready("r0", ((0, 9),), passes_ms=0)
    hedged = of(cell(m.Tick(cell.now), LEAST_MS), m.SandboxesHedged)
    cell(m.RolloutCancelled("r0"))
    assert cell.core.books.rooms.given == 0
    assert placed(cell(hedged)) == []
    assert cell.core.books.rooms.given == 0


def test_late_is_twice_as_long_as_95_of_100_of_the_first_256_took() -> None:
    cell = Cell(512)
    cell.submit(400)
    for first, count in ((0, 240), (240, 10), (250, 100), (350, 1)):
        cell.ready("r0", ((first, count),), passes_ms=1000)
    rollout = cell.core.books.rollouts["r0"]
    assert rollout.took_ms == [(1000, 240), (2000, 10), (3000, 6)]
    submitted_ms = cell.now - 4000
    assert rollout.hedge_ms == submitted_ms + 2000  # as it was when half of them were there
    cell(m.Tick(cell.now), 1)
    assert rollout.hedge_ms == cell.now + 4000


def test_a_hedge_that_fails_leaves_the_first() -> None:
    cell = Cell(16)
    cell.submit(8)
    cell.ready("r0", ((0, 7),))
    cell(of(cell(m.Tick(cell.now), 3_000), m.SandboxesHedged))
    assert placed(cell.end("r0", ((7, 1),), m.EndReason.START_FAILED, HEDGE)) == []
    assert not [e for e in cell(m.Tick(cell.now), 9_000) if isinstance(e, m.SandboxesHedged)]  # once is enough
    cell.ready("r0", ((7, 1),))
    assert cell.core.books.rollouts["r0"].ledger.ready_count() == 8


def test_higher_priority_goes_first_and_makes_room() -> None:
    cell = Cell()
    cell.submit(4, on_preempted=m.OnPreempted.RESTART)
    cell.submit(4, on_preempted=m.OnPreempted.HIBERNATE)
    cell.ready("r0", ((0, 4),))
    cell.ready("r1", ((0, 4),))
    said = cell.submit(2, priority=5)
    assert [e for e in said if isinstance(e, m.PreemptRequested)] == [
        m.PreemptRequested("r1", 0, ((2, 2),), m.OnPreempted.HIBERNATE)
    ]
    assert not [e for e in cell(m.Tick(cell.now)) if isinstance(e, m.PreemptRequested)]  # they were asked
    kept = m.Snapshot("kept", "host")
    said = cell(m.SandboxSlept("r1", 0, 3, "n", kept, True))
    assert placed(said) == [("r2", 0, ((0, 1),))]
    assert of(said, m.SandboxesWanted) == m.SandboxesWanted("r1", ((3, 1),))
    cell(m.SandboxesWanted("r1", ((3, 1),)))
    assert placed(cell.end("r0", ((0, 1),), m.EndReason.RELEASED)) == [("r2", 0, ((1, 1),))]
    (back,) = [e for e in cell.end("r0", ((1, 1),), m.EndReason.RELEASED) if isinstance(e, m.PlaceRequested)]
    assert (back.rollout, back.attempt, back.snapshot) == ("r1", 1, kept)


def test_nobody_gains_by_calling_everything_urgent() -> None:
    cell = Cell()
    cell.submit(4, "calm", on_preempted=m.OnPreempted.RESTART)
    cell.submit(4, "loud", on_preempted=m.OnPreempted.NEVER)
    said = cell.submit(4, "loud", priority=100)
    assert not [e for e in said if isinstance(e, m.PreemptRequested)]
    said = cell.submit(2, "third", priority=1)
    assert of(said, m.PreemptRequested).rollout == "r0"


def test_what_waits_when_its_rollouts_time_is_up_was_not_started_and_did_not_time_out() -> None:
    cell = Cell()
    cell.submit(6)
    cell.submit(4, timeout_ms=5_000)
    cell.ready("r1", ((0, 2),))
    concluded = of(cell(m.Tick(cell.now), 5_000), m.RolloutConcluded)
    counts = ((m.EndReason.TIMED_OUT, 2), (m.EndReason.NOT_STARTED, 2))
    assert concluded == m.RolloutConcluded("r1", counts, "timed_out", ((2, 2),))
    fold = RolloutFold("r1", "t", "u", m.RolloutSpec("host", 4, timeout_ms=5_000))
    fold.handle(m.RolloutSubmitted("r1", "t", "u", fold.spec), 1_000)
    fold.handle(m.SandboxesReady("r1", 0, ((0, 2),), "n", "e", "zygote"), 1_010)
    fold.handle(concluded, 6_000)
    assert fold.ledger.counts() == counts
    assert [each.infrastructure for each in sorted(fold.outcomes, key=lambda each: each.index)] == [
        False, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("reason", [m.EndReason.NODE_LOST, m.EndReason.PREEMPTED])
def test_what_ran_and_was_lost_has_none_of_its_rollouts_time(reason: m.EndReason) -> None:
    cell = Cell(2)
    cell.submit(2, timeout_ms=5_000, on_lost=m.OnLost.RESTART, max_attempts=9)
    cell.ready("r0", ((0, 1),))
    cell(m.CellCapacity(0, 0, ("zygote",)))
    cell.end("r0", ((0, 2),), reason, 0, "n1")
    kept, cell.core = cell.core.dump(), SchedulerCore(0)
    cell.core.load(kept)
    concluded = of(cell(m.Tick(cell.now), 5_000), m.RolloutConcluded)
    counts = ((m.EndReason.NOT_STARTED, 1), (m.EndReason.DEADLINE, 1))
    assert concluded == m.RolloutConcluded("r0", counts, "timed_out", ((1, 1),), ((0, 1),))


@pytest.mark.parametrize(("reason", "node"), [(m.EndReason.START_FAILED, "n1"), (m.EndReason.PREEMPTED, "")])
def test_what_was_sent_and_never_ran_is_not_started(reason: m.EndReason, node: str) -> None:
    cell = Cell(1)
    cell.submit(1, timeout_ms=5_000, max_attempts=9)
    cell(m.CellCapacity(0, 0, ("zygote",)))
    cell.end("r0", ((0, 1),), reason, 0, node)
    concluded = of(cell(m.Tick(cell.now), 5_000), m.RolloutConcluded)
    assert concluded == m.RolloutConcluded("r0", ((m.EndReason.NOT_STARTED, 1),), "timed_out", ((0, 1),))


@pytest.mark.parametrize(("slept_ms", "late"), [(10, True), (2_600, False)])
def test_what_sleeps_has_its_time_and_what_is_woken_waits_for_it(slept_ms: int, late: bool) -> None:
    cell = Cell(1)
    cell.submit(1, timeout_ms=5_000)
    cell.ready("r0", ((0, 1),))
    cell(m.SandboxSlept("r0", 0, 0, "n", HOST))
    cell(m.CellCapacity(0, 0, ("zygote",)))
    cell(m.SandboxesWanted("r0", ((0, 1),)), slept_ms)
    kept, cell.core = cell.core.dump(), SchedulerCore(0)
    cell.core.load(kept)
    concluded = of(cell(m.Tick(cell.now), 5_000), m.RolloutConcluded)
    reason, those = (m.EndReason.DEADLINE, ((0, 1),)) if late else (m.EndReason.TIMED_OUT, ())
    assert concluded == m.RolloutConcluded("r0", ((reason, 1),), "timed_out", (), those)


def test_what_sleeps_when_its_rollouts_time_is_up_is_waited_for_by_nobody() -> None:
    cell = Cell(2)
    cell.submit(2, timeout_ms=5_000)
    cell.ready("r0", ((0, 1),))
    cell.ready("r0", ((1, 1),), passes_ms=3_000)
    for index in (0, 1):
        cell(m.SandboxSlept("r0", 0, index, "n", HOST))
    concluded = of(cell(m.Tick(cell.now), 5_000), m.RolloutConcluded)
    counts = ((m.EndReason.TIMED_OUT, 1), (m.EndReason.DEADLINE, 1))
    assert concluded == m.RolloutConcluded("r0", counts, "timed_out", (), ((1, 1),))


def test_each_time_that_it_is_waited_for_counts() -> None:
    cell = Cell(2)
    cell.submit(2, timeout_ms=5_000)
    cell.ready("r0", ((0, 2),), passes_ms=1_500)
    for index, slept_ms, woke_ms in ((0, 300, 1_001), (1, 300, 1_000)):
        cell(m.SandboxSlept("r0", 0, index, "n", HOST))
        cell(m.SandboxesWanted("r0", ((index, 1),)), slept_ms)
        cell.ready("r0", ((index, 1),), attempt=1, passes_ms=woke_ms)
    kept, cell.core = cell.core.dump(), SchedulerCore(0)
    cell.core.load(kept)
    assert cell.core.dump() == kept
    concluded = of(cell(m.Tick(cell.now), 5_000), m.RolloutConcluded)
    counts = ((m.EndReason.TIMED_OUT, 1), (m.EndReason.DEADLINE, 1))
    assert concluded == m.RolloutConcluded("r0", counts, "timed_out", (), ((0, 1),))


def test_a_sleep_that_is_heard_of_before_its_readiness_says_that_it_was_there() -> None:
    cell = Cell(1)
    cell.submit(1, timeout_ms=5_000)
    cell(m.SandboxSlept("r0", 0, 0, "n", HOST), 4_000)
    concluded = of(cell(m.Tick(cell.now), 5_000), m.RolloutConcluded)
    assert concluded == m.RolloutConcluded("r0", ((m.EndReason.DEADLINE, 1),), "timed_out", (), ((0, 1),))


def test_who_was_there_for_half_of_the_time_has_a_verdict_and_the_others_are_the_platforms() -> None:
    cell = Cell()
    cell.submit(4, timeout_ms=5_000)
    cell.ready("r0", ((0, 1),), passes_ms=2_500)
    cell.ready("r0", ((1, 2),), passes_ms=1)
    said = cell(m.Tick(cell.now), 5_000)
    assert [each for each in said if isinstance(each, m.ReleaseRequested)] == [
        m.ReleaseRequested("r0", ((1, 3),), m.EndReason.DEADLINE),
        m.ReleaseRequested("r0", (), m.EndReason.TIMED_OUT),
    ]
    concluded = of(said, m.RolloutConcluded)
    counts = ((m.EndReason.TIMED_OUT, 1), (m.EndReason.DEADLINE, 3))
    assert concluded == m.RolloutConcluded("r0", counts, "timed_out", (), ((1, 3),))
    fold = RolloutFold("r0", "t", "u", m.RolloutSpec("host", 4, timeout_ms=5_000))
    fold.handle(m.RolloutSubmitted("r0", "t", "u", fold.spec), 1_000)
    fold.handle(m.SandboxesReady("r0", 0, ((0, 1),), "n", "e", "zygote"), 3_500)
    fold.handle(m.SandboxesReady("r0", 0, ((1, 2),), "n", "e", "zygote"), 3_501)
    fold.handle(concluded, 6_000)
    assert fold.ledger.counts() == counts
    told = {each.index: each for each in fold.outcomes}
    assert [told[index].infrastructure for index in range(4)] == [False, True, True, True]
    assert told[1].detail == "it was ready after 2.5 s of its rollout's 5.0 s, and ran for 2.5 s"
    assert told[1].ready_ms == 2_501
    assert told[3].detail == "it was not ready in its rollout's 5.0 s"


def test_where_all_came_late_all_are_ended_as_that_at_once() -> None:
    cell = Cell()
    cell.submit(2, timeout_ms=5_000)
    cell.ready("r0", ((0, 2),), passes_ms=2_501)
    said = cell(m.Tick(cell.now), 5_000)
    assert of(said, m.ReleaseRequested) == m.ReleaseRequested("r0", (), m.EndReason.DEADLINE)


def test_one_that_is_started_again_has_its_time_from_its_last_start() -> None:
    cell = Cell()
    (first,) = [
        e for e in cell.submit(2, timeout_ms=5_000, on_lost=m.OnLost.RESTART) if isinstance(e, m.PlaceRequested)
    ]
    cell.ready("r0", ((0, 2),))
    (again,) = [e for e in cell.end("r0", ((0, 1),), m.EndReason.NODE_LOST) if isinstance(e, m.PlaceRequested)]
    assert [each.ready_by_ms for each in (first, again)] == [3_500, 3_500]
    cell.ready("r0", ((0, 1),), attempt=1, passes_ms=2_600)
    concluded = of(cell(m.Tick(cell.now), 5_000), m.RolloutConcluded)
    counts = ((m.EndReason.TIMED_OUT, 1), (m.EndReason.DEADLINE, 1))
    assert concluded == m.RolloutConcluded("r0", counts, "timed_out", (), ((0, 1),))


def test_a_node_is_told_by_when_what_wakes_has_to_be_there() -> None:
    cell = Cell()
    cell.submit(1, timeout_ms=5_000)
    cell.ready("r0", ((0, 1),), passes_ms=500)
    cell(m.SandboxSlept("r0", 0, 0, "n", HOST))
    woken = of(cell(m.SandboxesWanted("r0", ((0, 1),)), 1_500), m.PlaceRequested)
    assert woken.ready_by_ms == 3_000 + 2_500 - 500


def test_what_a_node_says_of_a_deadline_starts_nothing_again() -> None:
    cell = Cell()
    cell.submit(1, timeout_ms=5_000, on_lost=m.OnLost.RESTART)
    concluded = of(cell.end("r0", ((0, 1),), m.EndReason.DEADLINE), m.RolloutConcluded)
    assert concluded == m.RolloutConcluded("r0", ((m.EndReason.DEADLINE, 1),), "finished")


def test_what_no_node_could_hold_is_no_failure_of_its_own() -> None:
    cell = Cell()
    cell.submit(1, memory=900 * 2**40, timeout_ms=5_000)
    concluded = of(cell(m.Tick(cell.now), 5_000), m.RolloutConcluded)
    assert concluded == m.RolloutConcluded("r0", ((m.EndReason.NOT_STARTED, 1),), "timed_out", ((0, 1),))


def test_what_is_given_up_when_the_time_is_up_before_that_is_read_back_was_not_started() -> None:
    cell = Cell()
    cell.submit(8)
    cell.submit(2, start_within_ms=4_999, timeout_ms=5_000)
    closed = of(cell(m.Tick(cell.now), 4_999), m.SandboxesClosed)
    concluded = of(cell(m.Tick(cell.now), 1), m.RolloutConcluded)
    assert concluded == m.RolloutConcluded("r1", ((m.EndReason.NOT_STARTED, 2),), "timed_out", ((0, 2),))
    assert cell(closed) == []


def test_what_has_no_room_by_its_deadline_is_not_started() -> None:
    cell = Cell()
    cell.submit(6)
    cell.submit(4, start_within_ms=5_000)
    closed = of(cell(m.Tick(cell.now), 5_000), m.SandboxesClosed)
    assert (closed.rollout, closed.indices, closed.reason) == ("r1", ((2, 2),), m.EndReason.NOT_STARTED)
    assert closed.reason.infrastructure
    assert placed(cell.end("r0", ((0, 6),), m.EndReason.RELEASED)) == []  # given up, though not read back
    cell.end("r1", ((0, 2),), m.EndReason.RELEASED)
    concluded = of(cell(closed), m.RolloutConcluded)
    assert concluded.counts == ((m.EndReason.RELEASED, 2), (m.EndReason.NOT_STARTED, 2))


def test_retries_go_elsewhere_and_wait_longer_each_time() -> None:
    cell = Cell()
    cell.submit(1, max_attempts=5)
    cell.core.books.rooms.capacity = msgspec.structs.replace(cell.core.books.rooms.capacity, nodes=9)
    (first,) = cell.end("r0", ((0, 1),), m.EndReason.START_FAILED, 0, "n1")
    assert (first.attempt, first.avoid) == (1, ("n1",))
    said = cell.end("r0", ((0, 1),), m.EndReason.START_FAILED, 1, "n2")
    assert placed(said) == []
    assert placed(cell(m.Tick(cell.now), 999)) == []
    (second,) = [e for e in cell(m.Tick(cell.now), 1) if isinstance(e, m.PlaceRequested)]
    assert (second.attempt, second.avoid) == (2, ("n1", "n2"))


def test_a_template_that_starts_nowhere_is_stopped_early() -> None:
    cell = Cell()
    cell.submit(8, max_attempts=200)
    cell.end("r0", ((0, 1),), m.EndReason.START_FAILED, 0, "n1")
    cell.end("r0", ((1, 1),), m.EndReason.START_FAILED, 0, "n2")
    said = cell.end("r0", ((2, 1),), m.EndReason.START_FAILED, 0, "n3")
    closed = of(said, m.SandboxesClosed)
    assert (closed.indices, closed.reason) == (((0, 8),), m.EndReason.START_FAILED)
    assert closed.detail.endswith("its template starts nowhere: why")
    assert of(cell(closed), m.RolloutConcluded).counts == ((m.EndReason.START_FAILED, 8),)
    cell.submit(2, max_attempts=200)
    cell.end("r1", ((0, 1),), m.EndReason.START_FAILED, 0, "n1")
    cell.ready("r1", ((1, 1),))  # it can be started
    for attempt, node in ((1, "n2"), (2, "n3")):
        cell(m.Tick(cell.now), 70_000)
        said = cell.end("r1", ((0, 1),), m.EndReason.START_FAILED, attempt, node)
        assert not [each for each in said if isinstance(each, m.SandboxesClosed)]


def test_what_needs_some_nodes_does_not_hold_up_what_needs_others() -> None:
    pools = (
        m.Pool("gvisor", (), 1, m.Room(2, 2 * GIB), m.Room(2, 2 * GIB)),
        m.Pool("zygote", (("gpu", "no"),), 1, m.Room(4, 4 * GIB), m.Room(4, 4 * GIB)),
    )
    cell = Cell(6, pools=pools)
    assert placed(cell.submit(4, isolation="gvisor")) == [("r0", 0, ((0, 2),))]
    assert placed(cell.submit(5, labels=(("gpu", "no"),))) == [("r1", 0, ((0, 4),))]
    said = cell.submit(1, labels=(("gpu", "yes"),))
    assert of(said, m.RolloutQueued).reason == "no node offers the label gpu=yes now"


def test_first_come_first_served_is_there_to_compare_with() -> None:
    cell = Cell(4, order="fifo")
    cell.submit(8, "a")
    cell.submit(8, "b")
    assert placed(cell.end("r0", ((0, 4),), m.EndReason.RELEASED)) == [("r0", 0, ((4, 4),))]


def test_what_is_due_for_nobody_in_particular_outlives_the_rollouts() -> None:
    cell = Cell(4)
    cell.submit(4)
    cell.end("r0", ((3, 1),), m.EndReason.PREEMPTED, node="")  # placement found no room: tried again in a second
    for _ in range(200):  # deadlines that nobody needs any more are cleared away at some time
        name = f"r{cell.names}"
        cell.submit(1, "other", start_within_ms=60_000)
        cell(m.RolloutReleased(name))
    due = cell.core.wake_at_ms()
    assert due is not None
    assert due <= cell.now + 1_000
    assert placed(cell(m.Tick(due), 1_000)) == [("r0", 1, ((3, 1),))]


def test_what_was_given_back_or_slept_did_not_fail() -> None:
    given = Cell(1)
    given.submit(1, on_lost=m.OnLost.RESTART)
    for attempt in range(8):  # placement has no room after all
        given.end("r0", ((0, 1),), m.EndReason.PREEMPTED, attempt, node="")
        given(m.Tick(given.now + 3000), 3000)
    given.end("r0", ((0, 1),), m.EndReason.START_FAILED, 8)
    slept = Cell(1)
    slept.submit(1, on_lost=m.OnLost.RESUME)
    for attempt in range(7):
        slept.ready("r0", ((0, 1),), attempt)
        slept(m.SandboxSlept("r0", attempt, 0, "n", HOST))
        slept(m.SandboxesWanted("r0", ((0, 1),)))
    slept.end("r0", ((0, 1),), m.EndReason.START_FAILED, 7)
    for cell in (given, slept):  # so its first failed start is tried again at once
        rollout = cell.core.books.rollouts["r0"]
        assert [each.not_before_ms for each in rollout.again if each.not_before_ms > cell.now] == []


@pytest.mark.parametrize("policy", m.OnLost)
def test_what_wakes_and_is_given_back_has_what_it_kept(policy: m.OnLost) -> None:
    cell = Cell(2)
    cell.submit(1, timeout_ms=60_000, on_lost=policy)
    cell.ready("r0", ((0, 1),))
    kept = m.Snapshot("kept", "kept")
    cell(m.SandboxSlept("r0", 0, 0, "n", kept))
    cell(m.SandboxesWanted("r0", ((0, 1),)))
    said = [*cell.end("r0", ((0, 1),), m.EndReason.PREEMPTED, 1, node=""), *cell(m.Tick(cell.now + 3000), 3000)]
    assert [each.snapshot for each in said if isinstance(each, m.PlaceRequested)] == [kept]


def test_what_is_lost_as_it_wakes_and_starts_anew_missed_all_before() -> None:
    cell = Cell(2)
    cell.submit(1, timeout_ms=10_000, on_lost=m.OnLost.RESTART)
    cell.ready("r0", ((0, 1),))
    cell(m.SandboxSlept("r0", 0, 0, "n", HOST))
    cell(m.SandboxesWanted("r0", ((0, 1),)), 7000)
    cell.end("r0", ((0, 1),), m.EndReason.NODE_LOST, 1)
    cell.ready("r0", ((0, 1),), 2, passes_ms=100)
    (concluded,) = (each for each in cell(m.Tick(cell.now), 10_000) if isinstance(each, m.RolloutConcluded))
    assert dict(concluded.counts) == {m.EndReason.DEADLINE: 1}
