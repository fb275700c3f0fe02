"""A course of events: when each sandbox of each rollout was ready, and when it was done; and how well that was."""

from dataclasses import asdict, dataclass, field
from typing import Final

GPU_PRICE: Final = 2.5
"""Dollars for an hour of a GPU, where nobody says otherwise: an assumption, to be replaced by one's own."""


@dataclass(slots=True)
class Seen:
    """What became of one rollout of `n` sandboxes: times in ms, by sandbox."""

    at_ms: int
    tenant: str
    n: int
    ready: dict[int, int] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)

    @property
    def full_ms(self) -> int | None:
        """From its submission until the last of its sandboxes was ready; None where some never were."""
        return max(self.ready.values()) - self.at_ms if len(self.ready) == self.n else None

    @property
    def first_ms(self) -> int | None:
        """From its submission until the first of its sandboxes was ready."""
        return min(self.ready.values()) - self.at_ms if self.ready else None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rollout of `n` sandboxes that was not taken in, and why."""

    n: int
    why: str


@dataclass(slots=True)
class Course:
    """Rollouts by name, in a cluster of so many slots; those `rejected` have no part in what was `seen`."""

    slots: int
    seen: dict[str, Seen] = field(default_factory=dict)
    rejected: dict[str, Rejected] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measures:
    """How well those who asked were served. Times in seconds; a group that was never complete has no part in them."""

    groups: int
    sandboxes: int
    rejected: int
    """groups that were not taken in; no other number is of them"""
    rejected_sandboxes: int
    makespan_s: float
    """from the first submission until the last sandbox is done"""
    first_p50_s: float
    """from a group's submission until one of it is ready"""
    full_p50_s: float
    """from a group's submission until all of it is ready"""
    full_p99_s: float
    share_error: float
    """1 less Jain's index of what tenants have of their fair part, while there is not enough for all"""
    utilisation: float
    """of all slots, until the last sandbox is done"""
    waited_gpu_s: float
    """summed over groups, from submission until all of it is ready: a GPU for each that has nothing to learn from"""

    def as_dict(self) -> dict[str, float]:
        """Return it for programs."""
        return asdict(self)

    def cost(self, gpu_price: float) -> float:
        """Return what the GPUs that waited cost, at so much an hour for each."""
        return self.waited_gpu_s / 3600 * gpu_price


def measure(course: Course) -> Measures:
    """Return how well it went."""
    seen = list(course.seen.values())
    begin = min((each.at_ms for each in seen), default=0)
    end = max((done for each in seen for done in each.done.values()), default=begin)
    full = sorted(ms / 1000 for each in seen if (ms := each.full_ms) is not None)
    first = sorted(ms / 1000 for each in seen if (ms := each.first_ms) is not None)
    work = sum(each.done[i] - at for each in seen for i, at in each.ready.items() if i in each.done)
    span = max(end - begin, 1)
    return Measures(
        len(seen), sum(each.n for each in seen), len(course.rejected),
        sum(each.n for each in course.rejected.values()), span / 1000, quantile(first, 0.5), quantile(full, 0.5),
        quantile(full, 0.99), _share_error(course, begin, end), work / (max(course.slots, 1) * span), sum(full),
    )  # fmt: skip


def quantile(values: list[float], part: float) -> float:
    """Return a quantile of sorted values; 0 of none."""
    return values[min(int(part * len(values)), len(values) - 1)] if values else 0.0


def _share_error(course: Course, begin: int, end: int) -> float:
    """Return 1 less Jain's index, over the time in which tenants together want more than there is.

    The index (Jain, Chiu and Hawe, 1984) is of each tenant's use divided by its max-min fair part of the slots, sampled
    four hundred times, but at most every 250 ms.
    """
    wants: list[tuple[int, str, int]] = []
    uses: list[tuple[int, str, int]] = []
    for seen in course.seen.values():
        wants.append((seen.at_ms, seen.tenant, seen.n))
        wants += [(done, seen.tenant, -1) for done in seen.done.values()]
        uses += [(ready, seen.tenant, 1) for ready in seen.ready.values()]
        uses += [(done, seen.tenant, -1) for index, done in seen.done.items() if index in seen.ready]
    wants.sort()
    uses.sort()
    want: dict[str, int] = {}
    use: dict[str, int] = {}
    at_want = at_use = 0
    errors: list[float] = []
    for now in range(begin, end, max((end - begin) // 400, 250)):
        while at_want < len(wants) and wants[at_want][0] <= now:
            _, tenant, change = wants[at_want]
            want[tenant] = want.get(tenant, 0) + change
            at_want += 1
        while at_use < len(uses) and uses[at_use][0] <= now:
            _, tenant, change = uses[at_use]
            use[tenant] = use.get(tenant, 0) + change
            at_use += 1
        active = {tenant: number for tenant, number in want.items() if number > 0}
        if now < begin + 1_900 or sum(active.values()) <= course.slots or len(active) < 2:
            continue
        parts = [use.get(tenant, 0) / fair for tenant, fair in _fair(active, course.slots).items()]
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
