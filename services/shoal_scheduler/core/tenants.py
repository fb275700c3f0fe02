"""Who has what: each tenant's use of the cell, what it may have, and its share of the whole.

A share is the dominant one (DRF: Ghodsi et al., Dominant Resource Fairness, NSDI 2011): of the resources that the cell
counts, the largest part that somebody has of any, divided by the tenant's weight. The same measure, without weights,
orders the runs of a tenant.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from shoal.wire import messages as m
from shoal_scheduler.core.room import PLENTY, Amounts, Want

WAITING: Final = 1_000_000
"""Sandboxes of one tenant that may wait for room, where its limits do not say."""


def dominant(used: Iterable[int], total: Amounts) -> float:
    """Return the largest part of any counted resource."""
    return max((have / whole for have, whole in zip(used, total, strict=True) if whole), default=0.0)


@dataclass(slots=True)
class Tenant:
    """One tenant's account in this cell. `used` and `runs` are what is in flight: slots, memory, cpu, disk."""

    name: str
    limits: m.Limits = field(default_factory=m.Limits)
    used: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    runs: dict[str, list[int]] = field(default_factory=dict)
    rollouts: int = 0
    waiting: int = 0  # sandboxes that were admitted and wait to be given out
    starts: float = 1.0  # those it may start now, where their rate is limited; as of
    starts_ms: int = 0

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost if it were forgotten."""
        return not self.rollouts and self.limits == m.Limits()

    def share(self, total: Amounts) -> float:
        """Return its weighted dominant share."""
        return dominant(self.used, total) / self.limits.weight

    def run_share(self, run: str, total: Amounts) -> float:
        """Return the dominant share of one of its runs."""
        return dominant(self.runs.get(run, (0, 0, 0, 0)), total)

    def give(self, run: str, want: Want, count: int) -> None:
        """Note that so many more of a run's sandboxes are in flight; fewer, where count is negative."""
        mine = self.runs.setdefault(run, [0, 0, 0, 0])
        for number, amount in enumerate(want.amounts):
            self.used[number] += amount * count
            mine[number] += amount * count
        if not mine[0]:
            assert not any(mine)
            del self.runs[run]

    def may_have(self, want: Want) -> tuple[int, str]:
        """Return how many more sandboxes its limits allow at once, and which of them is the closest, for people."""
        most, why = PLENTY, ""
        slots, memory, cpu, _ = self.used
        limits = self.limits
        for limit, used, each, text in (
            (limits.sandboxes, slots, 1, f"quota of {limits.sandboxes} sandboxes"),
            (limits.memory, memory, want.memory, "quota of memory"),
            (limits.cpu_milli, cpu, want.cpu_milli, f"quota of {limits.cpu_milli / 1000:g} cpus"),
        ):
            if limit and each and (count := max((limit - used) // each, 0)) < most:
                most, why = count, text
        return most, why

    def may_start(self, now: int) -> int:
        """Return how many its rate allows now."""
        rate = self.limits.starts_per_s
        if not rate:
            return PLENTY
        self.starts = min(self.starts + max(now - self.starts_ms, 0) * rate / 1000, max(rate, 1.0))
        self.starts_ms = now
        return int(self.starts)

    def started(self, count: int) -> None:
        """Note that so many are started."""
        if self.limits.starts_per_s:
            self.starts -= count

    def next_start_ms(self) -> int:
        """Return when its rate allows the next one."""
        return self.starts_ms + int(max(1 - self.starts, 0) * 1000 / self.limits.starts_per_s) + 1
