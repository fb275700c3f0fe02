"""Several cells: room that one has and another lacks, and parts of limits, go where they are of use."""

from collections import Counter
from typing import Any

import pytest

from shoal.machine import ranges
from shoal.machine.core import Cause, LawBrokenError, Publish
from shoal.wire import messages as m, subjects
from shoal_placement.core.placement import LAST_MS, PlacementCore
from shoal_scheduler.core.borrowing import STEP_MS, Borrowing, DumpedAsk
from shoal_scheduler.core.fates import REMEMBERED_MS
from shoal_scheduler.core.quotas import _PAIRS, AGAIN_MS, PATIENCE_MS, _with, part_of
from shoal_scheduler.core.room import Needs, Want
from shoal_scheduler.core.scheduler import SchedulerCore

GIB = 2**30
HOST = m.Snapshot("host", "host")


class Cells:
    """Schedulers of so many slots of 1 GiB each; what they say to each other arrives at once, and twice."""

    def __init__(self, *slots: int) -> None:
        self.cores = [SchedulerCore(cell, cells=len(slots)) for cell in range(len(slots))]
        self.now = 1_000_000
        self.sequence = 0
        self.names = 0
        self.said: list[tuple[int, Any]] = []
        self.placed: list[tuple[str, int, m.Ranges]] = []
        """Rollouts, the cells on whose nodes they are, and which of their sandboxes."""
        for cell, count in enumerate(slots):
            self.capacity(cell, count)

    def capacity(self, cell: int, slots: int) -> None:
        room = m.Room(slots, slots * GIB)
        pools = (m.Pool("zygote", (), 4, room, room),) if slots else ()
        self(cell, m.CellCapacity(slots, 4 if slots else 0, ("zygote",) if slots else (), pools))

    def __call__(self, cell: int, message: Any, passes_ms: int = 0) -> list[Any]:
        """Let a cell hear something, and all others what follows from it; returns all that is said."""
        self.now += passes_ms
        self.said.clear()
        queue = [(cell, message)]
        while queue:
            to, heard = queue.pop(0)
            for again in range(2 if message is not heard else 1):
                self.sequence += 1
                cause = Cause(f"S{to}", self.sequence, self.now)
                for effect in self.cores[to].handle(heard, cause):
                    assert isinstance(effect, Publish)
                    self.said.append((to, effect.message))
                    assert not again or not isinstance(effect.message, m.RoomLent | m.QuotaLent | m.PlaceRequested)
                    self._route(to, effect, queue)
                self.cores[to].check()
                copy = SchedulerCore(to, cells=len(self.cores))
                copy.load(self.cores[to].dump())
                assert copy.dump() == self.cores[to].dump()
        return [said for _, said in self.said]

    def _route(self, said_by: int, effect: Publish, queue: list[tuple[int, Any]]) -> None:
        for other in range(len(self.cores)):
            if effect.subject == subjects.rollout_system(other) and other != said_by:
                queue.append((other, effect.message))
            if effect.subject == subjects.placement_request(other) and isinstance(effect.message, m.PlaceRequested):
                self.placed.append((effect.message.rollout, other, effect.message.indices))
                assert effect.message.cell == said_by

    def submit(self, cell: int, n: int, tenant: str = "t", **spec: Any) -> str:
        name, self.names = f"r{self.names}", self.names + 1
        asked = m.RolloutSpec("host", n, resources=m.Resources(memory=GIB), **spec)
        said = self(cell, m.RolloutSubmitted(name, tenant, "u", asked))
        if any(isinstance(each, m.ResolveTemplate) for each in said):
            self(cell, m.TemplateResolved(tenant, "host", HOST))
        return name

    def end(self, cell: int, name: str, indices: m.Ranges, node: str = "n") -> list[Any]:
        return self(cell, m.SandboxesEnded(name, 0, indices, node, m.EndReason.OUT_OF_MEMORY, "why"))

    def limit(self, tenant: str, version: int = 1, **limits: Any) -> None:
        for cell in range(len(self.cores)):
            self(cell, m.TenantLimited(tenant, m.Limits(**limits), version))

    def where(self, name: str) -> Counter[int]:
        found: Counter[int] = Counter()
        for rollout, cell, indices in self.placed:
            if rollout == name:
                found[cell] += ranges.count(indices)
        return found

    def part(self, cell: int, tenant: str = "t") -> int:
        return self.cores[cell].books.tenants[tenant].part[0]

    def given(self, cell: int) -> int:
        return self.cores[cell].books.rooms.given


