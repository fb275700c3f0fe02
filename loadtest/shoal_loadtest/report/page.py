"""The page of a report: one file, nothing fetched, readable in light and dark."""

import html
import statistics
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final

from shoal_loadtest.objectives import LATENCIES, OF_PHASES
from shoal_loadtest.report.plots import Picture, pictures
from shoal_loadtest.report.record import PhaseRecord, Report, RunRecord

_TILES: Final = (
    ("throughput", "sandboxes a second", "{:,.0f}"),
    ("ready_p50_ms", "ready p50, ms", "{:,.1f}"),
    ("ready_p99_ms", "ready p99, ms", "{:,.1f}"),
    ("commands_per_s", "commands a second", "{:,.0f}"),
    ("command_p50_ms", "command p50, ms", "{:,.2f}"),
    ("live_max", "live at most", "{:,.0f}"),
    ("cpu_us_per_sandbox", "µs of cpu a sandbox", "{:,.0f}"),
    ("gpu_seconds", "GPU-seconds waited", "{:,.0f}"),
)
_QUANTILES: Final = ("p50", "p90", "p99", "p999", "max")


def write(report: Report, path: Path) -> None:
    """Store a report's page. Raises OSError."""
    path.write_text(page(report), encoding="utf-8")


def page(report: Report) -> str:
    """Return the page."""
    shown = typical(report.runs)
    drawn = pictures(shown, report.gpus, report.price_per_gpu_hour) if shown.phases else []
    verdict, colour = _verdict(report)
    several = f", the pictures are of the one in the middle of {len(report.runs)} runs" if len(report.runs) > 1 else ""
    template = Template(resources.files("shoal_loadtest.report").joinpath("page.html").read_text())
    return template.substitute(
        title=_text(f"Load test {report.scenario}"),
        verdict=_text(verdict),
        colour=colour,
        subtitle=_text(f"{report.began}, scale {report.scale:g}, seed {report.seed}{several}"),
        tiles="".join(_tiles(report)),
        objectives=_objectives(report),
        right=_right(report),
        pictures="".join(map(_picture, drawn)),
        phases=_phases(shown),
        latencies=_latencies(shown),
        cpu=_cpu(shown),
        streams=_streams(shown),
        machine=_table(("", ""), [*report.machine.items(), *report.versions.items()]),
        text=_text(report.text),
        troubles=_list(shown.troubles),
        words=_table(("metric", "unit and meaning"), [(name, OF_PHASES[name]) for name in _explained(shown)]),
    )


