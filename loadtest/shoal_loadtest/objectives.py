"""Objectives: what a load test must show, such as `ready_p99_ms<200` or `hold.ready_p99_ms<=5*idle.ready_p99_ms`.

A name is a metric of the whole run, or a phase's name, a dot and a metric of that phase; without a phase, a metric of
phases is about all that are judged, together.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.wire.quantities import BadValueError

_LATENCIES: Final = {
    "first_ready": "from the moment it should be asked for until the first sandbox of a rollout is ready",
    "ready": "from the moment its rollout should be asked for until a sandbox is ready, over all sandboxes",
    "group_ready": "from the moment it should be asked for until all sandboxes of a rollout are ready",
    "first_command": "from the moment its rollout should be asked for until a sandbox's first command is done",
    "command": "from the moment it should be asked for until a command's answer is there",
    "lateness": "from the moment something should be asked for until the load generator did",
}
LATENCIES: Final = tuple(_LATENCIES)
QUANTILES: Final = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
AGGREGATES: Final = (*QUANTILES, "mean")

OF_PHASES: Final = {
    **{f"{name}_{of}_ms": f"ms; {text}" for name, text in _LATENCIES.items() for of in AGGREGATES},
    **{
        f"{name}_{of}_broker_ms": f"ms; the same by the broker's clock, from the request's place in the log: {text}"
        for name, text in _LATENCIES.items()
        if name not in ("command", "lateness")
        for of in AGGREGATES
    },
    "throughput": "sandboxes a second, from the first request to the last that is through (or ready, if it stays)",
    "sustained": "sandboxes a second, between the first tenth of them and the last",
    "commands_per_s": "commands a second, from the first to the last answer",
    "cpu_us_per_sandbox": "microseconds of cpu of services and broker for each sandbox that was through, or ready",
    "cpu_us_per_command": "microseconds of cpu of services and broker for each command, in phases without arrivals",
    "services_mib": "MiB; the most memory of all services together, what they share counted once (PSS), brokers apart",
    "service_bytes_per_live": "bytes; memory of all services together for each live sandbox, while most are live",
    "service_growth_per_live": "bytes; the same, of what the services have taken since the run began",
    "broker_mib": "MiB; the most memory of all brokers",
    "gpu_seconds": "GPU-seconds in which trainers waited for sandboxes",
    "gpu_cost": "US dollars for them, at the scenario's price",
    "failed": "sandboxes that ended by a failure of the platform",
    "rejected": "sandboxes whose rollouts were rejected",
    "refused": "commands that were not carried out",
    "live_max": "the most sandboxes that were live at once",
    "seconds": "how long it took",
}  # fmt: skip
OF_RUNS: Final = {
    "lost": "sandboxes that never concluded",
    "doubled": "sandboxes with more than one result",
    "disagreed": "rollouts whose outcome in the log is not what their reports add up to, or that concluded twice",
    "maximum": "sandboxes a second, as measured by the phase that measures it",
}

_FORM: Final = re.compile(r"\s*([\w.\-]+)\s*(<=|>=|==|<|>)\s*(?:([\d.eE+\-]+)\s*\*\s*)?([\w.\-+]+)\s*")
_HOLDS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective: `name` compared with `factor` times another metric, or with a number."""

    text: str
    name: str
    how: str
    factor: float
    other: str = ""

    def judge(self, metrics: Mapping[str, float]) -> "Verdict":
        """Return whether it is met by a run's metrics; what was not measured meets nothing."""
        found = metrics.get(self.name)
        bound = self.factor if not self.other else metrics.get(self.other)
        if bound is not None and self.other:
            bound *= self.factor
        met = found is not None and bound is not None and _HOLDS[self.how](found, bound)
        return Verdict(self.text, met, found, bound)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an objective; None for what was not measured."""

    objective: str
    met: bool
    found: float | None
    bound: float | None


def parse(text: str, phases: Sequence[str]) -> Objective:
    """Return an objective over a scenario with these phases. Raises BadValueError."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise BadValueError("objective", f"{text!r} is none; write such as ready_p99_ms<200 or throughput>=10000")
    name, how, factor, other = match.groups()
    _known(name, text, phases)
    number = _float(other)
    bound = _float(factor or "1")
    if bound is not None:
        bound *= 1 if number is None else number
    if bound is None or not math.isfinite(bound):
        raise BadValueError("objective", f"{text!r}: its bound is no number; write such as ready_p99_ms<200")
    if number is None:
        _known(other, text, phases)
    return Objective(text, name, how, bound, other if number is None else "")


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _known(name: str, text: str, phases: Sequence[str]) -> None:
    phase, dot, metric = name.rpartition(".")
    if dot and phase not in phases:
        raise BadValueError("objective", f"{text!r}: there is no phase {phase!r}; there are {', '.join(phases)}")
    if metric not in OF_PHASES and (dot or metric not in OF_RUNS):
        raise BadValueError("objective", f"{text!r}: there is no metric {metric!r}; `shoal loadtest show` lists them")
