"""When things are asked for: moments in seconds from a phase's beginning, fixed before anything is sent. Pure.

Nothing here knows how the system fares, so a slow answer never delays a later request: what is measured from these
moments has no coordinated omission (Tene, How NOT to Measure Latency).
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from shoal_loadtest.scenario.model import Arrival, Bursts, Closed, Constant, Poisson, Ramp


@dataclass(frozen=True, slots=True)
class Split:
    """Which of so many generators this is: together they make the process that was described."""

    part: int = 0
    of: int = 1

    def share(self, count: int) -> int:
        """Return this one's share of so many."""
        return count // self.of + (self.part < count % self.of)


def moments(
    process: Arrival, rate: float, mean: float, seconds: float, rng: random.Random, split: Split
) -> Iterator[float]:
    """Return the moments of an open process, without end but for a ramp's, in order.

    `rate`: units a second of all generators together (where the process has one of its own, that counts), `mean`:
    units in each arrival. Raises ValueError for a process that is not open.
    """
    match process:
        case Constant():
            gap = mean / rate
            return (number * gap for number in itertools.count(split.part, split.of))
        case Poisson():
            each = rate / mean / split.of
            return itertools.accumulate(rng.expovariate(each) for _ in itertools.count())
        case Bursts(rollouts=rollouts, every=every):
            here = split.share(rollouts)
            return (number * every for number in itertools.count() for _ in range(here))
        case Ramp(rate=first, to=last):
            return _ramp(first / mean, last / mean, seconds, split)
        case _:
            raise ValueError(f"{type(process).__name__} has no moments of its own")


def _ramp(first: float, last: float, seconds: float, split: Split) -> Iterator[float]:
    """Yield when the count of arrivals, `first * t + (last - first) * t * t / (2 * seconds)`, reaches each number."""
    slope = (last - first) / seconds
    for number in range(split.part, math.floor((first + last) / 2 * seconds), split.of):
        if slope:
            yield (math.sqrt(max(first * first + 2 * slope * number, 0.0)) - first) / slope
        else:
            yield number / first


def is_open(process: Arrival | None) -> bool:
    """Return whether a process goes by the clock."""
    return process is not None and not isinstance(process, Closed)
