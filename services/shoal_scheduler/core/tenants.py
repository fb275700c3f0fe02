"""Who has what: each tenant's use of the cell, what it may have, and its share of the whole.

A share is the dominant one (DRF: Ghodsi et al., Dominant Resource Fairness, NSDI 2011): of the resources that the cell
counts, the largest part that somebody has of any, divided by the tenant's weight. The same measure, without weights,
orders the runs of a tenant.

What a tenant may have is said for the whole cluster; a cell keeps to a part of it (`quotas` moves parts between cells).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from shoal.wire import messages as m
from shoal_scheduler.core.room import PLENTY, Amounts, Want

WAITING: Final = 1_000_000
"""Sandboxes of one tenant that may wait for room, where its limits do not say."""
SANDBOXES: Final = 0
MEMORY: Final = 1
CPU: Final = 2
STARTS: Final = 3
"""Places in a part: sandboxes, bytes of memory, thousandths of a cpu, thousandths of starts a second."""


def amounts_of(limits: m.Limits) -> tuple[int, int, int, int]:
    """Return limits as a part has them; 0 for what is not limited."""
    return (limits.sandboxes, limits.memory, limits.cpu_milli, round(limits.starts_per_s * 1000))


def dominant(used: Iterable[int], total: Amounts) -> float:
    """Return the largest part of any counted resource."""
    return max((have / whole for have, whole in zip(used, total, strict=True) if whole), default=0.0)


@dataclass(slots=True)
class Tenant:
    """One tenant's account in this cell.

    `used` and `runs` are what takes room in this cell: slots, memory, cpu, disk. `owned` is what its rollouts of this
    cell have in flight, here or on another cell's nodes: that is what limits are for. `part` is this cell's part of
    them; it counts where the whole is limited. It is the equal part, `base`, and what other cells lent for good, less
    what they were lent: whatever limits come in whatever order, all parts make the whole. Where a limit was lowered, a
    part may be less than what is in flight, or than nothing (`debt`).
    """

    name: str
    limits: m.Limits = field(default_factory=m.Limits)
    part: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    base: tuple[int, int, int, int] = (0, 0, 0, 0)  # the equal part
    version: int = 0
    used: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    owned: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    runs: dict[str, list[int]] = field(default_factory=dict)
    rollouts: int = 0
    waiting: int = 0  # sandboxes that were admitted and wait to be given out
    starts: float = 1.0  # those it may start now, where their rate is limited; as of
    starts_ms: int = 0
    hungry: dict[int, m.QuotaWanted] = field(default_factory=dict)
    """Cells that could use more of its limits, and how much."""
    asked: tuple[tuple[int, int, int, int], int] = ((0, 0, 0, 0), 0)
    """What the other cells were asked for last, and when."""
    lent_ms: int = 0  # when a part came from another cell
    vain_ms: int = 0  # until when nothing is claimed for lines that have no room

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost if it were forgotten."""
        return (
            not self.rollouts
            and self.limits == m.Limits()
            and not self.version
            and not self.hungry
            and not any(self.part)
        )

    def limit(self, limits: m.Limits, base: tuple[int, int, int, int], version: int) -> None:
        """Let it have this much from now on, and of that this equal part in this cell."""
        self.part = [part + new - old for part, new, old in zip(self.part, base, self.base, strict=True)]
        self.limits, self.base, self.version = limits, base, version
        self.starts = min(self.starts, max(self.rate, 1.0))
        self.asked = ((0, 0, 0, 0), 0)
        self.hungry = {cell: each for cell, each in self.hungry.items() if each.version >= version}

    @property
    def debt(self) -> tuple[int, int, int, int]:
        """Return what this cell's part of each limit lacks to be what is in flight already; of the rate, to be none."""
        owned = (*self.owned[:STARTS], 0)
        sandboxes, memory, cpu, starts = (
            max(have - part, 0) if whole else 0
            for whole, part, have in zip(amounts_of(self.limits), self.part, owned, strict=True)
        )
        return sandboxes, memory, cpu, starts

    def share(self, total: Amounts) -> float:
        """Return its weighted dominant share."""
        return dominant(self.used, total) / self.limits.weight

    def run_share(self, run: str, total: Amounts) -> float:
        """Return the dominant share of one of its runs."""
        return dominant(self.runs.get(run, (0, 0, 0, 0)), total)

    def give(self, run: str, want: Want, here: int) -> None:
        """Note that so many more of a run's sandboxes take room in this cell; fewer, where it is negative."""
        if not here:
            return
        mine = self.runs.setdefault(run, [0, 0, 0, 0])
        for number, amount in enumerate(want.amounts):
            self.used[number] += amount * here
            mine[number] += amount * here
        if not mine[0]:
            assert not any(mine)
            del self.runs[run]

    def own(self, want: Want, count: int) -> None:
        """Note that so many more sandboxes of its rollouts are in flight, wherever; fewer, where it is negative."""
        for number, amount in enumerate(want.amounts):
            self.owned[number] += amount * count

    def unused(self) -> list[int]:
        """Return what is left of this cell's part of each limit, of the rate none; 0 for what is not limited."""
        return [
            max(part - owned, 0) if whole else 0
            for whole, part, owned in zip(amounts_of(self.limits)[:STARTS], self.part, self.owned, strict=False)
        ]

    def may_have(self, want: Want) -> tuple[int, str]:
        """Return how many more sandboxes its limits allow at once, and which of them is the closest, for people."""
        most, why = PLENTY, ""
        limits, left = self.limits, self.unused()
        for limit, unused, each, text in (
            (limits.sandboxes, left[SANDBOXES], 1, f"quota of {limits.sandboxes} sandboxes"),
            (limits.memory, left[MEMORY], want.memory, "quota of memory"),
            (limits.cpu_milli, left[CPU], want.cpu_milli, f"quota of {limits.cpu_milli / 1000:g} cpus"),
        ):
            if limit and each and (count := unused // each) < most:
                most, why = count, text
        return most, why

    @property
    def rate(self) -> float:
        """How many sandboxes it may start a second in this cell, where that is limited."""
        return max(self.part[STARTS], 0) / 1000

    def may_start(self, now: int) -> int:
        """Return how many its rate allows now."""
        if not self.limits.starts_per_s:
            return PLENTY
        self.starts = min(self.starts + max(now - self.starts_ms, 0) * self.rate / 1000, max(self.rate, 1.0))
        self.starts_ms = now
        return int(self.starts)

    def started(self, count: int) -> None:
        """Note that so many are started."""
        if self.limits.starts_per_s:
            self.starts -= count

    def next_start_ms(self, count: int) -> int:
        """Return when its rate allows so many at once; some time from now where this cell has no part of it."""
        if self.part[STARTS] <= 0:
            return self.starts_ms + 1000
        return self.starts_ms + int(max(count - self.starts, 0) * 1000 / self.rate) + 1
