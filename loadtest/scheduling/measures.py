"""How well a cell served a workload, beside what no schedule can beat."""

from dataclasses import dataclass

from scheduling.workloads import Load, least_makespan_ms
from shoal.replay.course import Course, Measures, measure


@dataclass(frozen=True, slots=True)
class Result:
    """One policy on one workload. `over_bound`: its makespan, in parts of the bound beyond it."""

    over_bound: float
    measures: Measures

    def as_dict(self) -> dict[str, float]:
        """Return it for programs."""
        return {"over_bound": self.over_bound, **self.measures.as_dict()}


def result(course: Course, loads: list[Load], slots: int) -> Result:
    """Return how it went."""
    measures = measure(course)
    return Result(measures.makespan_s * 1000 / least_makespan_ms(loads, slots) - 1, measures)
