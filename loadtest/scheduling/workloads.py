"""What is asked of a cell: four workloads, each drawn from a seed and sized to the room there is."""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """One rollout: when it is submitted (ms), by whom, and how long each of its sandboxes runs (ms)."""

    at_ms: int
    tenant: str
    run: str
    durations_ms: tuple[int, ...]

    @property
    def work_ms(self) -> int:
        """Slot-milliseconds."""
        return sum(self.durations_ms)


def uniform(slots: int, source: random.Random) -> list[Load]:
    """Four tenants that ask for groups of 64, all at once, of 20 to 40 s each: ten times the room.

    Fewer would measure the end more than the rest: who does not know how long sandboxes run has some of them begin last
    and run 40 s while others are idle.
    """
    return [
        Load(0, f"t{number % 4}", "run", tuple(source.randint(20_000, 40_000) for _ in range(64)))
        for number in range(10 * slots // 64)
    ]


def bursty(slots: int, source: random.Random) -> list[Load]:
    """Five bursts, 60 s apart, of one and a half times the room each: what a training step of many queries asks for."""
    return [
        Load(burst * 60_000 + source.randint(0, 500), f"t{number % 4}", f"run{number % 2}",
              tuple(source.randint(20_000, 40_000) for _ in range(128)))
        for burst in range(5)
        for number in range(3 * slots // 256)
    ]  # fmt: skip


def heavy_tailed(slots: int, source: random.Random) -> list[Load]:
    """Groups of 128 over four minutes, more than there is room for: 15 s in the median, some twenty times that."""
    return [
        Load(source.randint(0, 240_000), f"t{number % 4}", f"run{number % 3}",
              tuple(min(int(source.lognormvariate(9.6, 1.0)), 300_000) for _ in range(128)))
        for number in range(12 * slots // 128)
    ]  # fmt: skip


def adversarial(slots: int, source: random.Random) -> list[Load]:
    """One tenant asks for four times the room at once; seven others for groups of 8 to 32 now and then."""
    flood = [
        Load(0, "flood", "run", tuple(source.randint(20_000, 60_000) for _ in range(256)))
        for _ in range(4 * slots // 256)
    ]
    others = [
        Load(source.randint(1_000, 120_000), f"t{number % 7}", f"run{number % 2}",
              tuple(source.randint(5_000, 20_000) for _ in range(source.choice((8, 16, 32)))))
        for number in range(slots // 16)
    ]  # fmt: skip
    return sorted([*flood, *others], key=lambda group: group.at_ms)


WORKLOADS: dict[str, Callable[[int, random.Random], list[Load]]] = {
    "uniform": uniform, "bursty": bursty, "heavy-tailed": heavy_tailed, "adversarial": adversarial,
}  # fmt: skip


def least_makespan_ms(loads: list[Load], slots: int) -> float:
    """Return what no schedule can beat: from each arrival on, the work that comes then or later, on all slots.

    And no sandbox is done before it was asked for and has run. Starting takes no time in this bound.
    """
    longest = max(load.at_ms + max(load.durations_ms) for load in loads)
    ordered = sorted(loads, key=lambda load: load.at_ms)
    left = sum(load.work_ms for load in ordered)
    least = float(longest)
    for load in ordered:
        least = max(least, load.at_ms + left / slots)
        left -= load.work_ms
    return least