def test_what_a_cell_has_no_room_for_goes_to_the_next_and_comes_back() -> None:
    cells = Cells(4, 4, 4)
    name = cells.submit(0, 10)
    assert cells.where(name) == {0: 4, 1: 4}
    assert not any(isinstance(each, m.RoomWanted) for each in cells(0, m.Tick(cells.now), STEP_MS - 1))
    cells(0, m.Tick(cells.now), 1)
    assert cells.where(name) == {0: 4, 1: 4, 2: 2}
    assert [cells.given(cell) for cell in range(3)] == [4, 4, 2]
    rest = cells(0, m.RolloutReleased(name, ()))
    released = [each for each in rest if isinstance(each, m.ReleaseRequested)]
    assert len(released) == 3  # wherever some of it is
    assert [cells.given(cell) for cell in range(3)] == [0, 0, 0]
    assert not any(core.books.rollouts or core.books.borrowing.asks for core in cells.cores)


def test_what_is_given_back_is_so_in_the_same_order_after_a_checkpoint() -> None:
    early, late = ((tenant, 0, "run", Want(Needs("", ()), GIB, 1, 1), False) for tenant in ("a", "b"))
    asks = [DumpedAsk(cell, number, key, 1, 2, (), (), ()) for cell, number, key in
            ((1, 1, early), (1, 2, late), (2, 1, early))]  # fmt: skip
    borrowing, loaded = Borrowing(0, 3), Borrowing(0, 3)
    borrowing.load((asks, [], []))
    borrowing._give_up(borrowing.asks[1, 1])  # that a line asked before another one is forgotten with its ask
    borrowing.say()
    loaded.load(borrowing.dump())
    for each in (borrowing, loaded):
        each.settle([], 0)
    assert borrowing.say() == loaded.say()


@pytest.mark.parametrize("tickets", [((0, 4),), (), ((0, 9),)])
def test_room_that_is_given_back_before_it_was_asked_for_is_not_lent(tickets: m.Ranges) -> None:
    cells = Cells(8, 0)
    spec = m.RolloutSpec("host", 4, resources=m.Resources(memory=GIB))
    for message in (m.RoomReturned(1, 1, tickets), m.RoomWanted(1, 1, "t", "u", spec)):
        for _ in range(2):
            assert not cells(0, message)
    assert not cells.cores[0].books.rollouts
    assert cells.given(0) == 0
    assert not cells.cores[0].early


def test_of_room_that_was_given_back_in_part_before_it_was_asked_for_the_rest_is_lent() -> None:
    cells = Cells(8, 0)
    spec = m.RolloutSpec("host", 4, resources=m.Resources(memory=GIB))
    for part in ((0, 1), (2, 1), (2, 1)):
        cells(0, m.RoomReturned(1, 1, (part,)))
    assert cells(0, m.RoomWanted(1, 1, "t", "u", spec)) == [m.RoomLent(0, 1, ((1, 1), (3, 1)))]
    assert cells.given(0) == 2


def test_what_was_given_back_and_never_asked_for_is_remembered_for_a_day() -> None:
    cells = Cells(8, 0)
    cells(0, m.RoomReturned(1, 1, ((0, 1),)))
    cells(0, m.RoomReturned(1, 2, ((0, 1),)), REMEMBERED_MS)
    assert list(cells.cores[0].early) == ["~1-2"]


