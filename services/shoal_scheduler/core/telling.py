"""What a rollout that waits is told: why, behind how many sandboxes, and when its turn may come."""

from typing import Final

from shoal.wire import messages as m
from shoal_scheduler.core.books import Books
from shoal_scheduler.core.dispatch import Dispatch
from shoal_scheduler.core.state import Rollout
from shoal_scheduler.core.waiting import Line

TELL_MS: Final = 1_000
"""How often those that wait are looked at: they are told of another reason, and when half of those before are gone."""


def tell_new(books: Books, round_: Dispatch, now: int) -> list[tuple[Rollout, m.RolloutQueued]]:
    """Return what to tell those that wait and do not know."""
    told: list[tuple[Rollout, m.RolloutQueued]] = []
    for name in list(books.untold):
        rollout = books.rollouts.get(name)
        if rollout is not None and name in books.waiting and rollout.guest is None:
            tenant = books.tenants[rollout.request.tenant]
            mine = max(tenant.waiting - rollout.unsent, 0)
            told += _tell(books, round_, rollout, books.waiting.line(name), mine, now)
    books.untold.clear()
    return told


def tell_all(books: Books, round_: Dispatch, now: int) -> list[tuple[Rollout, m.RolloutQueued]]:
    """Return what to tell those for whom something has changed."""
    told: list[tuple[Rollout, m.RolloutQueued]] = []
    for lines in books.waiting.lines.values():
        before = 0
        for line in sorted(lines.values(), key=lambda line: (-line.priority, books.rollouts[line.first].order)):
            for name in (*line.urgent, *line.fresh):
                rollout = books.rollouts[name]
                if rollout.guest is not None:
                    continue
                told += _tell(books, round_, rollout, line, before, now)
                before += rollout.unsent
    return told


def _tell(
    books: Books, round_: Dispatch, rollout: Rollout, line: Line, mine: int, now: int
) -> list[tuple[Rollout, m.RolloutQueued]]:
    """`mine`: sandboxes of its own tenant that go before it."""
    kind, sentence = round_.held_up.get(line.key, ("room", ""))
    kind, reason = _reason(books, rollout, line, kind, sentence)
    unsent = rollout.unsent
    ahead = mine + _others(books, rollout.request.tenant, mine + unsent)
    known_kind, known_ahead = rollout.queued
    if kind == known_kind and not ahead <= known_ahead // 2 < known_ahead:
        return []
    rollout.queued = (kind, ahead)
    start = books.pace.until(ahead + unsent, now) if kind in ("room", "gang") else None
    return [(rollout, m.RolloutQueued(rollout.request.rollout, ahead, unsent, reason, start or 0))]


def _others(books: Books, mine: str, count: int) -> int:
    """Return how many sandboxes of other tenants have their turn before so many of this one: as the weights are."""
    weight = books.tenants[mine].limits.weight
    return sum(
        min(tenant.waiting, int(count * tenant.limits.weight / weight))
        for name, tenant in books.tenants.items()
        if name != mine and tenant.waiting
    )


def _reason(books: Books, rollout: Rollout, line: Line, kind: str, sentence: str) -> tuple[str, str]:
    needs = line.want.needs
    wanted = line.want.text(max(rollout.unsent, rollout.unit))
    if kind == "nodes":
        if not books.rooms.capacity.nodes:
            where = f" in cell {books.cell}, to which it belongs" if books.cells > 1 else ""
            return "no nodes", f"no node is alive{where}"
        labels = " and ".join(f"the label {name}={value}" for name, value in needs.labels)
        offers = " and ".join(
            part for part in (f"isolation {needs.isolation!r}" if needs.isolation else "", labels) if part
        )
        return kind, f"no node offers {offers} now"
    if kind in ("quota", "rate"):
        return kind, f"the tenant's {sentence} {'is used up' if kind == 'quota' else 'are all used'}"
    if beyond := books.rooms.too_large(line.want):
        return "too large", f"waiting for {wanted}: {beyond}"
    if kind == "gang":
        return kind, f"waiting for {wanted}: room is kept for rollout {sentence}, whose turn it is"
    if rollout.gathering and rollout.unit > 1:
        holds = books.rooms.holds(line.want)
        if holds < rollout.unit:
            return "too large", f"waiting for {wanted} at once, and all nodes together have {holds}"
        return "gathering", f"waiting for {line.want.text(rollout.unit)} at once"
    return kind, f"waiting for {wanted}"
