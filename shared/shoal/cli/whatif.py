"""What `shoal replay whatif` found: a table, and pictures."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shoal.cli.exits import Exit, Failure
from shoal.cli.output import say, table

if TYPE_CHECKING:
    from shoal.replay.course import Course
    from shoal.replay.demand import Demand

Courses = "Mapping[str, tuple[Demand, Course]]"

_ROWS: Final = (
    ("groups", "rollouts", "{:,.0f}"), ("sandboxes", "sandboxes", "{:,.0f}"),
    ("rejected", "rollouts rejected", "{:,.0f}"), ("rejected_sandboxes", "sandboxes of these", "{:,.0f}"),
    ("nodes", "nodes", "{:,.0f}"),
    ("first_p50_s", "first sandbox of a group ready, p50", "{:.3f} s"),
    ("full_p50_s", "group ready, p50", "{:.3f} s"), ("full_p99_s", "group ready, p99", "{:.3f} s"),
    ("makespan_s", "until the last is done", "{:,.1f} s"), ("utilisation", "slots in use", "{:.1%}"),
    ("share_error", "unfairness (1 - Jain)", "{:.3f}"), ("waited_gpu_s", "GPU time waited", "{:,.0f} s"),
    ("gpu_cost", "that costs", "${:,.2f}"), ("node_cost", "nodes cost", "${:,.2f}"),
)  # fmt: skip
_REASONS: Final = 3
"""How many are shown of why rollouts were rejected."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Dollars an hour."""

    gpu: float
    node: float


def report(
    courses: "Mapping[str, tuple[Demand, Course]]", changes: tuple[str, ...], prices: Prices
) -> dict[str, Any]:  # fmt: skip
    """Return what came of each, and how they differ."""
    from shoal.replay.course import measure

    found: dict[str, Any] = {}
    for name, (demand, course) in courses.items():
        measures = measure(course)
        nodes = sum(len(machine.nodes) for machine in demand.machines)
        found[name] = {
            **measures.as_dict(), "nodes": nodes, "gpu_cost": measures.cost(prices.gpu),
            "node_cost": measures.makespan_s / 3600 * nodes * prices.node,
        }  # fmt: skip
    difference = {}
    if "changed" in found:
        before, after = found["simulated"], found["changed"]
        difference = {key: after[key] - before[key] for key in after}
    for name, (_, course) in courses.items():
        found[name]["rejections"] = dict(Counter(each.why for each in course.rejected.values()).most_common())
    return {
        "changes": list(changes),
        "prices": {"gpu": prices.gpu, "node": prices.node},
        **found,
        "difference": difference,
    }


def show(found: dict[str, Any]) -> None:
    """Print it as a table."""
    names = [name for name in ("recorded", "simulated", "changed") if name in found]
    if found["changes"]:
        say(f"changed: {', '.join(found['changes'])}")
    rows = []
    for key, title, form in _ROWS:
        cells = [form.format(found[name][key]) for name in names]
        if "changed" in found:
            before, after = found["simulated"][key], found["changed"][key]
            cells.append(f"{(after / before - 1) * 100:+.0f} %" if before else "-")
        rows.append((title, *cells))
    columns = ("", *names, *(("changed to simulated",) if "changed" in found else ()))
    table(columns, rows, empty="")
    for name in names:
        _tell_rejections(name, found[name]["rejected"], found[name]["rejections"])


def _tell_rejections(name: str, groups: int, rejections: dict[str, int]) -> None:
    if not groups:
        return
    what = "1 rollout was" if groups == 1 else f"{groups:,} rollouts were"
    say(f"{name}: {what} rejected; the other rows are without them")
    shown = list(rejections.items())[:_REASONS]
    for why, count in shown:
        say(f"  {count:,}: {why}")
    if (others := groups - sum(count for _, count in shown)) > 0:
        say(f"  {others:,} for other reasons")


def draw(courses: "Mapping[str, tuple[Demand, Course]]", place: Path) -> list[Path]:
    """Draw when groups were ready, and how many sandboxes were live. Raises Failure without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise Failure(Exit.USAGE, "--out: pictures need matplotlib; pip install matplotlib") from None
    mpl.use("Agg")
    from matplotlib import pyplot

    place.mkdir(parents=True, exist_ok=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5))
    for name, (_, course) in courses.items():
        full = sorted(ms / 1000 for each in course.seen.values() if (ms := each.full_ms) is not None)
        left.plot(full, [(number + 1) / len(full) * 100 for number in range(len(full))], label=name)
        events = [(at / 1000, 1) for seen in course.seen.values() for at in seen.ready.values()]
        events += [(at / 1000, -1) for seen in course.seen.values() for i, at in seen.done.items() if i in seen.ready]
        live, times, counts = 0, [], []
        for at, change in sorted(events):
            live += change
            times.append(at)
            counts.append(live)
        right.plot(times, counts, label=name, linewidth=1)
    left.set(title="groups that were complete", xlabel="s after submission", ylabel="%")
    right.set(title="live sandboxes", xlabel="s")
    left.legend()
    figure.tight_layout()
    path = place / "whatif.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return [path]