def test_a_cell_without_nodes_has_those_of_others() -> None:
    cells = Cells(0, 2)
    name = cells.submit(0, 1)
    assert cells.where(name) == {1: 1}
    said = cells(0, m.SandboxesFinished(name, 0, "n", "e", "zygote", (m.SandboxResult(0, m.CommandResult(0), 1),)))
    assert any(isinstance(each, m.RolloutConcluded) for each in said)
    assert any(isinstance(each, m.RoomReturned) for each in said)
    assert cells.given(1) == 0


def test_a_gang_goes_whole_to_where_there_is_room_for_all_of_it() -> None:
    cells = Cells(2, 3, 8)
    name = cells.submit(0, 6, min_ready=6)
    cells(0, m.Tick(cells.now), STEP_MS)
    assert cells.where(name) == {2: 6}
    places = [each for each in cells.said if isinstance(each[1], m.PlaceRequested)]
    assert [place.together for _, place in places] == [True]
    assert not cells.cores[1].books.rollouts  # what was asked of the one that had too little is not wanted any more


def test_its_own_go_first_where_all_are_as_full() -> None:
    cells = Cells(1, 1)
    first = [cells.submit(cell, 1) for cell in (0, 1)]
    second = [cells.submit(cell, 1) for cell in (0, 1)]
    cells.end(1, first[1], ((0, 1),))
    assert cells.where(second[1]) == {1: 1}
    cells.end(0, first[0], ((0, 1),))
    assert cells.where(second[0]) == {0: 1}


def test_who_waits_much_longer_goes_before_a_cells_own() -> None:
    cells = Cells(1, 1)
    first = [cells.submit(cell, 1) for cell in (0, 1)]
    old = cells.submit(0, 1)
    cells.now += 60_000
    young = cells.submit(1, 1)
    cells.end(1, first[1], ((0, 1),))
    assert (cells.where(old), cells.where(young)) == ({1: 1}, {})


def test_room_that_was_not_there_after_all_is_asked_for_elsewhere() -> None:
    cells = Cells(0, 2, 2)
    name = cells.submit(0, 1)
    assert cells.where(name) == {1: 1}
    said = cells.end(0, name, ((0, 1),), node="")
    assert not cells.where(name)[2]
    said = cells(0, m.SandboxesEnded(name, 0, ((0, 1),), "", m.EndReason.PREEMPTED, "no room"))
    assert not any(isinstance(each, m.RoomReturned) for each in said)  # it had ended before


def test_a_declined_ticket_is_not_lent_again_at_once() -> None:
    cells = Cells(0, 2)
    name = cells.submit(0, 2)
    assert cells.where(name) == {1: 2}
    said = cells(0, m.SandboxesEnded(name, 0, ((0, 2),), "", m.EndReason.PREEMPTED, "no room"))
    assert [each.declined for each in said if isinstance(each, m.RoomReturned)] == [True]
    assert cells.where(name) == {1: 2}
    cells(1, m.Tick(cells.now), 1_000)
    assert cells.where(name) == {1: 4}


