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
from shoal_scheduler.core.state import Again, Rollout

REMEMBERED_MS: Final = 86_400_000
_REMEMBERED: Final = 1_000_000


class Fates:
    """See the module. `past` are rollouts that are over; `unresolved` who waits to hear what a template stands for."""

    def __init__(self, cell: int) -> None:
        self._cell = cell
        self.books = Books(cell)
        self.past: dict[str, int] = {}  # concluded or rejected: until when they are remembered
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
        if any(number == attempt and waiting and ranges.intersect(indices, waiting) for number, waiting in unsent):
            raise LawBrokenError(f"a report of sandboxes of rollout {name} that nobody was asked to start")
        return rollout if now < rollout.deadline_ms else None

    def _ready(self, rollout: Rollout, attempt: int, indices: m.Ranges, now: int, effects: list[Effect]) -> bool:
        """Return whether more may be given out now."""
        hedged = rollout.ledger.hedged(indices)
        if rollout.ledger.ready(attempt, indices):
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
            self.books.give(rollout, -ranges.count(settled), now)
            name = rollout.request.rollout
            ask = m.ReleaseRequested(name, settled, m.EndReason.RELEASED, attempt ^ HEDGE)
            effects.append(Publish(subjects.placement_request(self._cell), ask))

    def _finished(self, message: m.SandboxesFinished, now: int, effects: list[Effect]) -> None:
        results, attempt = message.results, message.attempt
        if len({r.index for r in results}) != len(results) or any(r.index < 0 for r in results):
            raise LawBrokenError("each sandbox has one result and an index from 0")
        indices = ranges.collect(r.index for r in results)
        rollout = self._reported(message.rollout, attempt, indices, now)
        if rollout is None:
            return
        request = rollout.request
        hedged = rollout.ledger.hedged(indices)
        rollout.no_longer_sent(attempt & (HEDGE - 1), indices)
        ended = 0
        for each in results:
            if rollout.ledger.finish(attempt, each.index, each.result):
                ended += 1
                self.books.pace.lasted(request.tenant, request.spec.template, each.run_us / 1000)
        if ended:
            self.suspects.started(rollout)
        self._settle(rollout, attempt, hedged, now, effects)
        self.books.give(rollout, -ended, now)
        self._begin(rollout, now)
        self._conclude(rollout, "finished", now, effects)

    def _ended(self, message: m.SandboxesEnded, now: int, effects: list[Effect]) -> None:
        attempt, indices, reason, node = message.attempt, message.indices, message.reason, message.node
        rollout = self._reported(message.rollout, attempt, indices, now)
        if rollout is None:
            return
        hedges = rollout.ledger.hedged_count()
        gone, again = rollout.ledger.end(attempt, indices, reason)
        rollout.no_longer_sent(attempt, indices)
        rollout.leaving = ranges.without(rollout.leaving, indices)
        halves = hedges - rollout.ledger.hedged_count()
        self.books.give(rollout, -(ranges.count(gone) + ranges.count(again) + halves), now)
        if again:
            declined = reason is m.EndReason.PREEMPTED and not node
            if declined:  # placement found no room after all
                self.books.shut[rollout.want] = now + SHUT_MS
                self.books.at(now + SHUT_MS, "shut", "")
                rollout.gathering = rollout.gathering or not rollout.begun
            present = rollout.ledger.by_attempt(ranges.indices(again))
            for number, part in present:
                self.books.retry(rollout, number, part, node, reason, now)
        if node:
            self._begin(rollout, now)
        self._conclude(rollout, "finished", now, effects)
        poison = reason is m.EndReason.START_FAILED and node and (gone or again)
        if poison and self.suspects.failed(rollout, node, message.detail, self.books.rooms.capacity.nodes):
            for each in list(self.books.rollouts.values()):
                if same_template(rollout, each) and (verdict := Suspects.verdict(each, message.detail)):
                    self._give_up(each, verdict, now, effects)

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
        if not rollout.ledger.sleep(attempt, index):
            return
        rollout.saved[index] = message.snapshot
        rollout.leaving = ranges.without(rollout.leaving, one)
        rollout.no_longer_sent(attempt & (HEDGE - 1), one)
        self._settle(rollout, attempt, hedged, now, effects)
        self.books.give(rollout, -1, now)
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
        woken = [Again(attempt, part) for attempt, part in rollout.ledger.by_attempt(ranges.indices(news))]
        if woken:
            self.books.start_again(rollout, woken, now)

    def _hedge(self, message: m.SandboxesHedged, now: int, effects: list[Effect]) -> None:
        rollout = self.books.rollouts.get(message.rollout)
        if rollout is None or now >= rollout.deadline_ms:
            return
        news = rollout.ledger.hedge(message.attempt, message.indices)
        self.books.give(rollout, ranges.count(news), now)
        if news:
            effects.extend(placements(self._cell, Part(rollout, message.hedge, news, (), False)))

    def _close(self, name: str, indices: m.Ranges, reason: m.EndReason, now: int, effects: list[Effect]) -> None:
        rollout = self.books.rollouts.get(name)
        if not ranges.valid(indices, rollout.ledger.n if rollout else 2**31):
            raise LawBrokenError(f"indices {indices} are not those of rollout {name}")
        if rollout is None or (now >= rollout.deadline_ms and reason is not m.EndReason.TIMED_OUT):
            return  # as in `_reported`
        indices = indices or ranges.whole(rollout.ledger.n)
        asleep = rollout.ledger.asleep(indices)
        hedged = ranges.count(rollout.ledger.hedged(indices))
        news = rollout.ledger.close(indices, reason)
        if not news:
            return
        away = ranges.union(self.books.withdraw(rollout, news, now), ranges.union(asleep, rollout.closing))
        rollout.closing = ranges.without(rollout.closing, news)
        rollout.leaving = ranges.without(rollout.leaving, news)
        for each in rollout.sent:
            rollout.no_longer_sent(each.attempt, news)
        sent = ranges.without(news, away)
        self.books.give(rollout, -(ranges.count(sent) + hedged), now)
        if sent:
            everything = () if rollout.ledger.concluded else sent
            ask = m.ReleaseRequested(name, everything, reason)
            effects.append(Publish(subjects.placement_request(self._cell), ask))
        closed = reason in (m.EndReason.RELEASED, m.EndReason.CANCELLED, m.EndReason.TIMED_OUT)
        self._conclude(rollout, reason.value if closed else "finished", now, effects)

    def _conclude(self, rollout: Rollout, reason: str, now: int, effects: list[Effect]) -> None:
        if rollout.ledger.concluded:
            name = rollout.request.rollout
            told = m.RolloutConcluded(name, rollout.ledger.counts(), reason)
            effects.append(rollout.outcome(self._cell, told))
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
