"""The scheduler under any order of messages: its books balance, and a copy from a checkpoint goes on alike."""

from collections import Counter
from typing import Any

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.machine import ranges
from shoal.machine.core import Cause, Effect, LawBrokenError, Publish
from shoal.machine.ledger import Ledger
from shoal.wire import messages as m
from shoal_scheduler.core.scheduler import SchedulerCore

QUOTA = 5

names = st.sampled_from(["r1", "r2", "r3"])
tenants = st.sampled_from(["t1", "t2"])
indices = st.one_of(st.just(((0, 1),)), st.sets(st.integers(0, 5), min_size=1).map(ranges.collect))
attempts = st.sampled_from([0, 0, 0, 1, 2])  # mostly those that count

infrastructure = [reason for reason in m.EndReason if reason.infrastructure]
reasons = st.one_of(st.sampled_from(infrastructure), st.sampled_from(m.EndReason))


def outcome(core: SchedulerCore, message: Any, cause: Cause) -> tuple[list[Effect], str]:
    """Return what follows, and which law was broken."""
    try:
        return list(core.handle(message, cause)), ""
    except LawBrokenError as error:
        return list(error.answers), str(error)


class Scheduler(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.twin = SchedulerCore(0, quota=QUOTA), SchedulerCore(0, quota=QUOTA)
        self.sequence = self.now = 0
        self.placed: Counter[tuple[str, int, int]] = Counter()
        self.concluded: Counter[str] = Counter()
        self.submitted: dict[str, int] = {}
        self.deadlines: dict[str, int] = {}
        self.ledgers: dict[str, Ledger] = {}

    def fold(self, message: Any, passes_ms: int = 1) -> None:
        self.now += passes_ms
        self.sequence += 1
        cause = Cause("S", self.sequence, self.now)
        before = self.core.dump()
        effects, broken = outcome(self.core, message, cause)
        assert outcome(self.twin, message, cause) == (effects, broken)
        if broken:
            assert self.core.dump() == before
        elif isinstance(message, m.RolloutSubmitted) and message.rollout not in self.submitted:
            # Only now: what breaks a law may come again, and be another.
            self.submitted[message.rollout] = message.spec.n
            self.ledgers[message.rollout] = Ledger(message.spec)
            self.deadlines[message.rollout] = self.now + message.spec.timeout_ms
            told = [each.message for each in effects if isinstance(each, Publish)]
            assert any(isinstance(each, m.RolloutRejected) for each in told) == (message.spec.n > QUOTA)
        if not broken:
            self.follow(message)
        for effect in effects:
            assert isinstance(effect, Publish)
            match effect.message:
                case m.PlaceRequested(rollout=rollout, attempt=attempt, indices=part):
                    for index in ranges.indices(part):
                        self.placed[rollout, attempt, index] += 1
                case m.RolloutConcluded(
                    rollout=rollout, counts=counts, reason=reason, not_started=waited, deadline=late
                ):
                    assert (reason == "timed_out") == (self.now >= self.deadlines[rollout])
                    self.concluded[rollout] += 1
                    if reason == "timed_out":
                        self.ledgers[rollout].close(waited, m.EndReason.NOT_STARTED)
                        self.ledgers[rollout].close(late, m.EndReason.DEADLINE)
                        self.ledgers[rollout].close(ranges.whole(self.submitted[rollout]), m.EndReason.TIMED_OUT)
                    assert counts == self.ledgers[rollout].counts()
                    assert sum(count for _, count in counts) == self.submitted[rollout]
                case m.RolloutRejected(rollout=rollout, code=code):
                    if not broken:  # else it is told to a tenant that does not exist, about a request of its own
                        self.ledgers.pop(rollout)
                    assert code in ("quota", "unknown_template", "unsupported_isolation", "unknown_tenant")

    def follow(self, message: Any) -> None:
        """Fold as the rollout's trainer does, until it is over; what comes after the deadline comes too late."""
        name = getattr(message, "rollout", "")
        if name not in self.ledgers or self.concluded[name] or self.now >= self.deadlines[name]:
            return
        ledger = self.ledgers[name]
        match message:
            case m.SandboxesReady(attempt=attempt, indices=part):
                ledger.ready(attempt, part)
            case m.SandboxesFinished(attempt=attempt, results=results):
                ledger.finish(attempt, results)
            case m.SandboxesEnded(attempt=attempt, indices=part, reason=reason):
                ledger.end(attempt, part, reason)
            case m.SandboxSlept(attempt=attempt, index=index):
                ledger.sleep(attempt, index)
            case m.SandboxesWanted(indices=part):
                ledger.wake(part)
            case m.SandboxesHedged(attempt=attempt, indices=part):
                ledger.hedge(attempt, part)
            case m.SandboxesClosed(indices=part, reason=reason):
                ledger.close(part, reason)
            case m.RolloutReleased(indices=part):
                ledger.close(part or ranges.whole(ledger.n), m.EndReason.RELEASED)
            case m.RolloutCancelled():
                ledger.close(ranges.whole(ledger.n), m.EndReason.CANCELLED)

    @initialize(slots=st.integers(1, 8), n=st.integers(1, 5), on_lost=st.sampled_from(m.OnLost))
    def begin(self, slots: int, n: int, on_lost: m.OnLost) -> None:
        """Begin where something runs: chance alone seldom gets there, and what never runs keeps every law."""
        self.capacity(slots)
        self.submit("r1", "t1", n, 0, on_lost)
        self.resolve("t1", True)
        assert self.placed

    @rule(
        rollout=names,
        tenant=tenants,
        n=st.integers(1, 6),
        priority=st.integers(0, 1),
        on_lost=st.sampled_from(m.OnLost),
    )
    def submit(self, rollout: str, tenant: str, n: int, priority: int, on_lost: m.OnLost) -> None:
        spec = m.RolloutSpec("host", n, timeout_ms=1000, priority=priority, on_lost=on_lost, max_attempts=3)
        self.fold(m.RolloutSubmitted(rollout, tenant, "run", spec))

    @rule(tenant=tenants, known=st.booleans())
    def resolve(self, tenant: str, known: bool) -> None:
        self.fold(
            m.TemplateResolved(tenant, "host", m.Snapshot("host", "host") if known else None, "" if known else "no")
        )

    @rule(slots=st.integers(0, 8))
    def capacity(self, slots: int) -> None:
        self.fold(m.CellCapacity(slots, min(slots, 2), ("zygote",) if slots else ()))

    @rule(rollout=names, attempt=attempts, part=indices)
    def ready(self, rollout: str, attempt: int, part: m.Ranges) -> None:
        self.fold(m.SandboxesReady(rollout, attempt, part, "n", "e", "zygote"))

    @rule(
        rollout=names, attempt=attempts, part=indices, code=st.integers(0, 1),
        passes_ms=st.sampled_from([1, 1, 2000]),
    )  # fmt: skip
    def finish(self, rollout: str, attempt: int, part: m.Ranges, code: int, passes_ms: int) -> None:
        results = tuple(m.SandboxResult(index, m.CommandResult(code), 1) for index in ranges.indices(part))
        self.fold(m.SandboxesFinished(rollout, attempt, "n", "e", "zygote", results), passes_ms)

    @rule(rollout=names, attempt=attempts, part=indices, reason=reasons)
    def end(self, rollout: str, attempt: int, part: m.Ranges, reason: m.EndReason) -> None:
        self.fold(m.SandboxesEnded(rollout, attempt, part, "n", reason))

    @rule(rollout=names, attempt=attempts, index=st.integers(0, 5))
    def sleep(self, rollout: str, attempt: int, index: int) -> None:
        kept = m.Snapshot(f"kept-{self.sequence}", "host")
        self.fold(m.SandboxSlept(rollout, attempt, index, "n", kept))

    @rule(rollout=names, part=indices)
    def want(self, rollout: str, part: m.Ranges) -> None:
        self.fold(m.SandboxesWanted(rollout, part))

    @rule(rollout=names, part=st.one_of(st.just(()), indices))
    def release(self, rollout: str, part: m.Ranges) -> None:
        self.fold(m.RolloutReleased(rollout, part))

    @rule(rollout=names)
    def cancel(self, rollout: str) -> None:
        self.fold(m.RolloutCancelled(rollout))

    @rule(tenant=tenants, there=st.booleans())
    def name_tenants(self, tenant: str, there: bool) -> None:
        self.fold(m.TenantAdded(tenant) if there else m.TenantRemoved(tenant))

    @rule(passes_ms=st.sampled_from([1, 600, 2000]))
    def tick(self, passes_ms: int) -> None:
        self.fold(m.Tick(self.now), passes_ms)

    @rule()
    def restart(self) -> None:
        self.twin = SchedulerCore(0, quota=QUOTA)
        self.twin.load(self.core.dump())

    @invariant()
    def lawful(self) -> None:
        self.core.check()
        self.twin.check()
        assert self.core.dump() == self.twin.dump()
        assert self.core.wake_at_ms() == self.twin.wake_at_ms()
        assert all(count == 1 for count in self.placed.values())
        assert all(count == 1 for count in self.concluded.values())


TestScheduler = Scheduler.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