def typical(runs: Sequence[RunRecord]) -> RunRecord:
    """Return the run in the middle, by throughput, or by ready p99 where there is none."""

    def key(run: RunRecord) -> float:
        return run.metrics.get("throughput", run.metrics.get("commands_per_s", 0.0))

    return sorted(runs, key=key)[(len(runs) - 1) // 2]


def medians(runs: Sequence[RunRecord]) -> dict[str, float]:
    """Return each metric's median over the runs that have it."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return {name: statistics.median([run.metrics[name] for run in runs if name in run.metrics]) for name in names}


def _verdict(report: Report) -> tuple[str, str]:
    if not report.right:
        return "sandboxes were lost or counted twice", "bad"
    if report.interrupted:
        return "interrupted", "warn"
    missed = sum(not each.met for each in report.objectives)
    if missed:
        return f"{missed} of {len(report.objectives)} objectives missed", "bad"
    return ("all objectives met", "good") if report.objectives else ("no objectives were stated", "soft")


def _tiles(report: Report) -> Iterable[str]:
    found = medians(report.runs)
    for name, title, form in _TILES:
        if name not in found:
            continue
        values = [run.metrics[name] for run in report.runs if name in run.metrics]
        spread = f"<small>{form.format(min(values))} to {form.format(max(values))}</small>" if len(values) > 1 else ""
        yield f'<div class="tile"><b>{form.format(found[name])}</b><span>{_text(title)}</span>{spread}</div>'


def _objectives(report: Report) -> str:
    rows = [
        (each.objective, "met" if each.met else "missed", _number(each.found), _number(each.bound))
        for each in report.objectives
    ]
    return _table(("objective", "", "found", "bound"), rows) if rows else "<p>None were stated.</p>"


def _right(report: Report) -> str:
    rows = []
    for number, run in enumerate(report.runs, 1):
        audit = run.audit
        counts = [audit.get(name, 0) for name in ("asked", "concluded", "lost", "doubled", "disagreed", "late")]
        rows.append((number, *(f"{count:,}" for count in counts), sum(run.killed.values())))
    columns = ("run", "asked", "concluded", "lost", "doubled", "disagreed", "late reports", "processes killed")
    return _table(columns, rows)


def _phases(run: RunRecord) -> str:
    rows = []
    for phase in run.phases:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(phase.reasons.items()))
        figures = [_number(phase.metrics.get(name)) for name in ("throughput", "sustained", "commands_per_s")]
        asked = f"{phase.rate:,.0f}" if phase.rate else "-"
        seconds = f"{phase.metrics['seconds']:.1f}"
        rows.append((phase.name, seconds, f"{phase.counts.get('asked', 0):,}", asked, *figures, reasons))
    columns = ("phase", "s", "asked", "rate", "throughput", "sustained", "commands/s", "ended")
    return _table(columns, rows)


def _latencies(run: RunRecord) -> str:
    rows = []
    for phase in run.phases:
        for name in LATENCIES:
            for key, clock in ((name, "client"), (f"{name}_broker", "broker")):
                found = phase.latencies.get(key)
                if found is not None:
                    figures = [_number(getattr(found, of)) for of in _QUANTILES]
                    rows.append((phase.name, name.replace("_", " "), clock, f"{found.count:,}", *figures))
    return _table(("phase", "latency, ms", "clock", "count", *_QUANTILES), rows)


def _cpu(run: RunRecord) -> str:
    roles = dict.fromkeys(role for phase in run.phases for role in phase.cpu_s)
    rows = []
    for phase in run.phases:
        done, of = _done(phase)
        each = [f"{phase.cpu_s.get(role, 0.0) / done * 1e6:,.1f}" if done else "-" for role in roles]
        rows.append((phase.name, of, *each))
    return _table(("phase", "µs of cpu for each", *roles), rows)


def _done(phase: PhaseRecord) -> tuple[int, str]:
    done = max(phase.counts.get("through", 0), phase.counts.get("ready", 0))
    return (done, "sandbox") if done else (phase.counts.get("commands", 0), "command")


def _streams(run: RunRecord) -> str:
    asked = max(run.audit.get("asked", 0), sum(phase.counts.get("asked", 0) for phase in run.phases), 1)
    rows = [
        (kind, f"{count:,}", f"{run.stored_bytes.get(kind, 0):,}", f"{count / asked:.4f}",
         f"{run.stored_bytes.get(kind, 0) / asked:.1f}")
        for kind, count in run.messages.items()
    ]  # fmt: skip
    return _table(("stream", "messages", "bytes", "messages a sandbox", "bytes a sandbox"), rows)


def _explained(run: RunRecord) -> list[str]:
    return [name for name in OF_PHASES if name in run.metrics and not name.endswith(("p95_ms", "p90_ms", "mean_ms"))]


def _picture(picture: Picture) -> str:
    note = f"<p>{_text(picture.note)}</p>" if picture.note else ""
    return f"<figure><figcaption>{_text(picture.title)}</figcaption>{picture.svg}{note}</figure>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f'<td class="{_kind(cell)}">{_text(str(cell))}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _kind(cell: object) -> str:
    text = str(cell)
    if text in ("met", "missed"):
        return "good" if text == "met" else "bad"
    return "number" if text[:1].isdigit() or text == "-" else ""


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>" if lines else "<p>None.</p>"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.3g}"


def _text(text: str) -> str:
    return html.escape(text)
