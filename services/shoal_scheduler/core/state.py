"""A rollout as the scheduler keeps it, and as it is written into a checkpoint."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from shoal.machine import ranges
from shoal.machine.core import Publish
from shoal.machine.ledger import Dumped, Ledger
from shoal.wire import messages as m, subjects
from shoal_scheduler.core.admission import wants
from shoal_scheduler.core.missed import Missed, Part
from shoal_scheduler.core.room import Needs, Want
from shoal_scheduler.core.starting import Sent, Starting

GUESTS_LATER_MS: Final = 5_000
"""Handicap of other cells' rollouts: where all cells are as full, none sends its sandboxes to another."""


class Again(NamedTuple):
    """Sandboxes to be started once more: in which attempt, on which nodes rather not, and when at the earliest."""

    attempt: int
    indices: m.Ranges
    avoid: tuple[str, ...] = ()
    not_before_ms: int = 0


@dataclass(slots=True)
class Rollout:
    """One rollout that is not over. `fresh` were never dispatched; `again` are to be dispatched once more.

    A `guest` is what another cell wants room for: the cell, and the number of its ask. Its sandboxes are tickets.
    """

    request: m.RolloutSubmitted
    order: int
    deadline_ms: int
    ledger: Ledger
    fresh: m.Ranges
    snapshot: m.Snapshot | None = None
    again: list[Again] = field(default_factory=list)
    in_flight: int = 0  # those in two attempts count twice
    queued: tuple[str, int] = ("", 0)  # why it waits, as it was told last, and behind how many
    saved: dict[int, m.Snapshot] = field(default_factory=dict)
    """What sandboxes go on from when they are started again, where that is not the rollout's own snapshot."""
    held: bool = False  # whether the catalogue was told that it is needed
    gathering: bool = False  # whether its first `min_ready` have to be placed together still
    begun: bool = True  # whether the others may follow
    took_ms: list[tuple[int, int]] = field(default_factory=list)  # the starts of how many of its sandboxes
    hedge_ms: int = 0  # when its slowest are started elsewhere, too
    hedging: dict[int, m.Ranges] = field(default_factory=dict)
    """Sandboxes that are, by attempt, as was told and not read back yet: they count as in flight twice."""
    failed_on: dict[str, None] = field(default_factory=dict)  # nodes
    closing: m.Ranges = ()  # given up, and told so; it counts when it is read back
    leaving: m.Ranges = ()  # asked to make room, until
    leaving_until_ms: int = 0
    guest: tuple[int, int] | None = None
    abroad: dict[tuple[int, int], m.Ranges] = field(default_factory=dict)
    """Sandboxes in flight on other cells' nodes, by the cell and the number of the ask that got the room."""
    ran: m.Ranges = ()  # began once, as far as is known, and are started again or ended since
    starting: Starting = field(init=False)
    missed: Missed = field(init=False)

    def __post_init__(self) -> None:
        self.starting = Starting(self.request.spec.n, self.submitted_ms)
        self.missed = Missed(self.request.spec.n, self.submitted_ms, self.request.spec.timeout_ms)

    @property
    def submitted_ms(self) -> int:
        """When it was submitted, by the broker's clock."""
        return self.deadline_ms - self.request.spec.timeout_ms

    @property
    def turn_ms(self) -> int:
        """Since when it waits for its turn among those that have as much; a guest goes after who came shortly after."""
        return self.submitted_ms + (GUESTS_LATER_MS if self.guest is not None else 0)

    @property
    def here(self) -> int:
        """How many sandboxes in flight take room in this cell."""
        return self.in_flight - sum(map(ranges.count, self.abroad.values()))

    def is_abroad(self, indices: m.Ranges) -> m.Ranges:
        """Return those of these sandboxes that are in flight on other cells' nodes."""
        found: m.Ranges = ()
        for part in self.abroad.values():
            found = ranges.union(found, ranges.intersect(part, indices))
        return found

    @property
    def unsent(self) -> int:
        """How many sandboxes wait to be dispatched."""
        return ranges.count(self.fresh) + sum(ranges.count(each.indices) for each in self.again)

    @property
    def queue(self) -> m.Ranges:
        """The sandboxes that wait to be dispatched."""
        found = self.fresh
        for each in self.again:
            found = ranges.union(found, each.indices)
        return found

    @property
    def want(self) -> Want:
        """What one of its sandboxes takes, and where it can be."""
        spec = self.request.spec
        limits = spec.resources
        return Want(Needs(wants(spec, self.snapshot), spec.labels), limits.memory, limits.cpu_milli, limits.disk)

    @property
    def unit(self) -> int:
        """How many have to be placed together next."""
        if not self.gathering:
            return 1
        return min(self.request.spec.min_ready, ranges.count(self.again[0].indices if self.again else self.fresh))

    @property
    def lost_its_first(self) -> bool:
        """Whether all that was to begin together ended before it did: the others would wait for ever to follow it."""
        waits_for = self.begun or self.gathering or self.in_flight or self.again
        return bool(self.fresh) and not waits_for

    @property
    def may_send_fresh(self) -> bool:
        """Whether some may be dispatched that never were."""
        return bool(self.fresh) and (self.gathering or self.begun)

    def due(self, now: int) -> bool:
        """Return whether something may be started again now."""
        return any(each.not_before_ms <= now for each in self.again)

    def hedging_count(self) -> int:
        """Return how many are to be started elsewhere, too, when that is read back."""
        return sum(map(ranges.count, self.hedging.values()))

    def in_flight_indices(self) -> m.Ranges:
        """Return the sandboxes that take room, or soon will."""
        found = ranges.without(ranges.without(self.ledger.open(), self.queue), self.closing)
        return ranges.without(found, self.ledger.asleep(found))

    def outcome(self, cell: int, message: m.Message) -> Publish:
        """Return the effect that tells the rollout's trainer."""
        return Publish(subjects.rollout_outcome(cell, self.request.tenant, self.request.run), message)  # type: ignore[arg-type]  # any of the outcomes

    def running(self, indices: m.Ranges) -> m.Ranges:
        """Return those of these sandboxes that have begun; what has a command of its own is not told to be ready."""
        if self.request.spec.commands:
            return indices
        return ranges.collect(index for index in ranges.indices(indices) if self.ledger.is_ready(index))

    def save(self, attempt: int, index: int, snapshot: m.Snapshot) -> None:
        """Note what a sandbox goes on from, should it be lost: where that is the policy, and in its present attempt."""
        current = self.ledger.attempt(index) == attempt and self.ledger.reason(index) is None
        if current and self.request.spec.on_lost is m.OnLost.RESUME:
            self.saved[index] = snapshot

    def starts(self, part: m.Ranges) -> list[tuple[m.Ranges, m.Snapshot]]:
        """Return which of these sandboxes start from what: those that were kept before from that, each by itself."""
        assert self.snapshot is not None
        kept = ranges.collect(index for index in self.saved if ranges.holds(part, index))
        plain = ranges.without(part, kept)
        alone: list[tuple[m.Ranges, m.Snapshot]] = [(((i, 1),), self.saved[i]) for i in ranges.indices(kept)]
        return [*([(plain, self.snapshot)] if plain else []), *alone]

    def dump(self) -> "DumpedRollout":
        """Return it as data."""
        return DumpedRollout(
            self.request, self.order, self.deadline_ms, self.ledger.dump(), self.fresh, self.snapshot, self.again,
            self.queued, list(self.saved.items()), self.held, self.gathering, self.begun, self.starting.dump(),
            self.took_ms, self.hedge_ms, list(self.hedging.items()), list(self.failed_on), self.closing,
            self.leaving, self.leaving_until_ms, self.guest, list(self.abroad.items()), self.ran, *self.missed.dump(),
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
    queued: tuple[str, int]
    saved: list[tuple[int, m.Snapshot]]
    held: bool
    gathering: bool
    begun: bool
    sent: list[Sent]
    took_ms: list[tuple[int, int]]
    hedge_ms: int
    hedging: list[tuple[int, m.Ranges]]
    failed_on: list[str]
    closing: m.Ranges
    leaving: m.Ranges
    leaving_until_ms: int
    guest: tuple[int, int] | None
    abroad: list[tuple[tuple[int, int], m.Ranges]]
    ran: m.Ranges
    missed: list[Part]
    wanted: list[tuple[int, int]]

    def load(self) -> Rollout:
        """Return the rollout. Raises ValueError."""
        ledger = Ledger.load(self.request.spec, self.ledger)
        rollout = Rollout(
            self.request, self.order, self.deadline_ms, ledger, self.fresh, self.snapshot, list(self.again), 0,
            self.queued, dict(self.saved), self.held, self.gathering, self.begun,
            list(self.took_ms), self.hedge_ms, dict(self.hedging), dict.fromkeys(self.failed_on),
            self.closing, self.leaving, self.leaving_until_ms, self.guest, dict(self.abroad), self.ran,
        )  # fmt: skip
        for attempt, indices, sent_ms in self.sent:
            rollout.starting.sent(attempt, indices, sent_ms)
        rollout.missed.load(self.missed, self.wanted)
        away = rollout.unsent + ledger.asleep_count() + ranges.count(rollout.closing)
        rollout.in_flight = ledger.live - away + ledger.hedged_count() + rollout.hedging_count()
        return rollout
