"""Draws the peers' figures side by side, with matplotlib: JSON on standard input, a file at the end."""

import json
import sys
from typing import Any

import matplotlib as mpl

_PANELS = (
    ("a_second", "units a second (more is better)"),
    ("one_p50_ms", "one unit on an idle system, ms (less is better)"),
    ("memory_mib", "memory of all processes, MiB (less is better)"),
)


def draw(rows: list[dict[str, Any]], machine: str, target: str) -> None:
    """One line of panels for each kind of unit; axes are logarithmic."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "peers"
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["a_second"]))
    sizes = [sum(row["kind"] == kind and bool(row["a_second"]) for row in rows) for kind in kinds]
    figure, axes = pyplot.subplots(
        len(kinds), len(_PANELS), figsize=(15, 1.5 + 0.45 * sum(sizes)), squeeze=False,
        gridspec_kw={"height_ratios": sizes},
    )  # fmt: skip
    for line, kind in zip(axes, kinds, strict=True):
        shown = [row for row in rows if row["kind"] == kind and row["a_second"]][::-1]
        for axis, (name, title) in zip(line, _PANELS, strict=True):
            colours = ["tab:blue" if row["peer"].startswith("Shoal") else "tab:gray" for row in shown]
            bars = axis.barh([row["peer"] for row in shown], [row[name] for row in shown], color=colours)
            axis.bar_label(bars, [_written(row[name]) for row in shown], padding=3, fontsize=8)
            axis.set_xscale("log")
            axis.set_title(f"{kind}: {title}", fontsize=9)
            axis.margins(x=0.25)
            axis.tick_params(labelsize=8)
            if name != _PANELS[0][0]:
                axis.set_yticklabels([])
    figure.text(0.01, 0.005, machine, fontsize=7)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(target, metadata={"Date": None} if target.endswith(".svg") else None, dpi=110)


def _written(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    draw(**json.load(sys.stdin))
