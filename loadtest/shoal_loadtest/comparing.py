"""Two load tests side by side: ratios of medians, and how likely a difference is by chance."""

import itertools
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from shoal_loadtest.report.record import Report

_MORE_IS_BETTER: Final = ("throughput", "sustained", "commands_per_s", "maximum", "live_max")
_MAIN: Final = (
    "throughput", "sustained", "maximum", "ready_p50_ms", "ready_p99_ms", "group_ready_p99_ms", "first_command_p50_ms",
    "first_command_p99_ms", "command_p50_ms", "command_p99_ms", "commands_per_s", "cpu_us_per_sandbox",
    "cpu_us_per_command", "service_bytes_per_live", "services_mib", "broker_mib", "gpu_seconds", "lost", "doubled",
    "failed",
)  # fmt: skip
_MOST_SPLITS: Final = 20_000
CLEAR: Final = 0.05
LIKELY: Final = 0.101
"""Three runs against three cannot be less likely than 1 in 10."""


@dataclass(frozen=True, slots=True)
class Row:
    """A metric of two reports: medians, the second's part of the first, and how it is to be taken.

    `chance`: how often so large a difference comes about where there is none; None where runs are too few to tell.
    """

    metric: str
    a: float
    b: float
    ratio: float | None
    runs: tuple[int, int]
    chance: float | None
    better: bool | None

    @property
    def cue(self) -> str:
        """Return how it is to be taken, in a few words."""
        if self.better is None:
            return "same"
        word = "better" if self.better else "worse"
        if self.chance is None:
            return f"{word}? (too few runs)"
        if self.chance <= CLEAR:
            return f"{word}, clearly"
        return f"{word}, likely" if self.chance <= LIKELY else "no clear difference"


def compare(a: Report, b: Report, *, all_metrics: bool = False) -> list[Row]:
    """Return the metrics that both have."""
    found = []
    for metric in _metrics(a, b, all_metrics):
        left = [run.metrics[metric] for run in a.runs if metric in run.metrics]
        right = [run.metrics[metric] for run in b.runs if metric in run.metrics]
        one, other = statistics.median(left), statistics.median(right)
        more = metric.rpartition(".")[2] in _MORE_IS_BETTER
        better = None if one == other else (other > one) == more
        ratio = other / one if one else None
        found.append(Row(metric, one, other, ratio, (len(left), len(right)), chance(left, right), better))
    return found


def differences(a: Report, b: Report) -> list[str]:
    """Return, as sentences, what else differs and makes ratios mean less."""
    found = []
    if a.document != b.document or a.scale != b.scale:
        found.append("they are not of the same scenario, settings and scale")
    return found + [
        f"the machines differ in {name}: {a.machine.get(name)}, {b.machine.get(name)}"
        for name in ("cpu", "cores", "memory", "kernel")
        if a.machine.get(name) != b.machine.get(name)
    ]


def chance(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Return how often chance alone makes the means differ so much: of all ways to deal these runs out, exactly.

    A permutation test, two-sided: exact, or of very many runs by a sample that is always the same. None for less than
    three runs on either side, which could never tell.
    """
    if min(len(left), len(right)) < 3:
        return None
    both = [*left, *right]
    observed = abs(statistics.fmean(left) - statistics.fmean(right))
    total, size = sum(both), len(left)
    as_large = count = 0
    for chosen in _splits(both, size):
        mine = sum(chosen)
        count += 1
        as_large += abs(mine / size - (total - mine) / len(right)) >= observed * (1 - 1e-12)
    return as_large / count


def _splits(both: Sequence[float], size: int) -> Iterator[Sequence[float]]:
    if math.comb(len(both), size) <= _MOST_SPLITS:
        yield from itertools.combinations(both, size)
    else:
        rng = random.Random(0)
        yield from (rng.sample(both, size) for _ in range(_MOST_SPLITS))


def _metrics(a: Report, b: Report, all_metrics: bool) -> Iterator[str]:
    known = {name for run in a.runs for name in run.metrics} & {name for run in b.runs for name in run.metrics}
    if all_metrics:
        yield from sorted(known)
        return
    phases = [phase.name for run in a.runs[:1] for phase in run.phases]
    yield from (name for name in _MAIN if name in known)
    if len(phases) > 1:
        yield from (f"{phase}.{name}" for phase in phases for name in _MAIN if f"{phase}.{name}" in known)