@pytest.mark.parametrize("commands", [(), (m.Command(("true",)),)])
def test_what_waits_with_another_cells_placement_when_time_is_up_was_not_started(commands: tuple[m.Command]) -> None:
    cells, there = Cells(0, 20), PlacementCore(1)
    name = cells.submit(0, 20, timeout_ms=20_000, commands=commands)
    assert cells.where(name) == {1: 20}
    asked = [said for _, said in cells.said if isinstance(said, m.PlaceRequested)]
    ended: list[m.SandboxesEnded] = []
    started: m.Ranges = ()

    def placement(message: Any) -> None:
        nonlocal started
        for effect in there.handle(message, Cause("SHOAL_PLACEMENT_1", 1, cells.now)):
            assert isinstance(effect, Publish)
            if isinstance(effect.message, m.SandboxesEnded):
                assert effect.subject == subjects.rollout_sandbox(0, "t", "u")
                ended.append(effect.message)
            elif isinstance(effect.message, m.StartSandboxes):
                started = ranges.union(started, effect.message.indices)

    placement(m.ExecutorJoined("e", "b", "zygote", (m.NodeSpec("n", 20, 20 * GIB),), 0.5))
    for each in asked:
        placement(each)
    assert 0 < ranges.count(started) < 20
    cells.now = 1_020_000 - LAST_MS
    placement(m.ExecutorBeat("e", "b"))
    placement(m.Tick(cells.now))
    for back in ended:
        cells(0, back)
    (concluded,) = (
        each for each in cells(0, m.Tick(1_020_000), 1_020_000 - cells.now) if isinstance(each, m.RolloutConcluded)
    )
    waited = ranges.without(ranges.whole(20), started)
    assert concluded.not_started == waited
    assert dict(concluded.counts) == {
        m.EndReason.DEADLINE: ranges.count(started), m.EndReason.NOT_STARTED: ranges.count(waited)
    }  # fmt: skip
    assert concluded.deadline == started  # none of them was ever ready


def test_a_share_counts_what_others_were_lent() -> None:
    cells = Cells(0, 4)
    away = cells.submit(0, 4, "away")
    assert cells.where(away) == {1: 4}
    cells.submit(0, 4, "away")
    home = cells.submit(1, 2, "home")
    cells.end(0, away, ((0, 1),))
    assert cells.where(home) == {1: 1}  # the other tenant has more of this cell, whose rollouts its are


def test_a_quota_holds_over_all_cells_and_goes_where_it_is_used() -> None:
    cells = Cells(8, 8, 8)
    cells.limit("t", sandboxes=6)
    assert [cells.part(cell) for cell in range(3)] == [2, 2, 2]
    name = cells.submit(0, 8)
    assert cells.where(name) == {0: 6}
    assert [cells.part(cell) for cell in range(3)] == [6, 0, 0]
    other = cells.submit(1, 2)
    assert not cells.where(other)
    cells.end(0, name, ((0, 1),))
    assert cells.where(other) == {1: 1}  # it has less than its equal part, and goes first
    cells.end(0, name, ((1, 1),))
    assert cells.where(other) == {1: 2}
    cells.end(0, name, ((2, 1),))
    assert cells.where(name) == {0: 7}
    assert sum(cells.part(cell) for cell in range(3)) == 6


def test_what_a_cell_lends_and_asks_after_its_log_lost_its_end_is_no_copy() -> None:
    cells = Cells(8, 8)
    cells.limit("t", sandboxes=8)
    earlier = cells.cores[0].dump()
    cells.now += 1_000
    cells.submit(1, 5)
    assert [cells.part(cell) for cell in (0, 1)] == [3, 5]
    cells.cores[0] = SchedulerCore(0, cells=2)
    cells.cores[0].load(earlier)  # its log has lost its end, and the other cell's has not
    cells.now += 1_000
    cells.submit(1, 7)
    assert cells.part(1) > 5  # what was lent now counts
    cells.submit(0, 20)
    wanted = cells.cores[1].books.tenants["t"].hungry
    lost = cells.cores[0].dump()
    assert wanted[0].amounts[0]
    cells.cores[0] = SchedulerCore(0, cells=2)
    cells.cores[0].load(earlier)
    cells.now += 1_000
    cells.submit(0, 4 + 16)
    assert cells.cores[0].dump() != lost
    assert wanted[0].claim_ms > cells.now - 1_000  # and so does what is asked now


