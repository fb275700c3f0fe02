"""From what generators and samples say of a phase to its metrics, as objectives name them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shoal_loadtest.load.words import PhaseEnded
from shoal_loadtest.measure.latency import Latencies
from shoal_loadtest.measure.roles import BROKER, SERVICES
from shoal_loadtest.objectives import AGGREGATES
from shoal_loadtest.report.record import Latency, PhaseRecord
from shoal_loadtest.scenario.model import Phase, Trainer

_MIB = 1024**2


@dataclass(slots=True)
class Sums:
    """One phase's sums over all generators."""

    counts: Counter[str]
    reasons: Counter[str]
    latencies: Latencies
    moments: Counter[int]
    first_ns: int
    last_ns: int
    first_command_ns: int
    last_command_ns: int
    stuck: int
    waited_s: float


def added(ends: Sequence[PhaseEnded]) -> Sums:
    """Add the generators' words up."""
    sums = Sums(Counter(), Counter(), Latencies(), Counter(), 0, 0, 0, 0, 0, 0.0)
    for end in ends:
        sums.counts.update(end.counts)
        sums.reasons.update(end.reasons)
        sums.moments.update(end.moments)
        sums.latencies.merge(end.latencies)
        sums.stuck += end.stuck
        sums.waited_s += end.gpu_seconds
    sums.first_ns = min((end.first_ns for end in ends if end.first_ns), default=0)
    sums.last_ns = max(end.last_ns for end in ends)
    sums.first_command_ns = min((end.first_command_ns for end in ends if end.first_command_ns), default=0)
    sums.last_command_ns = max(end.last_command_ns for end in ends)
    return sums


def sustained(moments: Mapping[int, int]) -> float | None:
    """Return sandboxes a second between the first tenth of them and the last; None where that is no time."""
    total, passed = sum(moments.values()), 0
    begin: tuple[int, int] | None = None
    for moment in sorted(moments):
        passed += moments[moment]
        if begin is None and passed * 10 >= total:
            begin = moment, passed
        if begin is not None and passed * 10 >= total * 9:
            tenths = moment - begin[0]
            return (passed - begin[1]) / tenths * 10 if tenths else None
    return None


def phase_record(
    phase: Phase,
    ends: Sequence[PhaseEnded],
    *,
    rate: float,
    begin_s: float,
    end_s: float,
    cpu_s: Mapping[str, float],
    rows: Sequence[Mapping[str, float | None]],
    trainer: Trainer,
    memory_before: int,
) -> PhaseRecord:
    """Return a phase as it is stored. `rows`: the samples taken in it; `memory_before`: services' when all began."""
    sums = added(ends)
    counts = sums.counts
    stays = bool(phase.rollout.until) and not phase.rollout.command
    done = counts["ready"] if stays else counts["through"]
    metrics: dict[str, float] = {"seconds": round(end_s - begin_s, 3)}
    if done:
        metrics["throughput"] = done / max((sums.last_ns - sums.first_ns) / 1e9, 1e-6)
        found = sustained(sums.moments)
        metrics["sustained"] = found if found is not None else metrics["throughput"]
    if counts["commands"]:
        took_s = max((sums.last_command_ns - sums.first_command_ns) / 1e9, 1e-6)
        metrics["commands_per_s"] = counts["commands"] / took_s
    used = sum(cpu_s.get(role, 0.0) for role in (*SERVICES, BROKER))
    if used and done:
        metrics["cpu_us_per_sandbox"] = used / done * 1e6
    elif used and counts["commands"]:
        metrics["cpu_us_per_command"] = used / counts["commands"] * 1e6
    kept = stays or phase.commands is not None or bool(phase.rollout.life.said)
    metrics |= _memory(rows, memory_before if kept else None)
    metrics["gpu_seconds"] = sums.waited_s * trainer.gpus
    metrics["gpu_cost"] = metrics["gpu_seconds"] / 3600 * trainer.price_per_gpu_hour
    metrics |= {name: counts[name] for name in ("failed", "rejected", "refused")}
    latencies = {name: sums.latencies.summary(name) for name in sums.latencies.names()}
    metrics |= latency_metrics(latencies)
    return PhaseRecord(
        name=phase.name, begin_s=round(begin_s, 3), end_s=round(end_s, 3), rate=rate, judged=phase.judged,
        stuck=sums.stuck, counts=dict(counts), reasons=dict(sums.reasons), metrics=metrics,
        latencies=msgspec.convert(latencies, type=dict[str, Latency]), cpu_s=dict(cpu_s),
    )  # fmt: skip


