"""The ledger against a model that keeps one dictionary per sandbox: whatever is reported, in whatever order, twice."""

from dataclasses import dataclass

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.machine import ranges
from shoal.machine.ledger import Ledger, reason_of
from shoal.wire.messages import CommandResult, EndReason, OnLost, Ranges, RolloutSpec, SandboxResult

ATTEMPTS = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3])  # most reports are of early attempts
REASONS = st.one_of(st.just(EndReason.NODE_LOST), st.sampled_from(EndReason))
RESULTS = st.builds(
    CommandResult, exit_code=st.sampled_from([0, 1, 137]), timed_out=st.booleans(), out_of_memory=st.booleans()
)


@dataclass
class Sandbox:
    attempt: int = 0
    ready: bool = False
    reason: EndReason | None = None


class LedgerMachine(RuleBasedStateMachine):
    """Reports in any order, some of them of other attempts, and each of them twice."""

    @initialize(
        n=st.integers(1, 6), limit=st.sampled_from([3, 4, 2, 1]), on_lost=st.sampled_from([OnLost.RESTART, OnLost.FAIL])
    )
    def begin(self, n: int, limit: int, on_lost: OnLost) -> None:
        self.n, self.limit, self.on_lost = n, limit, on_lost
        self.ledger = Ledger(RolloutSpec("host", n, on_lost=on_lost, max_attempts=limit))
        self.model = [Sandbox() for _ in range(n)]
        self.starts = [1] * n

    def some(self, data: st.DataObject) -> Ranges:
        return ranges.collect(data.draw(st.sets(st.integers(0, self.n - 1), min_size=1)))

    def current(self, indices: Ranges, attempt: int) -> list[int]:
        """Return those of the indices for which a report of this attempt counts."""
        return [i for i in ranges.indices(indices) if self.model[i].attempt == attempt and not self.model[i].reason]

    @rule(data=st.data(), attempt=ATTEMPTS)
    def sandboxes_are_ready(self, data: st.DataObject, attempt: int) -> None:
        indices = self.some(data)
        news = [i for i in self.current(indices, attempt) if not self.model[i].ready]
        assert self.ledger.ready(attempt, indices) == ranges.collect(news)
        for i in news:
            self.model[i].ready = True
        assert self.ledger.ready(attempt, indices) == ()

    @rule(data=st.data(), attempt=ATTEMPTS, result=RESULTS)
    def a_sandbox_finishes(self, data: st.DataObject, attempt: int, result: CommandResult) -> None:
        index = data.draw(st.integers(0, self.n - 1))
        counts = bool(self.current(((index, 1),), attempt))
        done = SandboxResult(index, result, 1)
        assert self.ledger.finish(attempt, (done, done)) == [index] * counts
        if counts:
            self.model[index].reason = reason_of(result)
        assert not self.ledger.finish(attempt, (done,))

    @rule(data=st.data(), attempt=ATTEMPTS, reason=REASONS)
    def sandboxes_end(self, data: st.DataObject, attempt: int, reason: EndReason) -> None:
        indices = self.some(data)
        gone, again = [], []
        for i in self.current(indices, attempt):
            over = reason is EndReason.DEADLINE
            lost = reason.infrastructure and not over and self.on_lost is not OnLost.FAIL
            made_room = reason is EndReason.PREEMPTED
            if made_room or ((reason is EndReason.START_FAILED or lost) and self.starts[i] < self.limit):
                self.starts[i] += not made_room
                self.model[i] = Sandbox(attempt + 1)
                again.append(i)
            else:
                self.model[i].reason = reason
                gone.append(i)
        assert self.ledger.end(attempt, indices, reason) == (ranges.collect(gone), ranges.collect(again))
        assert self.ledger.end(attempt, indices, reason) == ((), ())

    @rule(data=st.data(), reason=st.sampled_from([EndReason.RELEASED, EndReason.CANCELLED, EndReason.TIMED_OUT]))
    def sandboxes_are_closed(self, data: st.DataObject, reason: EndReason) -> None:
        indices = self.some(data)
        news = [i for i in ranges.indices(indices) if not self.model[i].reason]
        assert self.ledger.close(indices, reason) == ranges.collect(news)
        for i in news:
            self.model[i].reason = reason
        assert self.ledger.close(indices, reason) == ()

    @invariant()
    def ledger_and_model_agree(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.check()
        reasons = [sandbox.reason for sandbox in self.model]
        open_ = [i for i in range(self.n) if not reasons[i]]
        assert [self.ledger.reason(i) for i in range(self.n)] == reasons
        assert [self.ledger.attempt(i) for i in range(self.n)] == [sandbox.attempt for sandbox in self.model]
        assert [self.ledger.is_ready(i) for i in open_] == [self.model[i].ready for i in open_]
        assert self.ledger.ready_count() == sum(self.model[i].ready for i in open_)
        assert self.ledger.open() == ranges.collect(open_)
        assert self.ledger.live == len(open_)
        assert self.ledger.concluded == (not open_)
        assert dict(self.ledger.counts()) == {r: reasons.count(r) for r in EndReason if r in reasons}
        assert max(self.starts) <= self.limit
        grouped = self.ledger.by_attempt(range(self.n))
        assert sorted(i for _, held in grouped for i in ranges.indices(held)) == list(range(self.n))


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=300)


def test_a_ready_sandbox_that_is_lost_starts_again_unready_and_its_late_result_counts_for_nothing() -> None:
    ledger = Ledger(RolloutSpec("host", 2, on_lost=OnLost.RESTART, max_attempts=2))
    assert ledger.ready(0, ((0, 2),)) == ((0, 2),)
    assert ledger.end(0, ((1, 1),), EndReason.NODE_LOST) == ((), ((1, 1),))
    assert [ledger.is_ready(0), ledger.is_ready(1)] == [True, False]
    assert not ledger.finish(0, (SandboxResult(1, CommandResult(0), 1),))
    assert ledger.ready(1, ((1, 1),)) == ((1, 1),)
    assert ledger.end(1, ((1, 1),), EndReason.NODE_LOST) == (((1, 1),), ())
    assert ledger.reason(1) is EndReason.NODE_LOST


def test_what_was_given_to_it_and_cannot_be_used_is_not_tried_again() -> None:
    ledger = Ledger(RolloutSpec("host", 2, on_lost=OnLost.RESTART, max_attempts=3))
    assert ledger.end(0, ((0, 1),), EndReason.START_FAILED) == ((), ((0, 1),))
    assert ledger.end(0, ((1, 1),), EndReason.BAD_INPUT) == (((1, 1),), ())
    assert ledger.reason(1) is EndReason.BAD_INPUT
    assert not EndReason.BAD_INPUT.infrastructure