def test_of_a_great_many_numbers_of_what_was_lent_the_oldest_are_kept_as_one() -> None:
    known: m.Ranges = ()
    for number in range(10, 10 + 2 * (_PAIRS + 50), 2):
        known = _with(known, number)
    assert len(known) == _PAIRS
    assert known[0] == (10, 101)
    assert known[1:] == tuple((number, 1) for number in range(112, 10 + 2 * (_PAIRS + 50), 2))
    assert _with(known, 115)[2] == (114, 3)
    assert _with(_with((), 7), 3) == ((3, 1), (7, 1))


def test_a_limit_that_is_changed_while_all_runs_is_kept() -> None:
    cells = Cells(8, 8)
    cells.limit("t", 1, sandboxes=6, cpu_milli=8_000)
    names = [cells.submit(cell, 8) for cell in (0, 1)]

    def placed() -> int:
        for cell in (0, 1, 0, 1):
            cells(cell, m.Tick(cells.now), AGAIN_MS)
        return sum(sum(cells.where(name).values()) for name in names)

    assert placed() == 6
    assert cells.part(0) > 3  # it was lent some
    cells.limit("t", 2, sandboxes=12, cpu_milli=8_000)
    assert placed() == 8  # of cpus there are no more than before
    cells.limit("t", 3, sandboxes=4, cpu_milli=8_000)
    for ended in range(5):
        cells.end(0, names[0], ((ended, 1),))
        assert placed() == 8 + max(ended + 1 - 4, 0)  # what ran goes on, and nobody starts more instead
    assert sum(cells.part(cell) for cell in (0, 1)) == 4


def test_a_quota_below_the_number_of_cells_is_kept() -> None:
    cells = Cells(4, 4, 4)
    cells.limit("t", sandboxes=1)
    names = [cells.submit(cell, 1) for cell in (1, 2, 0)]
    assert sum(sum(cells.where(name).values()) for name in names) == 1


def test_two_gangs_do_not_keep_half_of_a_quota_each() -> None:
    cells = Cells(8, 8)
    cells.limit("t", sandboxes=8)
    both = [cells.submit(cell, 3) for cell in (0, 1)]
    gangs = [cells.submit(cell, 8, min_ready=8) for cell in (0, 1)]
    for cell, name in enumerate(both):
        for index in range(3):
            cells.end(cell, name, ((index, 1),))
    for _ in range(4):
        for cell in (0, 1):
            cells(cell, m.Tick(cells.now), AGAIN_MS)
    assert [sum(cells.where(name).values()) for name in gangs] in ([8, 0], [0, 8])


def test_a_gang_beyond_an_equal_part_has_its_turn_when_it_has_waited_long() -> None:
    cells = Cells(8, 8)
    cells.limit("t", sandboxes=4)
    first = cells.submit(1, 2)
    gang = cells.submit(0, 4, min_ready=4)
    cells.now += PATIENCE_MS - 1_000
    second = cells.submit(1, 2)
    cells.end(1, first, ((0, 2),))
    assert (cells.where(second), cells.where(gang)) == ({1: 2}, {})
    cells.now += 2_000
    third = cells.submit(1, 2)
    cells.end(1, second, ((0, 2),))
    assert (cells.where(third), cells.where(gang)) == ({}, {0: 4})
    cells.end(0, gang, ((0, 2),))
    assert cells.where(third) == {1: 2}


def test_of_two_limits_the_later_version_counts_whatever_comes_first() -> None:
    cells = Cells(4, 4)
    for cell, order in ((0, (1, 2)), (1, (2, 1))):
        for version in order:
            cells(cell, m.TenantLimited("t", m.Limits(sandboxes=10 * version), version))
    assert [cells.part(cell) for cell in (0, 1)] == [10, 10]