def latency_metrics(latencies: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return latencies as objectives name them: `ready_p99_ms`, and by the broker's clock `ready_p99_broker_ms`."""
    found: dict[str, float] = {}
    for name, summary in latencies.items():
        base, broker = (name.removesuffix("_broker"), "_broker") if name.endswith("_broker") else (name, "")
        found |= {f"{base}_{of}{broker}_ms": summary[of] for of in AGGREGATES}
    return found


def _memory(rows: Sequence[Mapping[str, float | None]], before: int | None) -> dict[str, float]:
    """Return what memory was used; for each live sandbox only where `before` is known: where they are kept."""
    services = [float(row.get("memory_services") or 0) for row in rows]
    brokers = [float(row.get("memory_broker") or 0) for row in rows]
    live = [float(row.get("live") or 0) for row in rows]
    most = max(live, default=0.0)
    found: dict[str, float] = {}
    if any(services):
        found |= {"services_mib": max(services) / _MIB, "broker_mib": max(brokers) / _MIB}
    if most:
        found["live_max"] = most
        full = [(size, count) for size, count in zip(services, live, strict=True) if count >= 0.9 * most and size]
        if full and before is not None:
            found["service_bytes_per_live"] = sum(size / count for size, count in full) / len(full)
            found["service_growth_per_live"] = sum((size - before) / count for size, count in full) / len(full)
    return found


def run_metrics(phases: Sequence[PhaseRecord], audit: Mapping[str, int], maximum: float) -> dict[str, float]:
    """Return a run's metrics: of each phase under its name, of all judged ones together, and of the whole."""
    found: dict[str, float] = {}
    judged = [phase for phase in phases if phase.judged] or list(phases)
    merged = Latencies()
    for phase in judged:
        merged.merge({name: latency.histogram for name, latency in phase.latencies.items()})
    found |= latency_metrics({name: merged.summary(name) for name in merged.names()})
    for name in ("gpu_seconds", "gpu_cost", "failed", "rejected", "refused", "seconds"):
        found[name] = sum(phase.metrics.get(name, 0.0) for phase in judged)
    for name in ("services_mib", "broker_mib", "live_max"):
        known = [phase.metrics[name] for phase in judged if name in phase.metrics]
        if known:
            found[name] = max(known)
    for name, counted in (("throughput", "through"), ("sustained", "through"), ("commands_per_s", "commands")):
        found |= _weighted(judged, name, counted)
    for name, counted in (("cpu_us_per_sandbox", "ready"), ("cpu_us_per_command", "commands")):
        weights = [(phase.metrics[name], phase.counts.get(counted, 1)) for phase in judged if name in phase.metrics]
        if weights:
            found[name] = sum(value * count for value, count in weights) / max(sum(count for _, count in weights), 1)
    fullest = max(judged, key=lambda phase: phase.metrics.get("live_max", 0.0), default=None)
    for name in ("service_bytes_per_live", "service_growth_per_live"):
        if fullest is not None and name in fullest.metrics:
            found[name] = fullest.metrics[name]
    for phase in phases:
        found |= {f"{phase.name}.{name}": value for name, value in phase.metrics.items()}
    found |= {name: float(audit.get(name, 0)) for name in ("lost", "doubled", "disagreed")}
    if maximum:
        found["maximum"] = maximum
    return found


def _weighted(phases: Sequence[PhaseRecord], name: str, counted: str) -> dict[str, float]:
    """Return a rate over several phases: all that was done over all the time it took."""
    known = [
        (phase.metrics[name], max(phase.counts.get(counted, 0), phase.counts.get("ready", 0), 1))
        for phase in phases
        if name in phase.metrics
    ]
    return {name: sum(n for _, n in known) / sum(n / rate for rate, n in known)} if known else {}
