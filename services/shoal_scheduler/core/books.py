"""What a scheduler knows of its cell: rollouts, tenants, the queue, the room. Whoever changes one account changes all.

The decisions are elsewhere: whose turn it is in `order`, what is given out in `dispatch`, who makes room in `preempt`.
"""

import heapq
from collections.abc import Iterable
from typing import Final

from shoal.machine import ranges
from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m
from shoal_scheduler.core.borrowing import Ask, Borrowing
from shoal_scheduler.core.pace import Pace
from shoal_scheduler.core.room import Amounts, Rooms, Want
from shoal_scheduler.core.state import Again, Rollout
from shoal_scheduler.core.tenants import Tenant
from shoal_scheduler.core.waiting import Line, Waiting

BACKOFF_MS: Final = 1_000
"""How long the second retry of what failed to start waits; each after that twice as long, up to"""
LONGEST_BACKOFF_MS: Final = 60_000
_FAILED_ON: Final = 16


class Books:
    """See the module."""

    def __init__(self, cell: int, cells: int) -> None:
        self.cell = cell
        self.cells = cells
        self.rollouts: dict[str, Rollout] = {}
        self.tenants: dict[str, Tenant] = {}
        self.waiting = Waiting()
        self.rooms = Rooms()
        self.borrowing = Borrowing(cell, cells)
        self.pace = Pace()
        self.timers: list[tuple[int, str, str]] = []
        """When to look at what: a heap of (ms, what, rollout or tenant or neither). One out of date does nothing."""
        self._timed: set[tuple[int, str, str]] = set()
        self.priorities: dict[int, int] = {}
        """How many rollouts there are of each."""
        self.gang: tuple[str, int] = ("", 0)
        """The rollout that room is kept for, and since when: what has to be placed together, or is too large now."""
        self.turn = ""
        """The rollout that something was given out of last, if there is more of it."""
        self.shut: dict[Want, int] = {}
        """What placement found no room for, though there seemed to be some: until when it is not sent."""
        self.untold: dict[str, None] = {}
        """Rollouts that wait, and were not told so."""
        self.tell_ms = 0
        """When those that wait are told how they stand."""

    @property
    def total(self) -> Amounts:
        """What all nodes have together; 0 for what is not counted."""
        return self.rooms.total

    def tenant(self, name: str) -> Tenant:
        """Return a tenant's account."""
        found = self.tenants.get(name)
        if found is None:
            found = self.tenants[name] = Tenant(name)
        return found

    def admit(self, rollout: Rollout) -> None:
        """Take in a rollout; all of it waits."""
        self.rollouts[rollout.request.rollout] = rollout
        tenant = self.tenant(rollout.request.tenant)
        tenant.rollouts += 1
        self.wait(rollout, rollout.unsent)
        priority = rollout.request.spec.priority
        self.priorities[priority] = self.priorities.get(priority, 0) + 1

    def at(self, when_ms: int, what: str, name: str) -> None:
        """Look at something then."""
        timer = (when_ms, what, name)
        if timer not in self._timed:
            self._timed.add(timer)
            heapq.heappush(self.timers, timer)

    def set_timers(self, timers: Iterable[tuple[int, str, str]]) -> None:
        """Look at these things, and at nothing else."""
        self.timers = sorted(timers)  # and so a heap
        self._timed = set(self.timers)

    def due(self, now: int) -> list[tuple[str, str]]:
        """Take what is to be looked at now."""
        found: dict[tuple[str, str], None] = {}
        while self.timers and self.timers[0][0] <= now:
            timer = heapq.heappop(self.timers)
            self._timed.discard(timer)
            _, what, name = timer
            found[what, name] = None
        return list(found)

    def enqueue(self, rollout: Rollout, now: int) -> None:
        """Let a rollout wait if it has something to be given out now, and not if it has not."""
        name = rollout.request.rollout
        if rollout.snapshot is not None and rollout.due(now):
            self.waiting.add(rollout, urgent=True)
        elif rollout.snapshot is not None and rollout.may_send_fresh:
            if name in self.waiting:
                self.waiting.remove(name)  # it may have been urgent
            self.waiting.add(rollout, urgent=False)
        else:
            self.waiting.remove(name)
        if not rollout.queued[0]:
            self.untold[name] = None

    def wait(self, rollout: Rollout, count: int) -> None:
        """Note that so many more sandboxes of a rollout wait; a guest waits in its own cell's account."""
        if rollout.guest is None:
            self.tenant(rollout.request.tenant).waiting += count

    def count(self, rollout: Rollout, count: int, here: int) -> None:
        """Note in the accounts of the room and of the tenant that so many more sandboxes of a rollout are in flight,

        and how many of them in this cell.
        """
        if not count:
            return
        want, tenant = rollout.want, self.tenant(rollout.request.tenant)
        if here:
            self.rooms.give(want, here)
            tenant.give(rollout.request.run, want, here)
        if rollout.guest is None:
            tenant.own(want, count)

    def give(self, rollout: Rollout, indices: m.Ranges, ask: Ask | None = None) -> None:
        """Note that these sandboxes of a rollout are in flight: here, or where there were tickets for them."""
        count = ranges.count(indices)
        rollout.in_flight += count
        if ask is not None:
            where = (ask.cell, ask.number)
            self.borrowing.use(ask, count)
            rollout.abroad[where] = ranges.union(rollout.abroad.get(where, ()), indices)
        self.count(rollout, count, 0 if ask is not None else count)

    def hedge(self, rollout: Rollout, attempt: int, indices: m.Ranges) -> None:
        """Note that these sandboxes are to be in flight twice. They count from now on, though nothing is sent yet:

        what is given out before that is read back takes neither their room nor their part of a limit. And each is a
        start, of which a tenant may have so many a second.
        """
        rollout.hedging[attempt] = ranges.union(rollout.hedging.get(attempt, ()), indices)
        self.give(rollout, indices)
        self.tenant(rollout.request.tenant).started(ranges.count(indices))

    def hedged(self, rollout: Rollout, attempt: int, indices: m.Ranges, news: m.Ranges) -> bool:
        """Note that this is read back, of which sandboxes it is `news`; returns whether others have no use for it."""
        known = rollout.hedging.pop(attempt, ())
        kept = ranges.intersect(known, indices)
        if left := ranges.without(known, indices):
            rollout.hedging[attempt] = left
        self.give(rollout, ranges.without(news, kept))
        unused = ranges.count(ranges.without(kept, news))
        self._unhedge(rollout, unused)
        return unused > 0

    def _unhedge(self, rollout: Rollout, count: int) -> None:
        rollout.in_flight -= count
        self.count(rollout, -count, -count)

    def back(
        self, rollout: Rollout, attempt: int, indices: m.Ranges, now: int, *, declined: bool = False
    ) -> None:  # fmt: skip
        """Note that these sandboxes are in flight no longer, in this attempt. A hedge never was in another cell.

        `declined`: where there seemed to be room for them there was none.
        """
        count = ranges.count(indices)
        if not count:
            return
        away = 0
        for where, there in list(rollout.abroad.items()) if attempt < HEDGE else ():
            part = ranges.intersect(there, indices)
            if not part:
                continue
            away += ranges.count(part)
            self.borrowing.back(where, ranges.count(part), declined=declined)
            rollout.abroad[where] = ranges.without(there, part)
            if not rollout.abroad[where]:
                del rollout.abroad[where]
        rollout.in_flight -= count
        self.count(rollout, -count, away - count)
        if count > away:
            self.pace.landed(count - away, now)

    def start_again(self, rollout: Rollout, parts: Iterable[Again], now: int) -> None:
        """Let sandboxes of a rollout wait once more."""
        for each in parts:
            rollout.again.append(each)
            self.wait(rollout, ranges.count(each.indices))
            if each.not_before_ms > now:
                self.at(each.not_before_ms, "retry", rollout.request.rollout)
        self.enqueue(rollout, now)

    def retry(
        self, rollout: Rollout, attempt: int, again: m.Ranges, node: str, reason: m.EndReason, now: int, *,
        declined: bool = False,
    ) -> None:  # fmt: skip
        """Let sandboxes wait once more that ended without a fault of their own.

        They go elsewhere. A sandbox's second start is at once; each later one after a failed start waits twice as long
        as the one before, and losses count. `declined`: placement gave them back, and nothing happened to them.
        """
        parts = [Again(attempt, again, (node,) if node else (), now)]
        if reason is m.EndReason.START_FAILED:
            if node:
                rollout.failed_on[node] = None
                while len(rollout.failed_on) > _FAILED_ON:
                    del rollout.failed_on[next(iter(rollout.failed_on))]
            by_starts: dict[int, list[int]] = {}
            for index in ranges.indices(again):
                by_starts.setdefault(rollout.ledger.starts(index), []).append(index)
            parts = [
                Again(attempt, ranges.collect(those), tuple(rollout.failed_on), now + _backoff_ms(starts))
                for starts, those in sorted(by_starts.items())
            ]
        elif not declined and (rollout.request.spec.on_lost is m.OnLost.RESTART or reason is m.EndReason.PREEMPTED):
            for index in ranges.indices(again):
                rollout.saved.pop(index, None)  # that policy's sandboxes start again from the start
            rollout.missed.anew(again)
        self.start_again(rollout, parts, now)

    def withdraw(self, rollout: Rollout, indices: m.Ranges, now: int) -> m.Ranges:
        """Take those of these sandboxes out of the queue that are in it; returns them."""
        taken = ranges.intersect(rollout.fresh, indices)
        rollout.fresh = ranges.without(rollout.fresh, indices)
        kept: list[Again] = []
        for each in rollout.again:
            taken = ranges.union(taken, ranges.intersect(each.indices, indices))
            if left := ranges.without(each.indices, indices):
                kept.append(each._replace(indices=left))
        rollout.again = kept
        self.wait(rollout, -ranges.count(taken))
        self.enqueue(rollout, now)
        return taken

    def drop(self, rollout: Rollout) -> None:
        """Forget a rollout that is over; nothing of it may be in flight."""
        name, tenant = rollout.request.rollout, self.tenant(rollout.request.tenant)
        if rollout.hedging:
            self._unhedge(rollout, rollout.hedging_count())
        self.waiting.remove(name)
        self.untold.pop(name, None)
        self.wait(rollout, -rollout.unsent)
        tenant.rollouts -= 1
        del self.rollouts[name]
        priority = rollout.request.spec.priority
        self.priorities[priority] -= 1
        if not self.priorities[priority]:
            del self.priorities[priority]
        if self.turn == name:
            self.turn = ""
        if self.gang[0] == name:
            self.gang = ("", 0)
        if tenant.idle:
            del self.tenants[tenant.name]
        if len(self.timers) > 2 * len(self.rollouts) + 256:
            self.set_timers(
                each for each in self.timers if not each[2] or each[2] in self.rollouts or each[2] in self.tenants
            )

    def waiting_in(self, line: Line, *, most: int) -> int:
        """Return how many sandboxes wait in a line, as far as it matters: no more than `most` are counted."""
        found = 0
        for name in (*line.urgent, *line.fresh):
            found += self.rollouts[name].unsent
            if found >= most:
                return most
        return found

    def check(self) -> None:
        """Assert that every sandbox is unsent, in flight or ended, that the sums agree, and that limits are kept."""
        waiting: dict[str, int] = {}
        used: dict[str, list[int]] = {}
        owned: dict[str, list[int]] = {}
        abroad: dict[tuple[int, int], int] = {}
        for name, rollout in self.rollouts.items():
            rollout.ledger.check()
            assert not rollout.ledger.concluded
            assert rollout.in_flight >= 0
            away = rollout.unsent + rollout.ledger.asleep_count() + ranges.count(rollout.closing)
            twice = rollout.ledger.hedged_count() + rollout.hedging_count()
            assert rollout.in_flight + away == rollout.ledger.live + twice
            assert rollout.unsent or name not in self.waiting
            tenant = rollout.request.tenant
            guest = rollout.guest is not None
            waiting[tenant] = waiting.get(tenant, 0) + (0 if guest else rollout.unsent)
            amounts, mine = used.setdefault(tenant, [0, 0, 0, 0]), owned.setdefault(tenant, [0, 0, 0, 0])
            for number, amount in enumerate(rollout.want.amounts):
                amounts[number] += amount * rollout.here
                mine[number] += 0 if guest else amount * rollout.in_flight
            for where, part in rollout.abroad.items():
                abroad[where] = abroad.get(where, 0) + ranges.count(part)
                assert not ranges.without(part, rollout.in_flight_indices())
        self.borrowing.check(abroad)
        for name, tenant_ in self.tenants.items():
            assert tenant_.used == used.get(name, [0, 0, 0, 0])
            assert tenant_.owned == owned.get(name, [0, 0, 0, 0])
            assert tenant_.waiting == waiting.get(name, 0)
            assert tenant_.rollouts == sum(each.request.tenant == name for each in self.rollouts.values())
        assert all(name in self.tenants for name in (*waiting, *used))
        assert sum(self.priorities.values()) == len(self.rollouts)
        assert self.rooms.given == sum(amounts[0] for amounts in used.values())


def _backoff_ms(starts: int) -> int:
    """Return how long a sandbox waits for its start number `starts`: its second is at once."""
    return min(BACKOFF_MS << min(starts - 3, 16), LONGEST_BACKOFF_MS) if starts > 2 else 0