def test_parts_count_in_whichever_order_they_come_and_once() -> None:
    core = SchedulerCore(0, cells=2)
    for tenant in ("a", "b"):
        core.handle(m.TenantLimited(tenant, m.Limits(sandboxes=20), 1), Cause("S", 1, 1))
    said = [m.QuotaLent(1, number, tenant, 1, (amount, 0, 0, 0))
            for number, tenant, amount in ((1, "a", 1), (2, "b", 2), (3, "a", 3), (4, "b", 4))]  # fmt: skip
    for which in (2, 0, 2, 1, 3, 1, 0):
        core.handle(said[which], Cause("S", 2, 2))
        copy = SchedulerCore(0, cells=2)
        copy.load(core.dump())
        core = copy
    assert [core.books.tenants[tenant].part[0] for tenant in ("a", "b")] == [14, 16]


def test_what_a_cell_could_use_of_a_tenants_limits_counts_though_another_tenants_came_first() -> None:
    core = SchedulerCore(0, cells=2)
    for tenant in ("a", "b"):
        core.handle(m.TenantLimited(tenant, m.Limits(sandboxes=20), 1), Cause("S", 1, 1))
    lent: list[Any] = []
    for number, tenant, amount in ((2, "b", 2), (1, "a", 1), (1, "a", 1), (4, "a", 0), (3, "a", 5)):
        effects = core.handle(m.QuotaWanted(1, number, tenant, 1, (amount, 0, 0, 0), 1), Cause("S", 2, 2))
        lent += [each.message for each in effects if isinstance(each, Publish)]
        copy = SchedulerCore(0, cells=2)
        copy.load(core.dump())
        core = copy
    assert [(each.tenant, each.amounts[0]) for each in lent] == [("b", 2), ("a", 1)]


def test_a_rate_that_nobody_uses_goes_where_it_is_used() -> None:
    cells = Cells(64, 64)
    cells.limit("t", starts_per_s=4.0)
    for cell in (0, 1):
        cells(cell, m.Tick(cells.now), 5_000)
    name = cells.submit(0, 40)
    for _ in range(100):
        cells(0, m.Tick(cells.now), 100)
        cells(1, m.Tick(cells.now))
    assert 28 <= sum(cells.where(name).values()) <= 44  # in ten seconds, at 4 a second; 2 would be its equal part


def test_a_gang_may_be_as_large_as_the_whole_quota_and_waits_for_it() -> None:
    cells = Cells(8, 8)
    cells.limit("t", sandboxes=4)
    assert cells.where(cells.submit(0, 4, min_ready=4)) == {0: 4}


def test_parts_make_the_whole() -> None:
    limits = m.Limits(sandboxes=7, memory=10**9 + 1, cpu_milli=2, starts_per_s=0.5)
    parts = [part_of(limits, cell, 3) for cell in range(3)]
    assert [sum(column) for column in zip(*parts, strict=True)] == [7, 10**9 + 1, 2, 500]


def test_what_no_other_cell_can_have_said_is_refused_and_changes_nothing() -> None:
    core = SchedulerCore(0, cells=2)
    before = core.dump()
    spec = m.RolloutSpec("host", 0)
    for message in (
        m.RoomWanted(0, 1, "t", "u", m.RolloutSpec("host", 1)),
        m.RoomWanted(1, 1, "t", "u", spec),
        m.RoomLent(2, 1, ((0, 1),)),
        m.RoomReturned(2, 1, ((0, 1),)),
        m.RoomReturned(1, 1, ((0, 2), (1, 1))),
        m.QuotaLent(0, 1, "t", 1, (1, 0, 0, 0)),
    ):
        with pytest.raises(LawBrokenError):
            core.handle(message, Cause("S", 1, 1))
        assert core.dump() == before


def test_a_queue_is_bounded_over_all_cells() -> None:
    cells = Cells(0, 0)
    cells.limit("t", waiting=10)
    cells.submit(0, 8)  # one that waits alone may be of any size
    said = cells(0, m.RolloutSubmitted("more", "t", "u", m.RolloutSpec("host", 1)))
    assert [each.code for each in said if isinstance(each, m.RolloutRejected)] == ["queue_full"]
    cells.submit(1, 5)
