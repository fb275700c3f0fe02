"""Starts that take much longer than their group's: hedged, so that a group is not as slow as its slowest node.

A start is a straggler when it takes `FACTOR` times as long as 95 % of its own group took (Dean and Barroso, The Tail at
Scale, 2013: a second request after the 95th percentile costs 5 % more load at most). It is started elsewhere, too; the
first to be ready counts, the other is destroyed and never seen.
"""

from bisect import bisect_left
from itertools import accumulate
from typing import Final

from shoal.machine import ranges
from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m
from shoal_scheduler.core.books import Books
from shoal_scheduler.core.state import Rollout

FACTOR: Final = 2.0
LEAST_MS: Final = 1_000
"""Below this a second start would hardly be sooner."""
_KNOWN: Final = 4
"""Starts that have to be known before any is called slow; and half of the group."""
_SAMPLES: Final = 256
_PART: Final = 10
"""At most one of so many sandboxes is hedged at a time."""


def started(books: Books, rollout: Rollout, attempt: int, indices: m.Ranges, now: int) -> None:
    """Note that these sandboxes are ready: how long they took, and when the others are late."""
    since = rollout.starting.over(attempt & (HEDGE - 1), indices)  # if a hedge has won, so has what it is of
    if attempt < HEDGE:
        room = _SAMPLES - _samples(rollout)
        for since_ms, count in since:
            if room:
                rollout.took_ms.append((now - since_ms, min(count, room)))
                room -= min(count, room)
    if rollout.starting and not rollout.hedge_ms and rollout.request.spec.hedge and _known(rollout):
        _arm(books, rollout, rollout.starting.oldest_ms + _late_after(rollout))


def late(books: Books, rollout: Rollout, now: int) -> list[m.SandboxesHedged]:
    """Return what is to be started elsewhere, too, now that its time has come, and keep room for it."""
    if not rollout.hedge_ms or now < rollout.hedge_ms:
        return []
    rollout.hedge_ms = 0
    after = _late_after(rollout)
    most = _most(books, rollout, now)
    hedged: list[m.SandboxesHedged] = []
    for attempt, indices in rollout.starting.since(now - after) if most > 0 else ():
        unasked = ranges.without(rollout.ledger.pending(attempt, indices), rollout.hedging.get(attempt, ()))
        part, _ = ranges.take(unasked, most)
        if part:
            most -= ranges.count(part)
            books.hedge(rollout, attempt, part)
            hedged.append(m.SandboxesHedged(rollout.request.rollout, attempt, attempt + HEDGE, part))
    if rollout.starting:
        _arm(books, rollout, now + after)
    return hedged


def _most(books: Books, rollout: Rollout, now: int) -> int:
    """Return how many more of a rollout may be started twice: by its part, the room and its tenant's limits."""
    tenant = books.tenants[rollout.request.tenant]
    allowed = min(tenant.may_have(rollout.want)[0], tenant.may_start(now))
    under_way = rollout.ledger.hedged_count() + rollout.hedging_count()
    return min(max(rollout.ledger.n // _PART, 1) - under_way, books.rooms.fits(rollout.want), allowed)


def _known(rollout: Rollout) -> bool:
    there = rollout.ledger.ready_count() + rollout.ledger.n - rollout.ledger.live
    return _samples(rollout) >= _KNOWN and 2 * there >= rollout.ledger.n


def _samples(rollout: Rollout) -> int:
    return sum(count for _, count in rollout.took_ms)


def _late_after(rollout: Rollout) -> int:
    took = sorted(rollout.took_ms)
    upto = list(accumulate(count for _, count in took))
    longest = took[bisect_left(upto, (upto[-1] * 95 + 99) // 100)][0]  # of 95 % of them
    return max(int(FACTOR * longest), LEAST_MS)


def _arm(books: Books, rollout: Rollout, when_ms: int) -> None:
    rollout.hedge_ms = when_ms
    books.at(when_ms, "hedge", rollout.request.rollout)
