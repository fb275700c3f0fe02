"""A rollout as its trainer sees it: a fold of the rollout log by the cluster's own ledger. No I/O."""

from dataclasses import dataclass, field
from typing import Final

import msgspec

from shoal.client.results import CommandResult, RolloutStatus, RolloutSummary, SandboxOutcome
from shoal.machine import ranges
from shoal.machine.ledger import HEDGE, Ledger, next_attempt, reason_of
from shoal.wire.messages import (
    AnyMessage,
    EndReason,
    Ranges,
    RolloutCancelled,
    RolloutConcluded,
    RolloutDispatched,
    RolloutQueued,
    RolloutRejected,
    RolloutReleased,
    RolloutSpec,
    RolloutSubmitted,
    SandboxesClosed,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesHedged,
    SandboxesReady,
    SandboxesWanted,
    SandboxSaved,
    SandboxSlept,
    StepGivenUp,
    StepsGivenUp,
)

_CONCLUSIONS = {
    "released": EndReason.RELEASED,
    "cancelled": EndReason.CANCELLED,
    "timed_out": EndReason.TIMED_OUT,
}


class Ready(msgspec.Struct):
    """Where a sandbox runs, and since when (ms of the broker's clock)."""

    index: int
    attempt: int
    node: str
    executor: str
    isolation: str
    time_ms: int
    first_command_ms: int | None = None
    asleep: bool = False  # it runs nowhere, and has no node until it is woken


@dataclass(slots=True)
class News:
    """What one message changed: sandboxes that became ready, ended for good, start again, sleep or were kept.

    Of those kept: index, attempt, and the numbers of its steps that the snapshot has.
    """

    ready: list[Ready] = field(default_factory=list)
    ended: list[SandboxOutcome] = field(default_factory=list)
    again: list[tuple[int, EndReason, str]] = field(default_factory=list)
    slept: list[tuple[int, Ready]] = field(default_factory=list)  # and the attempt that does
    kept: list[tuple[int, int, Ranges]] = field(default_factory=list)


_PASSING: Final = (
    SandboxesReady, SandboxesFinished, SandboxesEnded, SandboxSlept, SandboxesWanted, RolloutReleased, RolloutCancelled,
    SandboxesHedged, SandboxesClosed,
)  # fmt: skip
"""What counts only before the rollout's deadline: the scheduler ends it then, whatever comes after."""


