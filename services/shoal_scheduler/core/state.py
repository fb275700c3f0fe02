"""A rollout as the scheduler keeps it, and the whole state as it is written into a checkpoint."""

from dataclasses import dataclass, field

import msgspec

from shoal.machine import ranges
from shoal.machine.core import Publish
from shoal.machine.ledger import Dumped, Ledger
from shoal.wire import messages as m
from shoal.wire import subjects

Again = tuple[int, m.Ranges, str]
"""attempt, indices, the node that failed"""


@dataclass(slots=True)
class Rollout:
    """One rollout that is not over. `fresh` were never dispatched; `again` are to be dispatched once more."""

    request: m.RolloutSubmitted
    order: int
    deadline_ms: int
    ledger: Ledger
    fresh: m.Ranges
    snapshot: m.Snapshot | None = None
    again: list[Again] = field(default_factory=list)
    in_flight: int = 0
    queued: str = ""
    saved: dict[int, m.Snapshot] = field(default_factory=dict)
    """What sandboxes go on from when they are started again, where that is not the rollout's own snapshot."""
    held: bool = False  # whether the catalogue was told that it is needed

    @property
    def unsent(self) -> int:
        """How many sandboxes wait to be dispatched."""
        return ranges.count(self.fresh) + sum(ranges.count(waiting) for _, waiting, _ in self.again)

    def outcome(self, cell: int, message: m.Message) -> Publish:
        """Return the effect that tells the rollout's trainer."""
        return Publish(subjects.rollout_outcome(cell, self.request.tenant, self.request.run), message)  # type: ignore[arg-type]  # any of the outcomes

    def save(self, attempt: int, index: int, snapshot: m.Snapshot) -> None:
        """Note what a sandbox goes on from, should it be lost: where that is the policy, and in its present attempt."""
        current = self.ledger.attempt(index) == attempt and self.ledger.reason(index) is None
        if current and self.request.spec.on_lost is m.OnLost.RESUME:
            self.saved[index] = snapshot

    def starts(self, part: m.Ranges) -> list[tuple[m.Ranges, m.Snapshot]]:
        """Return which of these sandboxes start from what: those that were kept before from that, each by itself."""
        assert self.snapshot is not None
        kept = ranges.collect(index for index in self.saved if ranges.intersect(((index, 1),), part))
        plain = ranges.without(part, kept)
        alone: list[tuple[m.Ranges, m.Snapshot]] = [(((i, 1),), self.saved[i]) for i in ranges.indices(kept)]
        return [*([(plain, self.snapshot)] if plain else []), *alone]

    def dump(self) -> "DumpedRollout":
        """Return it as data."""
        return DumpedRollout(
            self.request, self.order, self.deadline_ms, self.ledger.dump(), self.fresh, self.snapshot, self.again,
            self.queued, list(self.saved.items()), self.held,
        )  # fmt: skip


class DumpedRollout(msgspec.Struct, frozen=True, array_like=True):
    """A rollout in a checkpoint; what is in flight follows from the rest."""

    request: m.RolloutSubmitted
    order: int
    deadline_ms: int
    ledger: Dumped
    fresh: m.Ranges
    snapshot: m.Snapshot | None
    again: list[Again]
    queued: str
    saved: list[tuple[int, m.Snapshot]]
    held: bool

    def load(self) -> Rollout:
        """Return the rollout. Raises ValueError."""
        ledger = Ledger.load(self.request.spec, self.ledger)
        rollout = Rollout(
            self.request, self.order, self.deadline_ms, ledger, self.fresh, self.snapshot, list(self.again), 0,
            self.queued, dict(self.saved), self.held,
        )  # fmt: skip
        rollout.in_flight = ledger.live - rollout.unsent - ledger.asleep_count()
        return rollout


class State(msgspec.Struct, frozen=True, array_like=True):
    """The scheduler's whole state. Orders are kept, so that equal states are equal bytes."""

    rollouts: list[DumpedRollout]
    waiting: list[str]
    past: list[tuple[str, int]]
    templates: list[tuple[str, str, m.Snapshot, int]]
    unresolved: list[tuple[str, str, list[str]]]
    deadlines: list[tuple[int, str]]
    capacity: m.CellCapacity
    orders: int
    tenants: list[str]
