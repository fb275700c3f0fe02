"""Policies: whose turn it is. Each is a pure function of who waits and who has what; `ORDERS` names them.

A policy is asked again after every part that was given out, with what changed by it taken into account. `shut` tells of
a line that it cannot be served now (no room, a quota, a turn that others have to wait for).
"""

from collections.abc import Callable
from typing import Final

from shoal_scheduler.core.books import Books
from shoal_scheduler.core.waiting import Line

SLACK: Final = 1 / 64
"""Of a cell: who has no more than this beyond its share counts as equal."""

Order = Callable[[Books, Callable[[Line], bool]], Line | None]
"""Return the line whose first rollout is served next, or None where all are shut."""


def fair(books: Books, shut: Callable[[Line], bool]) -> Line | None:
    """Whoever has least for their weight: first among tenants, then, at their highest priority, among their runs.

    Weighted max-min fairness by dominant resource (`tenants`), to within `SLACK` of the cell, whatever the weights.
    Among those that are as close as that, a rollout keeps its turn until all of it is given out, because one that is
    whole is worth more than several in part; then the oldest is next. Cost: the tenants that wait, and the winner's
    lines.
    """
    total = books.total
    shares = [
        ((tenant := books.tenants[name]).share(total), tenant.limits.weight, open_)
        for name, lines in books.waiting.lines.items()
        if (open_ := [line for line in lines.values() if not shut(line)])
    ]
    if not shares:
        return None
    least = min(share for share, _, _ in shares)
    close = [lines for share, weight, lines in shares if share <= least + SLACK / weight]
    return _next(books, [_within(books, lines) for lines in close])


def _within(books: Books, lines: list[Line]) -> Line:
    """Return whose turn it is among lines of one tenant."""
    if len(lines) == 1:
        return lines[0]
    tenant, total = books.tenants[lines[0].tenant], books.total
    highest = max(line.priority for line in lines)
    among = [(tenant.run_share(line.run, total), line) for line in lines if line.priority == highest]
    least = min(share for share, _ in among)
    return _next(books, [line for share, line in among if share <= least + SLACK])


def _next(books: Books, lines: list[Line]) -> Line:
    """Return whose turn it is among lines that have as much."""
    return min(
        lines,
        key=lambda line: (
            line.first != books.turn, not line.urgent, books.rollouts[line.first].turn_ms,
            books.rollouts[line.first].order,
        ),
    )  # fmt: skip


def fifo(books: Books, shut: Callable[[Line], bool]) -> Line | None:
    """First come, first served, whoever it is and whatever they have: a baseline to compare with."""
    lines = [line for line in books.waiting.each() if not shut(line)]
    return min(lines, key=lambda line: books.rollouts[line.first].order, default=None)


ORDERS: Final[dict[str, Order]] = {"fair": fair, "fifo": fifo}
