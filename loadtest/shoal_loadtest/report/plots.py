"""The pictures of a report, as SVG to stand inside a page: colours are the page's, so that they fit light and dark."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from shoal_loadtest.measure.roles import ROLES
from shoal_loadtest.report.record import PhaseRecord, RunRecord

_MOST_POINTS: Final = 600
_INK: Final = "#010203"
_FAINT: Final = "#040506"
_SERIES: Final = tuple(f"#{number:02x}ab{number:02x}" for number in range(1, 9))
"""Stand-ins, each of which becomes a variable of the page: the pictures are drawn before anybody chose a scheme."""
_WIDTH: Final = 6.2
_HEIGHT: Final = 2.8
Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a picture."""

    name: str
    x: Sequence[float]
    y: Values


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, with its title, and what it says in words for those who do not see it."""

    title: str
    svg: str
    note: str = ""


@dataclass(slots=True)
class _Marks:
    """What all pictures over time share: where phases begin, and where something was killed."""

    phases: list[tuple[float, str]] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)


def pictures(run: RunRecord, gpus: int, price: float) -> list[Picture]:
    """Return a run's pictures."""
    series = run.series
    t = [float(value or 0) for value in series.get("t", [])]
    marks = _Marks([(phase.begin_s, phase.name) for phase in run.phases], [at for at, _ in run.faults])
    found = []
    curves = [_curve(phase) for phase in run.phases if "ready" in phase.latencies]
    if curves:
        found.append(
            Picture("Submit to ready, by load", _percentiles(curves), "From the moment a rollout should be asked for.")
        )
    answers = [
        Line(phase.name, *_axes(phase.latencies["command"].curve))
        for phase in run.phases
        if "command" in phase.latencies
    ]
    if answers:
        found.append(Picture("Round trip of a command, by load", _percentiles(answers)))
    if len(t) < 2:
        return found
    rates = [
        Line(title, t[1:], _rates(t, series[name]))
        for name, title in (("ready", "ready"), ("through", "through"), ("commands", "commands"))
        if any(series.get(name, []))
    ]
    found.append(Picture("Throughput", _over_time(rates, "a second", marks)))
    latencies = [
        Line(title, t, series[name])
        for name, title in (
            ("ready_p50_ms", "ready p50"), ("ready_p99_ms", "ready p99"), ("command_p99_ms", "command p99"),
        )
        if any(series.get(name, []))
    ]  # fmt: skip
    if latencies:
        found.append(Picture("Latency", _over_time(latencies, "ms", marks, log=True)))
    counts = [
        Line(title, t, series[name])
        for name, title in (("live", "live"), ("in_flight", "asked for, not ready"), ("waiting", "waiting for room"))
        if any(series.get(name, []))
    ]
    found.append(Picture("Sandboxes", _over_time(counts, "sandboxes", marks)))
    for prefix, title, unit, scale in (("cpu", "Cpu", "cores", 1.0), ("memory", "Memory", "MiB", 1 / 1024**2)):
        layers = [
            Line(role, t, [(value or 0) * scale for value in series[f"{prefix}_{role}"]])
            for role in ROLES
            if any(series.get(f"{prefix}_{role}", []))
        ]
        if layers:
            found.append(Picture(title, _over_time(layers, unit, marks, stacked=True)))
    behind = [
        Line(name, t, series[f"backlog_{name}"])
        for name in ("scheduler", "placement")
        if any(series.get(f"backlog_{name}", []))
    ]
    if behind:
        found.append(Picture("Messages a service has not taken yet", _over_time(behind, "messages", marks)))
    waited = [Line("GPU-seconds", t, series.get("gpu_seconds", []))]
    total = max((value or 0 for value in series.get("gpu_seconds", [])), default=0.0)
    note = f"{gpus} GPUs of each tenant wait; at {price:g} US dollars for a GPU-hour, for {total / 3600 * price:,.3g}."
    found.append(Picture("GPU-seconds spent waiting for sandboxes", _over_time(waited, "GPU-seconds", marks), note))
    return found


def _curve(phase: PhaseRecord) -> Line:
    rate = phase.rate or phase.metrics.get("throughput", 0.0)
    return Line(f"{phase.name}, {rate:,.0f} a second", *_axes(phase.latencies["ready"].curve))


def _axes(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return a curve's percentiles as nines (99 is 2), so that the tail is seen, and its latencies."""
    shown = [(percent, ms) for percent, ms in curve if percent < 100]
    return [-math.log10(1 - percent / 100) for percent, _ in shown], [ms for _, ms in shown]


def _rates(t: Sequence[float], sums: Values) -> list[float]:
    pairs = zip(t, t[1:], sums, sums[1:], strict=False)
    return [max(((after or 0) - (before or 0)) / max(to - at, 1e-3), 0.0) for at, to, before, after in pairs]


def _figure() -> tuple[Any, Any]:
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    mpl.rcParams.update(
        {
            "svg.fonttype": "none", "font.size": 10, "axes.edgecolor": _FAINT, "axes.labelcolor": _INK,
            "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK, "grid.color": _FAINT,
            "axes.prop_cycle": cycler(color=list(_SERIES)), "lines.linewidth": 1.4,
        }
    )  # fmt: skip
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(visible=True, linewidth=0.4, alpha=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _percentiles(lines: Sequence[Line]) -> str:
    figure, axes = _figure()
    for line in lines:
        axes.plot(line.x, line.y, label=line.name)
    _logarithmic(axes)
    axes.set_xticks([0, 0.30103, 1, 2, 3, 4], ["0", "50", "90", "99", "99.9", "99.99"])
    axes.set_xlabel("percent of sandboxes")
    axes.set_ylabel("ms")
    return _svg(figure, axes, lines)


def _over_time(lines: Sequence[Line], unit: str, marks: _Marks, *, stacked: bool = False, log: bool = False) -> str:
    figure, axes = _figure()
    thin = [_thinned(line) for line in lines]
    if stacked and thin:
        axes.stackplot(
            thin[0].x, [[value or 0 for value in line.y] for line in thin], labels=[line.name for line in thin],
            colors=_SERIES[: len(thin)], alpha=0.85,
        )  # fmt: skip
    else:
        for line in thin:
            axes.plot(line.x, [float("nan") if value is None else value for value in line.y], label=line.name)
    if log:
        _logarithmic(axes)
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    for at in marks.faults:
        axes.axvline(at, color=_SERIES[6], linewidth=0.5, alpha=0.7)
    if len(marks.phases) > 1:
        for at, name in marks.phases:
            axes.axvline(at, color=_FAINT, linewidth=0.8, linestyle=":")
            axes.annotate(name, (at, 1.0), xycoords=("data", "axes fraction"), fontsize=8, rotation=30, va="bottom")
    axes.set_xlabel("seconds")
    axes.set_ylabel(unit)
    return _svg(figure, axes, lines)


def _logarithmic(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _thinned(line: Line) -> Line:
    step = -(-len(line.x) // _MOST_POINTS)
    return line if step <= 1 else Line(line.name, line.x[::step], line.y[::step])


def _svg(figure: Any, axes: Any, lines: Sequence[Line]) -> str:
    if len(lines) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "|".join(line.name for line in lines) + str(axes.get_ylabel())}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ', lambda m: f"<svg {m[1] or ''}", svg, count=1)
    for stand_in, variable in ((_INK, "ink"), (_FAINT, "faint"), *((each, f"s{n}") for n, each in enumerate(_SERIES))):
        svg = svg.replace(stand_in, f"var(--{variable})")
    return re.sub(r"font: (\d+)px [^;\"]*", r"font: \1px system-ui, sans-serif", svg)