class RolloutFold:
    """The state of one rollout; `handle` each message of its run in the log's order."""

    def __init__(self, rollout: str, tenant: str, run: str, spec: RolloutSpec) -> None:
        self.rollout = rollout
        self.tenant = tenant
        self.run = run
        self.spec = spec
        self.ledger = Ledger(spec)
        self.submitted_ms: int | None = None
        self.heard = False  # whether the cluster has said anything about it
        self.queued: RolloutQueued | None = None
        self.dispatched = False
        self.rejected: RolloutRejected | None = None
        self.concluded: RolloutConcluded | None = None
        self.concluded_ms: int | None = None
        self.where: dict[int, Ready] = {}
        self.kept: dict[int, tuple[int, Ranges]] = {}
        """Of sandboxes that have a snapshot: the attempt it is of, and the numbers of its steps that it has."""
        self.given_up: dict[int, list[StepGivenUp]] = {}
        """By sandbox, the steps that its trainer did not wait for, in the log's order."""
        self.key = ""
        self._came: dict[int, Ready] = {}  # of those that wait for commands, all that ever were ready, in that order
        self.outcomes: list[SandboxOutcome] = []
        """How sandboxes ended, in the log's order, each once."""

    def name(self, index: int) -> str:
        """Return a sandbox's name."""
        return f"{self.rollout}-{index}"

    @property
    def over(self) -> bool:
        """Whether nothing more will come: every sandbox has ended, or none will ever start."""
        return self.ledger.concluded or self.rejected is not None

    def handle(self, message: AnyMessage, time_ms: int) -> News:
        """Fold one message of the log; what is another rollout's, late or a repeat changes nothing."""
        news = News()
        if getattr(message, "rollout", None) != self.rollout:
            return news
        indices: Ranges = getattr(message, "indices", ())
        if not ranges.valid(indices, self.spec.n):
            return news  # the scheduler gives such a report up, too
        if (
            isinstance(message, _PASSING)
            and self.submitted_ms is not None
            and time_ms >= self.submitted_ms + self.spec.timeout_ms
        ):
            return news
        match message:
            case RolloutSubmitted(key=key):
                if self.submitted_ms is None:
                    self.submitted_ms, self.key = time_ms, key
                return news
            case RolloutReleased():
                self._close(self.ledger.close(indices, EndReason.RELEASED), EndReason.RELEASED, "", news)
                return news
            case RolloutCancelled(by=by):
                everything = ranges.whole(self.spec.n)
                detail = f"by {by}" if by else ""
                self._close(self.ledger.close(everything, EndReason.CANCELLED), EndReason.CANCELLED, detail, news)
                return news
            case SandboxesReady():
                for index in ranges.indices(self.ledger.ready(message.attempt, indices)):
                    where = Ready(index, message.attempt, message.node, message.executor, message.isolation, time_ms)
                    self.where[index] = where
                    if not self.spec.commands:
                        self._came[index] = where
                    news.ready.append(where)
            case SandboxesFinished():
                self._finish(message, time_ms, news)
            case SandboxesEnded(attempt=attempt, reason=reason, detail=detail, node=node):
                gone, again = self.ledger.end(attempt, indices, reason)
                for index in ranges.indices(again):
                    self.where.pop(index, None)
                    news.again.append((index, reason, detail))
                self._close(gone, reason, detail, news, node)
            case SandboxSlept(attempt=attempt, index=index):
                if 0 <= index < self.spec.n and self.ledger.sleep(attempt, index):
                    before = self.where.get(index)
                    isolation = before.isolation if before else ""
                    self.where[index] = Ready(index, next_attempt(attempt), "", "", isolation, time_ms, asleep=True)
                    news.slept.append((attempt, self.where[index]))
            case StepsGivenUp(steps=steps):
                for step in steps:
                    self.given_up.setdefault(step.index, []).append(step)
                return news
            case SandboxesWanted():
                self.ledger.wake(indices)
                return news
            case SandboxSaved(attempt=attempt, index=index, commands=commands, steps=steps):
                if commands and not steps:
                    steps = ((1, commands),)  # an old executor does not number them
                news.kept.append((index, attempt, steps))
                self.kept[index] = (attempt, steps)
            case SandboxesHedged(attempt=attempt):
                self.ledger.hedge(attempt, indices)
                return news
            case SandboxesClosed(reason=reason, detail=detail):
                self._close(self.ledger.close(indices, reason), reason, detail, news)
            case RolloutQueued():
                self.queued = message
            case RolloutDispatched():
                self.queued, self.dispatched = None, True
            case RolloutRejected():
                if not self.dispatched and self.concluded is None:
                    self.rejected = message
            case RolloutConcluded(reason=why, not_started=waited, deadline=late):
                self.concluded = self.concluded or message
                self.concluded_ms = self.concluded_ms or time_ms
                if ranges.valid(waited, self.spec.n):
                    never, detail = EndReason.NOT_STARTED, "there was no room for it before its rollout's time was up"
                    self._close(self.ledger.close(waited, never), never, detail, news)
                if ranges.valid(late, self.spec.n):
                    for index in ranges.indices(self.ledger.close(late, EndReason.DEADLINE)):
                        self._close(((index, 1),), EndReason.DEADLINE, self._lateness(index), news)
                reason = _CONCLUSIONS.get(why, EndReason.NODE_LOST)
                detail = "" if why in _CONCLUSIONS else "the cluster concluded the rollout, but no report of it came"
                self._close(self.ledger.close(ranges.whole(self.spec.n), reason), reason, detail, news)
            case _:
                return news
        self.heard = True
        return news

    def note_command(self, index: int, attempt: int, time_ms: int) -> None:
        """Note when a command of a sandbox was done; the first counts."""
        where = self.where.get(index)
        if where is not None and where.attempt == attempt and where.first_command_ms is None:
            where.first_command_ms = time_ms

    def came(self) -> list[Ready]:
        """Return those that were ready at some time, in that order; but not who is being started again now."""
        ended = {outcome.index for outcome in self.outcomes}
        there = self.where.keys() | ended
        return [self.where.get(index, came) for index, came in self._came.items() if index in there]

    def since_submitted(self, time_ms: float | None) -> float | None:
        """Return ms from submission to a moment of the broker's clock."""
        if time_ms is None or self.submitted_ms is None:
            return None
        return max(time_ms - self.submitted_ms, 0.0)

    def status(self) -> RolloutStatus:
        """Return the rollout as it is now."""
        ready, asleep = self.ledger.ready_count(), self.ledger.asleep_count()
        ended = self.spec.n - self.ledger.live
        if self.rejected is not None:
            state = "rejected"
        elif self.concluded is not None:
            state = self.concluded.reason
        elif self.dispatched or ready or ended:
            state = "running"
        else:
            state = "queued" if self.queued else "submitted"
        waiting = self.queued if state in ("queued", "running") else None
        return RolloutStatus(
            self.rollout,
            self.tenant,
            self.run,
            self.spec.template,
            self.spec.n,
            state,
            self.ledger.live - ready - asleep,
            ready,
            ended,
            dict(self.ledger.counts()),
            waiting.waiting if waiting else 0,
            waiting.ahead if waiting else 0,
            waiting.reason if waiting else "",
            asleep,
            waiting.start_ms or None if waiting else None,
            self.key,
        )

    def summary(self) -> RolloutSummary:
        """Return how it ended, by this fold's own count. It must have concluded."""
        assert self.concluded is not None
        return RolloutSummary(self.rollout, self.spec.n, dict(self.ledger.counts()), self.concluded.reason)

    def _finish(self, message: SandboxesFinished, time_ms: int, news: News) -> None:
        results = [done for done in message.results if 0 <= done.index < self.spec.n]
        news_of = set(self.ledger.finish(message.attempt, results))
        attempt, node, isolation = message.attempt & (HEDGE - 1), message.node, message.isolation
        ended_ms, since_ms, where = self.since_submitted(time_ms), self.submitted_ms, self.where
        ended: list[SandboxOutcome] = []
        for done in results:
            index, result = done.index, done.result
            if index not in news_of:
                continue
            news_of.remove(index)  # the first of two results of one sandbox counts
            if where:
                where.pop(index, None)
            ready_ms = None if since_ms is None else max(time_ms - done.run_us / 1000 - since_ms, 0.0)
            ended.append(
                SandboxOutcome(
                    self.name(index), index, attempt, reason_of(result), node, isolation, CommandResult.of(result), "",
                    ready_ms, ended_ms,
                )
            )  # fmt: skip
        news.ended += ended
        self.outcomes += ended

    def _lateness(self, index: int) -> str:
        """Return how much of its rollout's time a sandbox had, for people."""
        whole, where = self.spec.timeout_ms, self.where.get(index)
        if where is None:
            return f"it was not ready in its rollout's {whole / 1000:.1f} s"
        if where.asleep:
            return f"it was there for less than half of its rollout's {whole / 1000:.1f} s, and sleeps"
        waited = min(self.since_submitted(where.time_ms) or 0.0, float(whole))
        last = "last " if where.attempt else ""
        times = f"it was {last}ready after {waited / 1000:.1f} s of its rollout's {whole / 1000:.1f} s"
        if where.attempt:
            return times
        return f"{times}, and ran for {(whole - waited) / 1000:.1f} s"

    def _close(self, gone: Ranges, reason: EndReason, detail: str, news: News, node: str = "") -> None:
        for index in ranges.indices(gone):
            where = self.where.pop(index, None)
            attempt = self.ledger.attempt(index) & (HEDGE - 1)
            if where is None:
                outcome = SandboxOutcome(self.name(index), index, attempt, reason, node, "", None, detail)
            else:
                ready_ms, first_ms = self.since_submitted(where.time_ms), self.since_submitted(where.first_command_ms)
                outcome = SandboxOutcome(
                    self.name(index), index, attempt, reason, where.node, where.isolation, None, detail, ready_ms,
                    first_ms,
                )  # fmt: skip
            news.ended.append(outcome)
            self.outcomes.append(outcome)
