"""Policies: whose turn it is. Each is a pure function of who waits and who has what; `ORDERS` names them.

A policy is asked again after every part that was given out, with what changed by it taken into account. `shut` tells of
a line that it cannot be served now (no room, a quota, a turn that others have to wait for).
"""

from collections.abc import Callable
from typing import Final

from shoal_scheduler.core.books import Books
from shoal_scheduler.core.tenants import Tenant
from shoal_scheduler.core.waiting import Line

Order = Callable[[Books, Callable[[Line], bool]], Line | None]
"""Return the line whose first rollout is served next, or None where all are shut."""


def fair(books: Books, shut: Callable[[Line], bool]) -> Line | None:
    """Whoever has least for their weight: first among tenants, then, at their highest priority, among their runs.

    Weighted max-min fairness by dominant resource (`tenants`). Cost: the tenants that wait, and the winner's lines.
    """
    best: tuple[tuple[float, int], Line] | None = None
    total = books.total
    for name, lines in books.waiting.lines.items():
        tenant = books.tenants[name]
        share = tenant.share(total)
        if best is not None and share > best[0][0]:
            continue
        line = _within(books, tenant, [line for line in lines.values() if not shut(line)])
        if line is None:
            continue
        rank = (share, books.rollouts[line.first].order)
        if best is None or rank < best[0]:
            best = (rank, line)
    return best[1] if best else None


def _within(books: Books, tenant: Tenant, lines: list[Line]) -> Line | None:
    if not lines:
        return None
    if len(lines) == 1:
        return lines[0]
    total = books.total
    highest = max(line.priority for line in lines)
    return min(
        (line for line in lines if line.priority == highest),
        key=lambda line: (tenant.run_share(line.run, total), not line.urgent, books.rollouts[line.first].order),
    )


def fifo(books: Books, shut: Callable[[Line], bool]) -> Line | None:
    """First come, first served, whoever it is and whatever they have: a baseline to compare with."""
    lines = [line for line in books.waiting.each() if not shut(line)]
    return min(lines, key=lambda line: books.rollouts[line.first].order, default=None)


ORDERS: Final[dict[str, Order]] = {"fair": fair, "fifo": fifo}
