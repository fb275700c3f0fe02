"""Who makes room for what has a higher priority: the cheapest victims, and never without a way back.

A priority counts within a tenant. Another tenant's sandboxes make room only while that tenant has more than its share
compared with the one that asks, so that nobody gains by calling everything urgent. What is not started yet goes first
(nothing is lost), then what started last.
"""

from typing import Final, NamedTuple

from shoal.machine import ranges
from shoal.wire import messages as m
from shoal_scheduler.core.books import Books
from shoal_scheduler.core.room import Want
from shoal_scheduler.core.state import Rollout
from shoal_scheduler.core.waiting import Line

GRACE_MS: Final = 10_000
"""How long who was asked to make room is counted on; one that is busy or cannot sleep stays where it is."""
_AT_ONCE: Final = 256


class Victim(NamedTuple):
    """Sandboxes that are to make room."""

    rollout: Rollout
    attempt: int
    indices: m.Ranges
    how: m.OnPreempted


def victims(books: Books, line: Line, now: int) -> list[Victim]:
    """Return who makes room for the first of a line, and note that they were asked."""
    if line.priority <= min(books.priorities):
        return []  # nobody has less
    first = books.rollouts[line.first]
    share = books.tenants[line.tenant].share(books.total)
    candidates = [
        rollout
        for rollout in books.rollouts.values()
        if rollout.here and rollout.guest is None and rollout.request.spec.priority < line.priority
        and rollout.request.spec.on_preempted is not m.OnPreempted.NEVER
        and books.rooms.overlap(rollout.want.needs, line.want.needs)
        and (
            rollout.request.tenant == line.tenant
            or books.tenants[rollout.request.tenant].share(books.total) > share
        )
    ]  # fmt: skip
    if not candidates:
        return []
    lacking = _Lacking(line.want, min(max(first.unit, first.unsent), _AT_ONCE) - books.rooms.fits(line.want))
    for rollout in books.rollouts.values():
        if rollout.leaving_until_ms > now:
            lacking.less(rollout.want, ranges.count(rollout.leaving))
    candidates.sort(key=lambda rollout: (rollout.request.spec.priority, -rollout.order))
    found: list[Victim] = []
    for rollout in candidates:
        if lacking.nothing:
            break
        if rollout.leaving_until_ms > now:
            continue
        chosen = _choose(rollout, lacking.sandboxes(rollout.want))
        if not chosen:
            continue
        rollout.leaving, rollout.leaving_until_ms = chosen, now + GRACE_MS
        lacking.less(rollout.want, ranges.count(chosen))
        for attempt, part in rollout.ledger.by_attempt(ranges.indices(chosen)):
            found.append(Victim(rollout, attempt, part, rollout.request.spec.on_preempted))
    return found


def _choose(rollout: Rollout, count: int) -> m.Ranges:
    """Return so many sandboxes of a rollout: those that are not ready first, then the last ones."""
    spec, ledger = rollout.request.spec, rollout.ledger
    here = ranges.without(rollout.in_flight_indices(), ledger.hedged(ranges.whole(ledger.n)))
    there = list(ranges.indices(ranges.without(here, rollout.is_abroad(here))))
    starting = [index for index in there if not ledger.is_ready(index)]
    ready = [index for index in there if ledger.is_ready(index)]
    if spec.commands and spec.on_preempted is m.OnPreempted.HIBERNATE:
        ready = []  # a command is under way in each
    return ranges.collect([*reversed(starting), *reversed(ready)][:count])


class _Lacking:
    """The room that is still to be made, by resource."""

    def __init__(self, want: Want, count: int) -> None:
        self._amounts = [max(count, 0) * amount for amount in want.amounts]

    @property
    def nothing(self) -> bool:
        return all(amount <= 0 for amount in self._amounts)

    def less(self, want: Want, count: int) -> None:
        self._amounts = [left - count * each for left, each in zip(self._amounts, want.amounts, strict=True)]

    def sandboxes(self, want: Want) -> int:
        """Return how many of these would make all of it."""
        return max(
            (-(-left // each) for left, each in zip(self._amounts, want.amounts, strict=True) if left > 0 and each),
            default=0,
        )
