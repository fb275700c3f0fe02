"""The record of a load test, `report.json`: everything that was measured, and on what."""

from pathlib import Path
from typing import Any, Final

import msgspec

from shoal.wire.quantities import BadValueError

FORMAT: Final = 1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A part of it."""


class Latency(Record, frozen=True):
    """One latency in ms: quantiles, the curve of (percent, ms), and the HDR histogram (microseconds) as it encodes."""

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float
    curve: list[tuple[float, float]]
    histogram: str


class PhaseRecord(Record, frozen=True):
    """One phase. `begin_s` and `end_s` from the run's beginning; `metrics` as objectives name them."""

    name: str
    begin_s: float
    end_s: float
    rate: float  # sandboxes a second that were asked for; 0: as fast as possible, or none
    judged: bool
    stuck: int
    counts: dict[str, int]
    reasons: dict[str, int]
    metrics: dict[str, float]
    latencies: dict[str, Latency]
    cpu_s: dict[str, float]  # by role


class RunRecord(Record, frozen=True):
    """One go through the scenario. `series`: columns of equal length, one value a second."""

    phases: list[PhaseRecord]
    series: dict[str, list[float | None]]
    metrics: dict[str, float]
    audit: dict[str, int]
    cpu_s: dict[str, float]  # by process
    messages: dict[str, int]  # by kind of stream
    stored_bytes: dict[str, int]
    killed: dict[str, int]
    faults: list[tuple[float, str]]
    refusals: dict[str, int]
    troubles: list[str]
    interrupted: bool = False


class VerdictRecord(Record, frozen=True):
    """An objective and what became of it in each run, and in the median of the runs, which counts."""

    objective: str
    met: bool
    found: float | None
    bound: float | None


class Report(Record, frozen=True):
    """All of it."""

    format: int
    scenario: str
    document: dict[str, Any]
    text: str
    scale: float
    seed: int
    began: str
    own: bool  # whether the cluster was brought up for it
    machine: dict[str, str]
    versions: dict[str, str]
    gpus: int
    price_per_gpu_hour: float
    runs: list[RunRecord]
    objectives: list[VerdictRecord]

    @property
    def right(self) -> bool:
        """Whether every sandbox concluded, once, wherever a run came to its end."""
        wrong = ("lost", "doubled", "disagreed")
        return not any(run.metrics.get(name) for run in self.runs for name in wrong)

    @property
    def met(self) -> bool:
        """Whether all objectives are met."""
        return all(verdict.met for verdict in self.objectives)

    @property
    def interrupted(self) -> bool:
        """Whether somebody ended it before its time."""
        return any(run.interrupted for run in self.runs)


def write(report: Report, path: Path) -> None:
    """Store a report. Raises OSError."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))


def read(path: Path) -> Report:
    """Return a stored report; of a directory, the one in it. Raises BadValueError."""
    path = path / "report.json" if path.is_dir() else path
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise BadValueError(
            "report", f"cannot read {path}: {error.strerror}; name a report.json, or its directory"
        ) from error
    except msgspec.DecodeError as error:
        raise BadValueError("report", f"{path} is no report of a load test: {error}") from error
    if report.format != FORMAT:
        raise BadValueError("report", f"{path} has format {report.format}, and this version reads {FORMAT}")
    return report
