"""What has become of everything that was asked for: a fold of the log's reports, a few bytes a sandbox. No I/O.

The same ledger that scheduler and trainers fold says which reports count; beside it stand the moments. Latencies are
taken twice: by this process's clock from when a rollout should have been asked for, and by the broker's from when the
request was stored.
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from shoal.machine import ranges
from shoal.machine.ledger import Ledger
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
)
from shoal_loadtest.load.waits import Waits
from shoal_loadtest.measure.latency import PASSING, Latencies

_TENTH_NS: Final = 100_000_000
_US: Final = 1_000
_REMEMBERED: Final = 100_000
"""Rollouts that are over, of which another conclusion would be noticed."""


@dataclass(slots=True, eq=False)
class Tally:
    """One phase's sums. `moments`: tenths of a second of the monotonic clock, and how many were through in each."""

    number: int
    stays: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)
    recent: Latencies = field(default_factory=lambda: Latencies(PASSING))
    moments: Counter[int] = field(default_factory=Counter)
    first_ns: int = 0
    last_ns: int = 0
    first_command_ns: int = 0
    last_command_ns: int = 0
    open: int = 0
    """Sandboxes that are not where the phase wants them yet: concluded, or ready where they stay."""

    def note(self, name: str, us: float, count: int = 1) -> None:
        """Take a latency by this process's clock."""
        self.latencies.add(name, us, count)
        self.recent.add(name, us, count)

    def passed(self, count: int, now_ns: int) -> None:
        """Note that so many are where the phase wants them."""
        self.moments[now_ns // _TENTH_NS] += count
        self.last_ns = now_ns


class Entry:
    """One rollout. `intended_ns`: when it should have been asked for."""

    __slots__ = (
        "again",
        "busy",
        "ended",
        "id",
        "intended_ns",
        "leaving",
        "ledger",
        "n",
        "places",
        "ready",
        "released",
        "settled",
        "slot",
        "submitted_ms",
        "tally",
        "tenant",
        "waiting",
    )  # fmt: skip

    def __init__(self, id: str, tenant: int, spec: RolloutSpec, tally: Tally, intended_ns: int, places: bool) -> None:
        self.id = id
        self.tenant = tenant
        self.n = spec.n
        self.tally = tally
        self.intended_ns = intended_ns
        self.ledger = Ledger(spec)
        self.submitted_ms: int | None = None
        self.waiting = 0
        self.ready = 0
        self.ended = 0
        self.settled = False
        self.released = False
        self.again: set[int] = set()  # ready before, and being started once more
        self.places = array("H", bytes(2 * spec.n)) if places else None
        self.slot = -1
        self.busy = 0  # commands under way
        self.leaving = False  # to be given back as soon as none are


def _ignore(*_: Any) -> None:
    return


class Book:
    """All rollouts that have not concluded. The hooks are called when a fold is done with a message.

    `on_ready`: these sandboxes take commands; `on_settled`: none of a rollout's is on its way any more; `on_gone`:
    sandboxes ended, or start anew, for this reason; `on_concluded`: the scheduler has said the last word.
    """

    def __init__(self, tenants: int) -> None:
        self.entries: dict[str, Entry] = {}
        self.executors: list[str] = []
        self.waits = Waits(tenants)
        self.live = 0
        self.ready = 0
        self.failed = 0
        self.audit: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}
        self._over: OrderedDict[str, None] = OrderedDict()
        self.on_ready: Callable[[Entry, Ranges], None] = _ignore
        self.on_settled: Callable[[Entry], None] = _ignore
        self.on_gone: Callable[[Entry, str], None] = _ignore
        self.on_concluded: Callable[[Entry], None] = _ignore

    def open(self, entry: Entry, now_ns: int) -> None:
        """Take a rollout that is being asked for."""
        self.entries[entry.id] = entry
        tally = entry.tally
        tally.first_ns = tally.first_ns or entry.intended_ns
        tally.counts["asked"] += entry.n
        tally.counts["rollouts"] += 1
        tally.open += entry.n
        tally.note("lateness", (now_ns - entry.intended_ns) / _US)
        self.audit["asked"] += entry.n
        self.audit["rollouts"] += 1
        self.waits.begin(entry.tenant, entry.intended_ns)

    def take(self, message: AnyMessage, time_ms: int, now_ns: int) -> None:
        """Fold one message of the log, which came at this moment."""
        name: str = getattr(message, "rollout", "")
        entry = self.entries.get(name)
        if entry is None:
            if isinstance(message, RolloutConcluded) and name in self._over:
                self.audit["disagreed"] += 1
            return
        match message:
            case SandboxesFinished():
                self._finished(entry, message, time_ms, now_ns)
            case SandboxesReady():
                self._ready(entry, message, time_ms, now_ns)
            case RolloutSubmitted():
                entry.submitted_ms = time_ms if entry.submitted_ms is None else entry.submitted_ms
            case RolloutConcluded():
                self._concluded(entry, message, now_ns)
            case SandboxesEnded(attempt=attempt, indices=indices, reason=reason):
                before = entry.ledger.ready_count()
                were = {index for index in ranges.indices(indices) if entry.ledger.is_ready(index)}
                gone, again = entry.ledger.end(attempt, indices, reason)
                entry.again |= were.intersection(ranges.indices(again))
                entry.tally.counts["restarted"] += ranges.count(again)
                self._ended(entry, gone, reason, before, now_ns)
            case SandboxesClosed(indices=indices, reason=reason):
                before = entry.ledger.ready_count()
                self._ended(entry, entry.ledger.close(indices, reason), reason, before, now_ns)
            case RolloutReleased(indices=indices):
                before = entry.ledger.ready_count()
                self._ended(entry, entry.ledger.close(indices, EndReason.RELEASED), EndReason.RELEASED, before, now_ns)
            case RolloutCancelled():
                before, whole = entry.ledger.ready_count(), ranges.whole(entry.n)
                self._ended(entry, entry.ledger.close(whole, EndReason.CANCELLED), EndReason.CANCELLED, before, now_ns)
            case SandboxesHedged(attempt=attempt, indices=indices):
                entry.ledger.hedge(attempt, indices)
                entry.tally.counts["hedged"] += ranges.count(indices)
            case RolloutQueued(waiting=waiting):
                entry.waiting = waiting
            case RolloutDispatched():
                entry.waiting = 0
            case RolloutRejected(code=code):
                entry.tally.counts["rejected"] += entry.n
                entry.tally.reasons[f"rejected: {code}"] += entry.n
                self._close(entry, now_ns)
            case _:
                pass

    @property
    def waiting(self) -> int:
        """How many sandboxes wait for room, by the scheduler's last words."""
        return sum(entry.waiting for entry in self.entries.values())

    @property
    def missing(self) -> int:
        """How many sandboxes were asked for, and have not concluded."""
        return sum(entry.n for entry in self.entries.values())

    def executor_of(self, entry: Entry, index: int) -> str:
        """Return where a sandbox that is ready takes commands."""
        assert entry.places is not None
        return self.executors[entry.places[index]]

    # --- reports

    def _ready(self, entry: Entry, message: SandboxesReady, time_ms: int, now_ns: int) -> None:
        news = entry.ledger.ready(message.attempt, message.indices)
        count = ranges.count(news)
        if not count:
            return
        if entry.places is not None:
            number = self._numbers.setdefault(message.executor, len(self.executors))
            if number == len(self.executors):
                self.executors.append(message.executor)
            for index in ranges.indices(news):
                entry.places[index] = number
        self.live += count
        first = count
        if entry.again:
            back = entry.again.intersection(ranges.indices(news))
            entry.again -= back
            first -= len(back)  # those were ready before: when they are again says nothing about the start
        if first:
            self._times(entry, first, 0, time_ms, now_ns)
        self.on_ready(entry, news)
        self._settle(entry, 0, time_ms, now_ns)

    def _finished(self, entry: Entry, message: SandboxesFinished, time_ms: int, now_ns: int) -> None:
        ledger, attempt = entry.ledger, message.attempt
        ready = {done.index for done in message.results if ledger.is_ready(done.index)}
        counting = set(ledger.finish(attempt, message.results))
        count = len(counting)
        run: list[int] = []
        reasons: list[str] = []
        for done in message.results:
            index = done.index
            if index not in counting:
                known = ledger.reason(index)
                twice = known is not None and known in _RESULTS and ledger.attempt(index) == attempt
                self.audit["doubled" if twice else "late"] += 1
                continue
            counting.remove(index)
            reasons.append(ledger.reason(index) or "")
            if index not in ready:
                run.append(done.run_us)
        took, longest = Counter(run), max(run, default=0)
        entry.tally.reasons.update(reasons)
        self.live -= count - len(run)
        for run_us, times in took.items():
            self._times(entry, times, run_us, time_ms, now_ns)
        if count:
            entry.ended += count
            tally = entry.tally
            tally.note("first_command", (now_ns - entry.intended_ns) / _US, count)
            if entry.submitted_ms is not None:
                tally.latencies.add("first_command_broker", (time_ms - entry.submitted_ms) * 1000, count)
            self._settle(entry, longest if took else 0, time_ms, now_ns)

    def _times(self, entry: Entry, count: int, run_us: int, time_ms: int, now_ns: int) -> None:
        """Note that so many became ready, `run_us` ago."""
        tally = entry.tally
        us = max((now_ns - entry.intended_ns) / _US - run_us, 0.0)
        broker_us = None if entry.submitted_ms is None else max((time_ms - entry.submitted_ms) * 1000 - run_us, 0)
        tally.note("ready", us, count)
        if broker_us is not None:
            tally.latencies.add("ready_broker", broker_us, count)
        if not entry.ready:
            tally.note("first_ready", us)
            if broker_us is not None:
                tally.latencies.add("first_ready_broker", broker_us)
        entry.ready += count
        self.ready += count
        tally.counts["ready"] += count
        if tally.stays:
            tally.passed(count, now_ns)

    def _ended(self, entry: Entry, gone: Ranges, reason: EndReason, ready_before: int, now_ns: int) -> None:
        self.live -= ready_before - entry.ledger.ready_count()
        count = ranges.count(gone)
        if count:
            entry.ended += count
            entry.tally.reasons[reason] += count
            if reason.infrastructure:
                entry.tally.counts["failed"] += count
                self.failed += count
        self.on_gone(entry, reason)
        self._settle(entry, 0, None, now_ns)

    def _settle(self, entry: Entry, run_us: int, time_ms: int | None, now_ns: int) -> None:
        """Note when nothing of a rollout is on its way for the first time."""
        if entry.settled or entry.ledger.ready_count() + entry.ended < entry.n:
            return
        entry.settled = True
        self.waits.end(entry.tenant, now_ns)
        tally = entry.tally
        if entry.ready == entry.n and time_ms is not None:
            tally.note("group_ready", max((now_ns - entry.intended_ns) / _US - run_us, 0.0))
            if entry.submitted_ms is not None:
                us = max((time_ms - entry.submitted_ms) * 1000 - run_us, 0)
                tally.latencies.add("group_ready_broker", us)
        if tally.stays:
            tally.open -= entry.n
        self.on_settled(entry)

    def _concluded(self, entry: Entry, message: RolloutConcluded, now_ns: int) -> None:
        if entry.ended != entry.n or dict(message.counts) != dict(entry.ledger.counts()):
            self.audit["disagreed"] += 1
        self.audit["concluded"] += sum(count for _, count in message.counts)
        entry.tally.counts["through"] += entry.n
        if not entry.tally.stays:
            entry.tally.passed(entry.n, now_ns)
        self._close(entry, now_ns)

    def _close(self, entry: Entry, now_ns: int) -> None:
        del self.entries[entry.id]
        self._over[entry.id] = None
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)
        self.live -= entry.ledger.ready_count()
        if not entry.settled:
            self.waits.end(entry.tenant, now_ns)
        if not (entry.settled and entry.tally.stays):
            entry.tally.open -= entry.n
        entry.settled = True
        self.on_concluded(entry)


_RESULTS: Final = frozenset(
    (
        EndReason.SUCCEEDED, EndReason.COMMAND_FAILED, EndReason.TIMED_OUT, EndReason.OUT_OF_MEMORY,
        EndReason.DISK_FULL,
    )
)  # fmt: skip
