"""What becomes of rollouts and their sandboxes: every report, wish and end, folded into the books."""

from typing import Final

from shoal.machine import ranges
from shoal.machine.core import Effect, LawBrokenError, Publish
from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m, subjects
from shoal_scheduler.core import stragglers
from shoal_scheduler.core.books import Books
from shoal_scheduler.core.dispatch import SHUT_MS, Part, placements
from shoal_scheduler.core.poison import Suspects, same_template
from shoal_scheduler.core.room import Want
from shoal_scheduler.core.state import Again, Rollout

REMEMBERED_MS: Final = 86_400_000
_REMEMBERED: Final = 1_000_000
_ALL: Final[m.Ranges] = ((0, 2**31),)


class Fates:
    """See the module. `past` are rollouts that are over; `unresolved` who waits to hear what a template stands for."""

    def __init__(self, cell: int, cells: int) -> None:
        self._cell = cell
        self.books = Books(cell, cells)
        self.past: dict[str, int] = {}  # concluded or rejected: until when they are remembered
        self.early: dict[str, tuple[int, m.Ranges]] = {}
        """What other cells gave back of asks that were not heard of yet, and until when that is remembered."""
        self.unresolved: dict[tuple[str, str], dict[str, None]] = {}
        self.suspects = Suspects()

    def _reported(self, name: str, attempt: int, indices: m.Ranges, now: int) -> Rollout | None:
        """Return the rollout a report is of, None when it is over. Raises LawBrokenError for an impossible report.

        What is reported at the deadline or later comes too late, whether the Tick that says so came before it or not:
        trainers do not see Ticks, and must come to the same count.
        """
        rollout = self.books.rollouts.get(name)
        if not ranges.valid(indices, rollout.ledger.n if rollout else 2**31):
            raise LawBrokenError(f"indices {indices} are not those of rollout {name}")
        if rollout is None:
            return None
        unsent = [(0, rollout.fresh), *((each.attempt, each.indices) for each in rollout.again)]
        unsent += rollout.ledger.by_attempt(ranges.indices(rollout.closing))
        if any(number == attempt and waiting and ranges.intersect(indices, waiting) for number, waiting in unsent):
            raise LawBrokenError(f"a report of sandboxes of rollout {name} that nobody was asked to start")
        return rollout if now < rollout.deadline_ms else None

    def _ready(self, rollout: Rollout, attempt: int, indices: m.Ranges, now: int, effects: list[Effect]) -> bool:
        """Return whether more may be given out now."""
        hedged = rollout.ledger.hedged(indices)
        if news := rollout.ledger.ready(attempt, indices):
            rollout.missed.ready(news, now)
            self.suspects.started(rollout)
        self._settle(rollout, attempt, hedged, now, effects)
        stragglers.started(self.books, rollout, attempt, indices, now)
        return self._begin(rollout, now) or bool(hedged)

    def _begin(self, rollout: Rollout, now: int) -> bool:
        """Note that a rollout's first sandboxes are there; returns whether others may follow now."""
        if rollout.begun:
            return False
        rollout.begun = True
        self.books.enqueue(rollout, now)
        return bool(rollout.fresh)

    def _settle(
        self, rollout: Rollout, attempt: int, hedged: m.Ranges, now: int, effects: list[Effect]
    ) -> None:  # fmt: skip
        """Let go of the other attempt, where one of two has won."""
        settled = ranges.without(hedged, rollout.ledger.hedged(hedged)) if hedged else ()
        if settled:
            loser = attempt ^ HEDGE
            away = rollout.is_abroad(settled) if loser < HEDGE else ()
            self._let_go(rollout, ranges.without(settled, away), away, m.EndReason.RELEASED, loser, effects)
            self.books.back(rollout, loser, settled, now)

    def _let_go(
        self, rollout: Rollout, here: m.Ranges, away: m.Ranges, reason: m.EndReason, attempt: int,
        effects: list[Effect], late: m.Ranges = (),
    ) -> None:  # fmt: skip
        """Ask for the end of sandboxes in flight, in this cell and in others; of one attempt, unless it is -1.

        Of a rollout that is over, all is ended wherever some of it is. The `late` end as `deadline`.
        """
        name, over = rollout.request.rollout, rollout.ledger.concluded and attempt < 0
        parts = {self._cell: here}
        for (cell, _), there in rollout.abroad.items():
            parts[cell] = ranges.union(parts.get(cell, ()), ranges.intersect(there, away))
        for cell, part in parts.items():
            those, others = ranges.intersect(part, late), ranges.without(part, late)
            if those and others:  # first, for what is asked last takes all that is left
                ask = m.ReleaseRequested(name, those, m.EndReason.DEADLINE, attempt)
                effects.append(Publish(subjects.placement_request(cell), ask))
            if part:
                why = reason if others else m.EndReason.DEADLINE
                ask = m.ReleaseRequested(name, () if over else part, why, attempt)
                effects.append(Publish(subjects.placement_request(cell), ask))

    def _finished(self, message: m.SandboxesFinished, now: int, effects: list[Effect]) -> None:
        results, attempt = message.results, message.attempt
        indices = ranges.collect([each.index for each in results])
        if ranges.count(indices) != len(results) or (indices and indices[0][0] < 0):
            raise LawBrokenError("each sandbox has one result and an index from 0")
        rollout = self._reported(message.rollout, attempt, indices, now)
        if rollout is None:
            return
        request = rollout.request
        hedged = rollout.ledger.hedged(indices)
        rollout.starting.over(attempt & (HEDGE - 1), indices)
        ended = rollout.ledger.finish(attempt, results)
        if ended:
            mean_ms = sum([each.run_us for each in results]) / len(results) / 1000
            self.books.pace.lasted(request.tenant, request.spec.template, mean_ms, len(ended))
            self.suspects.started(rollout)
        self._settle(rollout, attempt, hedged, now, effects)
        back = indices if len(ended) == len(results) else ranges.collect(ended)
        self.books.back(rollout, attempt, back, now)
        self._begin(rollout, now)
        self._conclude(rollout, "finished", now, effects)

    def _ended(self, message: m.SandboxesEnded, now: int, effects: list[Effect]) -> None:
        attempt, indices, reason, node = message.attempt, message.indices, message.reason, message.node
        rollout = self._reported(message.rollout, attempt, indices, now)
        if rollout is None:
            return
        hedges = rollout.ledger.hedged(indices)
        lost = node and reason.infrastructure and reason is not m.EndReason.START_FAILED
        running = rollout.running(indices) if lost else ()
        gone, again = rollout.ledger.end(attempt, indices, reason)
        rollout.starting.over(attempt, indices)
        rollout.leaving = ranges.without(rollout.leaving, indices)
        halves = ranges.without(hedges, rollout.ledger.hedged(hedges))
        declined = reason is m.EndReason.PREEMPTED and not node  # placement found no room after all
        away = bool(rollout.is_abroad(again)) and attempt < HEDGE
        ended = ranges.union(ranges.union(gone, again), halves)
        self.books.back(rollout, attempt, ended, now, declined=declined)
        if again:
            rollout.ran = ranges.union(rollout.ran, ranges.intersect(running, again))
            if declined:
                if not away:
                    self._shut(rollout.want, now)
                rollout.gathering = rollout.gathering or not rollout.begun
            present = rollout.ledger.by_attempt(ranges.indices(again))
            for number, part in present:
                self.books.retry(rollout, number, part, node, reason, now, declined=declined)
        if node:
            self._begin(rollout, now)
        self._conclude(rollout, "finished", now, effects)
        failed = reason is m.EndReason.START_FAILED and node and (gone or again)
        poison = failed and rollout.snapshot is not None
        if poison and self.suspects.failed(rollout, node, message.detail, self.books.rooms.capacity.nodes):
            for each in list(self.books.rollouts.values()):
                if same_template(rollout, each) and (verdict := Suspects.verdict(each, message.detail)):
                    self._give_up(each, verdict, now, effects)

    def _shut(self, want: Want, now: int) -> None:
        """Send no more such sandboxes to this cell's placement for a moment."""
        self.books.shut[want] = now + SHUT_MS
        self.books.at(now + SHUT_MS, "shut", "")

    def _give_up(self, rollout: Rollout, verdict: m.SandboxesClosed, now: int, effects: list[Effect]) -> None:
        """Say that sandboxes are given up; until that is read back, none of them is given out."""
        rollout.closing = ranges.union(rollout.closing, self.books.withdraw(rollout, verdict.indices, now))
        effects.append(rollout.outcome(self._cell, verdict))

    def _slept(self, message: m.SandboxSlept, now: int, effects: list[Effect]) -> None:
        name, attempt, index = message.rollout, message.attempt, message.index
        rollout = self._reported(name, attempt, ((index, 1),), now)
        if rollout is None:
            return
        one: m.Ranges = ((index, 1),)
        hedged = rollout.ledger.hedged(one)
        unheard = not rollout.ledger.is_ready(index)
        if not rollout.ledger.sleep(attempt, index):
            return
        if unheard:  # it was ready, but that comes later or never
            rollout.missed.ready(one, now)
        rollout.saved[index] = message.snapshot
        rollout.ran = ranges.union(rollout.ran, one)
        rollout.leaving = ranges.without(rollout.leaving, one)
        rollout.starting.over(attempt & (HEDGE - 1), one)
        self._settle(rollout, attempt, hedged, now, effects)
        self.books.back(rollout, attempt, one, now)
        self._begin(rollout, now)
        if message.preempted:  # nobody else knows that it is to come back
            request = rollout.request
            subject = subjects.rollout_request(self._cell, request.tenant, request.run)
            effects.append(Publish(subject, m.SandboxesWanted(name, one)))

    def _wake(self, name: str, indices: m.Ranges, now: int) -> None:
        rollout = self.books.rollouts.get(name)
        if not ranges.valid(indices, rollout.ledger.n if rollout else 2**31):
            raise LawBrokenError(f"indices {indices} are not those of rollout {name}")
        if rollout is None or now >= rollout.deadline_ms:
            return
        news = rollout.ledger.wake(indices)
        rollout.missed.wanted(news, now)
        woken = [Again(attempt, part) for attempt, part in rollout.ledger.by_attempt(ranges.indices(news))]
        if woken:
            self.books.start_again(rollout, woken, now)

    def _hedge(self, message: m.SandboxesHedged, now: int, effects: list[Effect]) -> bool:
        """Return whether more may be given out now."""
        rollout = self.books.rollouts.get(message.rollout)
        if not ranges.valid(message.indices, rollout.ledger.n if rollout else 2**31):
            raise LawBrokenError(f"indices {message.indices} are not those of rollout {message.rollout}")
        if rollout is None or now >= rollout.deadline_ms:
            return False
        news = rollout.ledger.hedge(message.attempt, message.indices)
        more = self.books.hedged(rollout, message.attempt, message.indices, news)
        if news:
            effects.extend(placements(self._cell, Part(rollout, self._cell, message.hedge, news, (), False)))
        return more

    def _close(self, name: str, indices: m.Ranges, reason: m.EndReason, now: int, effects: list[Effect]) -> None:
        rollout = self.books.rollouts.get(name)
        if not ranges.valid(indices, rollout.ledger.n if rollout else 2**31):
            raise LawBrokenError(f"indices {indices} are not those of rollout {name}")
        over = rollout is not None and rollout.guest is None and now >= rollout.deadline_ms
        if rollout is None or (over and reason is not m.EndReason.TIMED_OUT):
            return  # as in `_reported`
        indices = indices or ranges.whole(rollout.ledger.n)
        asleep = rollout.ledger.asleep(indices)
        hedged = rollout.ledger.hedged(indices)
        present = [(HEDGE, indices)]  # here, in whichever attempt
        if rollout.abroad:
            present = rollout.ledger.by_attempt(ranges.indices(rollout.ledger.open(indices)))
        waited: m.Ranges = ()
        late: m.Ranges = ()
        if reason is m.EndReason.TIMED_OUT and rollout.guest is None:
            # The platform had no room for them, and they never ran: no verdict on what was to run there.
            never = ranges.without(ranges.union(rollout.queue, rollout.closing), rollout.ran)
            waited = rollout.ledger.close(never, m.EndReason.NOT_STARTED)
            late = rollout.missed.late(rollout.ledger.open(indices), rollout.ledger)
            late = rollout.ledger.close(late, m.EndReason.DEADLINE)
        news = ranges.union(ranges.union(waited, late), rollout.ledger.close(indices, reason))
        if not news:
            return
        away = ranges.union(self.books.withdraw(rollout, news, now), ranges.union(asleep, rollout.closing))
        rollout.closing = ranges.without(rollout.closing, news)
        rollout.leaving = ranges.without(rollout.leaving, news)
        rollout.starting.gone(news)
        sent = ranges.without(news, away)
        if sent and rollout.guest is None:
            abroad = rollout.is_abroad(sent)
            here = ranges.union(ranges.without(sent, abroad), hedged)
            self._let_go(rollout, here, abroad, reason, -1, effects, late)
        for attempt, part in present:
            self.books.back(rollout, attempt, ranges.intersect(part, sent), now)
        self.books.back(rollout, HEDGE, hedged, now)
        closed = reason in (m.EndReason.RELEASED, m.EndReason.CANCELLED, m.EndReason.TIMED_OUT)
        self._conclude(rollout, reason.value if closed else "finished", now, effects, waited, late)

    def _conclude(
        self, rollout: Rollout, reason: str, now: int, effects: list[Effect], waited: m.Ranges = (),
        late: m.Ranges = (),
    ) -> None:  # fmt: skip
        """After some have ended: say so if all have, and let others begin if those that were to be first are gone."""
        if rollout.ledger.concluded and rollout.guest is not None:
            self._drop(rollout.request.rollout, now, effects)
        elif rollout.ledger.concluded:
            name = rollout.request.rollout
            told = m.RolloutConcluded(name, rollout.ledger.counts(), reason, waited, late)
            effects.append(rollout.outcome(self._cell, told))
            self._drop(name, now, effects)
        elif rollout.guest is None and rollout.lost_its_first:
            rollout.gathering = True
            self.books.enqueue(rollout, now)

    def _reject(self, rollout: Rollout, code: str, detail: str, now: int, effects: list[Effect]) -> None:
        """Tell the trainer of a rollout of which nothing was given out that it is not admitted after all."""
        name = rollout.request.rollout
        effects.append(rollout.outcome(self._cell, m.RolloutRejected(name, code, detail)))
        self._drop(name, now, effects)

    def _drop(self, name: str, now: int, effects: list[Effect]) -> None:
        rollout = self.books.rollouts[name]
        self.books.drop(rollout)
        if rollout.held:
            tenant = rollout.request.tenant
            effects.append(Publish(subjects.snapshot(tenant, "held"), m.SnapshotLetGo(tenant, name)))
        key = (rollout.request.tenant, rollout.request.spec.template)
        self.unresolved.get(key, {}).pop(name, None)  # the question stays asked for whoever comes next
        self.past[name] = now + REMEMBERED_MS
        self._forget(now)

    def _forget(self, now: int) -> None:
        while self.past:
            oldest = next(iter(self.past))
            if self.past[oldest] > now and len(self.past) <= _REMEMBERED:
                return
            del self.past[oldest]

    def _return_room(self, message: m.RoomReturned, now: int, effects: list[Effect]) -> None:
        name, tickets = guest(message.cell, message.number), message.tickets
        rollout = self.books.rollouts.get(name)
        self._close(name, tickets, m.EndReason.RELEASED, now, effects)
        if rollout is None and name not in self.past:
            self._return_early(name, tickets or _ALL, now)
        elif rollout is not None and message.declined:
            self._shut(rollout.want, now)

    def _return_early(self, name: str, tickets: m.Ranges, now: int) -> None:
        """Remember tickets that came back before the ask that they are of: a log may store the two so."""
        _, known = self.early.pop(name, (0, ()))
        self.early[name] = (now + REMEMBERED_MS, ranges.union(known, tickets))
        while (oldest := next(iter(self.early))) != name:
            if self.early[oldest][0] > now and len(self.early) <= _REMEMBERED:
                return
            del self.early[oldest]


def guest(cell: int, number: int) -> str:
    """Return the name of what another cell wants room for: no rollout can be called so."""
    return f"~{cell}-{number}"
