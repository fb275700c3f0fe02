"""How well a cell served a workload."""

from dataclasses import asdict, dataclass

from scheduling.cell import Cell
from scheduling.workloads import Group, least_makespan_ms


@dataclass(frozen=True, slots=True)
class Measures:
    """One policy on one workload. Times in seconds."""

    makespan_s: float
    over_bound: float
    """makespan, in parts of the bound that no schedule can beat"""
    full_p50_s: float
    """from a group's submission until all of it is ready"""
    full_p99_s: float
    share_error: float
    """1 less Jain's index of what tenants have of their fair part, while there is not enough for all"""
    utilisation: float
    """of all slots until the last sandbox ends"""
    waited_gpu_s: float
    """summed over groups, from submission until all of it is ready: a GPU for each that has nothing to learn from"""

    def as_dict(self) -> dict[str, float]:
        """Return it for programs."""
        return asdict(self)


def measure(cell: Cell, groups: list[Group], slots: int) -> Measures:
    """Return how it went."""
    begin = 100
    end = max(max(seen.done.values()) for seen in cell.seen.values()) - begin
    waits = sorted((seen.full_ms - seen.group.at_ms - begin) / 1000 for seen in cell.seen.values())
    work = sum(group.work_ms for group in groups)
    least = least_makespan_ms(groups, slots)
    return Measures(
        end / 1000, end / least - 1, _quantile(waits, 0.5), _quantile(waits, 0.99), _share_error(cell, slots),
        work / (slots * end), sum(waits),
    )  # fmt: skip


def _quantile(values: list[float], part: float) -> float:
    return values[min(int(part * len(values)), len(values) - 1)]


def _share_error(cell: Cell, slots: int) -> float:
    """Return 1 less Jain's index, over the time in which tenants together want more than there is.

    The index (Jain, Chiu and Hawe, 1984) is of each tenant's use divided by its max-min fair part of the slots, sampled
    every 250 ms.
    """
    wants: list[tuple[int, str, int]] = []
    for seen in cell.seen.values():
        wants.append((seen.group.at_ms + 100, seen.group.tenant, len(seen.group.durations_ms)))
        wants += [(done, seen.group.tenant, -1) for done in seen.done.values()]
    wants.sort()
    uses = sorted(cell.use)
    want: dict[str, int] = {}
    use: dict[str, int] = {}
    at_want = at_use = 0
    errors: list[float] = []
    for now in range(2_000, cell.now, 250):
        while at_want < len(wants) and wants[at_want][0] <= now:
            _, tenant, change = wants[at_want]
            want[tenant] = want.get(tenant, 0) + change
            at_want += 1
        while at_use < len(uses) and uses[at_use][0] <= now:
            _, tenant, change = uses[at_use]
            use[tenant] = use.get(tenant, 0) + change
            at_use += 1
        active = {tenant: number for tenant, number in want.items() if number > 0}
        if sum(active.values()) <= slots or len(active) < 2:
            continue
        parts = [use.get(tenant, 0) / fair for tenant, fair in _fair(active, slots).items()]
        squares = sum(part * part for part in parts)
        errors.append(1 - sum(parts) ** 2 / (len(parts) * squares) if squares else 1.0)
    return sum(errors) / len(errors) if errors else 0.0


def _fair(want: dict[str, int], slots: int) -> dict[str, float]:
    """Return the max-min fair parts."""
    parts: dict[str, float] = {}
    left = float(slots)
    for number, (tenant, wanted) in enumerate(sorted(want.items(), key=lambda each: each[1])):
        parts[tenant] = min(float(wanted), left / (len(want) - number))
        left -= parts[tenant]
    return parts
