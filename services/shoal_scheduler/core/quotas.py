"""Limits that hold over several cells: each keeps to its part, and parts move to where they are of use.

A limit begins as equal parts. A cell whose part is used up says so to the others (`QuotaWanted`); one that has some
left gives it away for good (`QuotaLent`), so the sum of all parts is never more than the whole, whatever is lost or
comes twice. Who claimed first is served first; a claim for more than the equal part counts as `PATIENCE_MS` younger, so
that a cell gets its own part back soon, and two gangs never wait for each other's halves. What moved stays moved when a
limit is changed; where that leaves less than what is in flight already, the rest is asked for before all claims, so
that nobody starts more instead.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from shoal.machine import ranges
from shoal.machine.core import LawBrokenError
from shoal.wire import messages as m
from shoal.wire.bounds import MOST
from shoal_scheduler.core.books import Books
from shoal_scheduler.core.tenants import CPU, MEMORY, SANDBOXES, STARTS, Tenant, amounts_of
from shoal_scheduler.core.waiting import Line

PATIENCE_MS: Final = 30_000
AGAIN_MS: Final = 1_000
"""A cell says at most so often that it wants another amount than before."""

HOLD_MS: Final = 1_000
"""How long a cell keeps what it was lent for lines that have no room yet, and after that"""
VAIN_MS: Final = 10_000
"""how long they claim nothing: some may never find any."""
WAITING_COUNTED: Final = 4096
"""Beyond so many it does not matter how many wait."""

_PAIRS: Final = 4096
"""Numbers of what was lent are kept as so many ranges; what lies before the last of them is never on its way still."""

Four = tuple[int, int, int, int]
_LAST_MS: Final = 1 << 50
"""Added to a claim, it comes after all others."""
NOTHING: Final[Four] = (0, 0, 0, 0)
_OUT_OF_DATE: Final[Four] = (-1, 0, 0, 0)


def part_of(limits: m.Limits, cell: int, cells: int) -> Four:
    """Return a cell's equal part of limits; the parts of all cells make the whole."""
    sandboxes, memory, cpu, starts = (whole // cells + (cell < whole % cells) for whole in amounts_of(limits))
    return sandboxes, memory, cpu, starts


class Claim(NamedTuple):
    """What a cell wants of a tenant's limits, and since when that counts; and since when it needs what it has.

    `within_ms` is for what it has of its equal part, `beyond_ms` for what it has beyond that.
    """

    wanted: Four
    claim_ms: int
    within_ms: int
    beyond_ms: int


def claim(tenant: Tenant, lines: list[tuple[Line, int, int]], since_ms: int, *, rate: bool) -> Claim:
    """Return a cell's claim for lines that the limits hold up: of so many waiting, so many of them together."""
    wanted = lacks(tenant, lines, rate=rate)
    limits, unused = amounts_of(tenant.limits), tenant.unused()
    units = [max(unit * each for line, _, unit in lines for each in (_each(line)[i],)) for i in range(STARTS)]
    if any(limits[i] and units[i] > tenant.base[i] for i in range(STARTS)):
        late = since_ms + PATIENCE_MS
        return Claim(wanted, late, late, late)
    within = [max(base - part, 0) for base, part in zip(tenant.base, tenant.part, strict=True)]
    enough = all(not limits[i] or unused[i] + within[i] >= units[i] for i in range(STARTS))
    if not enough or (rate and limits[STARTS] and not within[STARTS]):
        return Claim(wanted, since_ms + _LAST_MS, since_ms, since_ms + _LAST_MS)
    part = [min(want, left) for want, left in zip(wanted, within, strict=True)]
    return Claim((part[SANDBOXES], part[MEMORY], part[CPU], part[STARTS]), since_ms, since_ms, since_ms + _LAST_MS)


def _each(line: Line) -> tuple[int, int, int]:
    return (1, line.want.memory, line.want.cpu_milli)


def lacks(tenant: Tenant, lines: list[tuple[Line, int, int]], *, rate: bool) -> Four:
    """Return what a tenant would need more of, for lines of so many waiting, of which so many start together.

    `rate`: they wait for the next start.
    """
    limits, needed, least = amounts_of(tenant.limits), [0, 0, 0], [0, 0, 0]
    for line, waiting, unit in lines:
        for i, each in enumerate(_each(line)):
            needed[i] += each * waiting
            least[i] = max(least[i], each * unit)
    unused = tenant.unused()
    found = [
        max(min(needed[i] - unused[i], limits[i] - tenant.part[i]), 0) if limits[i] else 0
        for i in (SANDBOXES, MEMORY, CPU)
    ]
    # Asked for are as many as a power of two, so that a queue that grows says so a few times only.
    rounded = [max(1 << (each.bit_length() - 1), least[i] - unused[i]) if each else 0 for i, each in enumerate(found)]
    starts = limits[STARTS] - tenant.part[STARTS] if rate and limits[STARTS] else 0
    return rounded[SANDBOXES], rounded[MEMORY], rounded[CPU], max(starts, 0)


def lend(tenant: Tenant, mine: Claim | None, cell: int, now: int) -> list[tuple[int, Four]]:
    """Give what is not used to cells that want it; returns to which cells how much.

    `mine`: this cell's own claim, where something of the tenant waits for its limits here.
    """
    given: list[tuple[int, Four]] = []
    claims = sorted(
        (each.claim_ms, other) for other, each in tenant.hungry.items() if each.version == tenant.version
    )  # fmt: skip
    for claim_ms, other in claims:
        wanted = tenant.hungry[other].amounts
        part = [
            min(want, left)
            for want, left in zip(wanted, _to_spare(tenant, mine, (claim_ms, other), cell, now), strict=True)
        ]
        if not any(part):
            continue
        for i, amount in enumerate(part):
            tenant.part[i] -= amount
        given.append((other, (part[SANDBOXES], part[MEMORY], part[CPU], part[STARTS])))
        left = tuple(want - amount for want, amount in zip(wanted, part, strict=True))
        if any(left):
            tenant.hungry[other] = _less(tenant.hungry[other], (left[0], left[1], left[2], left[3]))
        else:
            del tenant.hungry[other]
    return given


def _to_spare(tenant: Tenant, mine: Claim | None, theirs: tuple[int, int], cell: int, now: int) -> list[int]:
    """Return what may be given to another's claim: of what is not used, that which this cell has no older claim to."""
    unused = tenant.unused()
    rate = max(tenant.part[STARTS], 0) if tenant.limits.starts_per_s else 0
    if mine is None:
        idle = not tenant.waiting and tenant.may_start(now) >= max(int(tenant.rate), 1)
        return [*unused, rate if idle else max(rate - tenant.base[STARTS], 0)]
    if theirs < (mine.within_ms, cell):
        return [*unused, rate]
    if theirs < (mine.beyond_ms, cell):
        beyond = [max(part - base, 0) for part, base in zip(tenant.part, tenant.base, strict=True)]
        return [*(min(left, more) for left, more in zip(unused, beyond, strict=False)), min(rate, beyond[STARTS])]
    return [0, 0, 0, 0]


def _less(hungry: m.QuotaWanted, left: Four) -> m.QuotaWanted:
    return m.QuotaWanted(hungry.cell, hungry.number, hungry.tenant, hungry.version, left, hungry.claim_ms)


def _number(last: int, now: int) -> int:
    """Return the number of what is said at `now` (broker's time, ms) after what was said under `last`.

    It is no bare count: whoever hears it passes over what it knows, for ever, and a log that lost its end leads to an
    earlier count again. What is new would be taken for a copy of what only the lost end had led to.
    """
    return max(last + 1, now)


def _with(known: m.Ranges, number: int) -> m.Ranges:
    """Return the numbers that are known with one more; of a great many, the oldest become one range without gaps."""
    found = ranges.union(known, ((number, 1),))
    if len(found) <= _PAIRS:
        return found
    old, recent = found[: 1 - _PAIRS], found[1 - _PAIRS :]
    first, (last, length) = old[0][0], old[-1]
    return ((first, last + length - first), *recent)


class Exchange:
    """What one cell of several has told the others of its parts, and heard of theirs."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._asked = 0
        self._lent: dict[int, int] = {}  # to which cell, and the number of the last time
        self._heard_asks: dict[tuple[int, str], int] = {}
        """The last of the numbers of a cell's asks for a tenant: what comes later and is older is out of date."""
        self._heard_lent: dict[int, m.Ranges] = {}
        """All numbers of what a cell has lent: whatever their order, each counts once."""
        self._hungry: dict[str, None] = {}  # tenants that other cells could use more of
        self._asking: dict[str, None] = {}  # and that this one could

    def wanted(self, message: m.QuotaWanted) -> None:
        """Note what another cell could use."""
        asker = (message.cell, message.tenant)
        if message.number <= self._heard_asks.get(asker, 0):
            return
        self._heard_asks[asker] = message.number
        tenant = self._books.tenant(message.tenant)
        if any(message.amounts) and message.version >= tenant.version:
            tenant.hungry[message.cell] = message
            self._hungry[message.tenant] = None
        else:
            tenant.hungry.pop(message.cell, None)
            if tenant.idle:
                del self._books.tenants[message.tenant]

    def limited(self, name: str) -> None:
        """A tenant's limits have changed: what its part lacks for what is in flight already is asked for."""
        if any(self._books.tenant(name).debt):
            self._asking[name] = None

    def lent(self, message: m.QuotaLent, now: int) -> None:
        """Take over a piece of another cell's part. Raises LawBrokenError, having changed nothing."""
        known = self._heard_lent.get(message.cell, ())
        if ranges.holds(known, message.number):
            return
        there = self._books.tenants.get(message.tenant)
        together = zip(there.part if there else NOTHING, message.amounts, strict=True)
        if min(message.amounts) < 0 or max(part + amount for part, amount in together) > MOST:
            raise LawBrokenError(f"amounts: {message.amounts} cannot be lent to tenant {message.tenant}")
        self._heard_lent[message.cell] = _with(known, message.number)
        tenant = self._books.tenant(message.tenant)
        tenant.asked = (_OUT_OF_DATE, tenant.asked[1])  # each of the others thinks of what it has given itself
        for i, amount in enumerate(message.amounts):
            tenant.part[i] += amount
        tenant.lent_ms = now
        self._books.at(now + HOLD_MS, "quota", message.tenant)

    def lend(self, now: int) -> list[tuple[int, m.QuotaLent]]:
        """Give away what is not used, and others have an older claim to; returns what to tell which cell."""
        said: list[tuple[int, m.QuotaLent]] = []
        for name in list(self._hungry):
            tenant = self._books.tenants.get(name)
            if tenant is None or not tenant.hungry:
                del self._hungry[name]
                if tenant is not None and tenant.idle:
                    del self._books.tenants[name]
                continue
            self._hold(tenant, now)
            lines = self._lines(tenant, now, all_=True)
            mine = self._claim(tenant, lines, now) if lines else None
            for cell, amounts in lend(tenant, mine, self._books.cell, now):
                self._lent[cell] = _number(self._lent.get(cell, 0), now)
                message = m.QuotaLent(self._books.cell, self._lent[cell], name, tenant.version, amounts)
                said.append((cell, message))
        return said

    def ask(self, names: Iterable[str], now: int) -> list[m.QuotaWanted]:
        """Return what to tell all other cells: what these tenants, whose limits hold something up, could use."""
        said: list[m.QuotaWanted] = []
        for name in {**self._asking, **dict.fromkeys(names)}:
            tenant = self._books.tenants.get(name)
            if tenant is None:
                self._asking.pop(name, None)
                continue
            self._hold(tenant, now)
            lines, debt = self._lines(tenant, now), tenant.debt
            if any(debt):
                mine = Claim(debt, 0, 0, 0)
            else:
                mine = self._claim(tenant, lines, now) if lines else Claim(NOTHING, now, now, now)
            wanted = mine.wanted
            known, when = tenant.asked
            if wanted == known or (any(known) and any(wanted) and now < when + AGAIN_MS):
                if wanted != known:
                    self._books.at(when + AGAIN_MS, "quota", name)
                continue
            tenant.asked = (wanted, now)
            if any(wanted):
                self._asking[name] = None
            else:
                self._asking.pop(name, None)
            self._asked = _number(self._asked, now)
            version = tenant.version
            said.append(m.QuotaWanted(self._books.cell, self._asked, name, version, wanted, mine.claim_ms))
        return said

    def _hold(self, tenant: Tenant, now: int) -> None:
        """Let go of what was lent some time ago to lines that have no room anywhere: for a while they claim nothing."""
        if tenant.lent_ms and now >= tenant.lent_ms + HOLD_MS:
            tenant.lent_ms = 0
            lines = self._lines(tenant, now, all_=True)
            if any(not self._has_room(line) and tenant.may_have(line.want)[0] >= unit for line, _, unit in lines):
                tenant.vain_ms = now + VAIN_MS
                self._books.at(tenant.vain_ms, "quota", tenant.name)

    def _has_room(self, line: Line) -> bool:
        return self._books.rooms.fits(line.want) >= self._books.rollouts[line.first].unit

    def _lines(self, tenant: Tenant, now: int, *, all_: bool = False) -> list[tuple[Line, int, int]]:
        """Return the lines of a tenant that its limits hold up, or all: how many of each wait, and start together."""
        found: list[tuple[Line, int, int]] = []
        starts = tenant.may_start(now)
        for line in self._books.waiting.lines.get(tenant.name, {}).values():
            first = self._books.rollouts[line.first]
            unit = first.unit
            if first.guest is not None or (now < tenant.vain_ms and not self._has_room(line)):
                continue
            if all_ or tenant.may_have(line.want)[0] < unit or starts < 1:
                found.append((line, self._books.waiting_in(line, most=WAITING_COUNTED), unit))
        return found

    def _claim(self, tenant: Tenant, lines: list[tuple[Line, int, int]], now: int) -> Claim:
        since = min(self._books.rollouts[line.first].submitted_ms for line, _, _ in lines)
        return claim(tenant, lines, since, rate=tenant.may_start(now) < 1)

    def dump(self) -> "DumpedExchange":
        """Return it as data."""
        return (
            self._asked, list(self._lent.items()), [(*asker, last) for asker, last in self._heard_asks.items()],
            list(self._heard_lent.items()), list(self._hungry), list(self._asking),
        )  # fmt: skip

    def load(self, dumped: "DumpedExchange") -> None:
        """Take over what was dumped."""
        self._asked, lent, asks, heard, hungry, asking = dumped
        self._lent, self._heard_lent = dict(lent), dict(heard)
        self._heard_asks = {(cell, tenant): last for cell, tenant, last in asks}
        self._hungry, self._asking = dict.fromkeys(hungry), dict.fromkeys(asking)


DumpedExchange = tuple[
    int, list[tuple[int, int]], list[tuple[int, str, int]], list[tuple[int, m.Ranges]], list[str], list[str]
]  # fmt: skip
