"""What came of the peers, side by side: rows, a table for people, a picture."""

import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from shoal_loadtest.floor.figures import short, written
from shoal_loadtest.peers.measuring import Found

COLUMNS: Final = (
    "peer", "units", "a second", "range", "of Shoal's", "one, p50", "one, p99", "memory", "processes", "durable",
    "isolated",
)  # fmt: skip
_FIGURES: Final = {"a_second": "units a second", "one_p50_ms": "one unit, p50", "memory_mib": "memory"}
_PICTURE_S: Final = 120.0


def ratios(found: Found, by_name: Mapping[str, Found]) -> dict[str, float]:
    """Return a peer's figures over those of the Shoal it is compared with: the median of the turns' own ratios."""
    other = by_name.get(found.against)
    if other is None:
        return {}
    made = {}
    for name in _FIGURES:
        ours, theirs = getattr(found, name), getattr(other, name)
        if ours and theirs:
            pairs = zip(ours, theirs, strict=False)
            made[name] = statistics.median(one / two for one, two in pairs)
    return made


def wins(found: Found, by_name: Mapping[str, Found]) -> str:
    """Return by what a peer beats the Shoal it is compared with, in words; empty where it does not."""
    made = ratios(found, by_name)
    better = []
    if made.get("a_second", 0.0) > 1:
        better.append(f"{written(made['a_second'])} times the units a second")
    less = [name for name in ("one_p50_ms", "memory_mib") if 0 < made.get(name, 1.0) < 1]
    better += [f"{written(made[name])} of the {_FIGURES[name]}" for name in less]
    return "wins: " + ", ".join(better) if better else ""


def as_object(found: Found, by_name: Mapping[str, Found]) -> dict[str, Any]:
    """Return a peer as `--json` has it: medians, all turns, ratios to Shoal."""
    made = ratios(found, by_name)
    row: dict[str, Any] = {
        "peer": found.name, "kind": found.kind, "units": found.n, "durable": found.durable, "isolated": found.isolated,
        "processes": found.processes, "against": found.against, "settings": found.settings, "note": found.note,
        "wins": wins(found, by_name),
    }  # fmt: skip
    for name in ("a_second", "one_p50_ms", "one_p99_ms", "memory_mib"):
        values = getattr(found, name)
        row[name] = short(statistics.median(values)) if values else None
        row[f"{name}_rounds"] = [short(value) for value in values]
    return row | {f"{name}_ratio": short(made[name]) if name in made else None for name in _FIGURES}


def cells(found: Found, by_name: Mapping[str, Found]) -> tuple[str, ...]:
    """Return a peer as a row of the table."""
    if not found.a_second:
        return (found.name, "", "not measured", *("",) * 8)
    ratio = ratios(found, by_name).get("a_second")
    return (
        found.name,
        f"{found.n:,}",
        written(statistics.median(found.a_second)),
        f"{written(min(found.a_second))} to {written(max(found.a_second))}",
        written(ratio),
        f"{written(statistics.median(found.one_p50_ms))} ms",
        f"{written(statistics.median(found.one_p99_ms))} ms",
        f"{written(statistics.median(found.memory_mib))} MiB",
        str(found.processes),
        found.durable,
        found.isolated,
    )


def words(found: Found, by_name: Mapping[str, Found]) -> str:
    """Return what is to be said of a peer beside its figures; empty for nothing."""
    return "; ".join(word for word in (found.note, wins(found, by_name)) if word)


def draw(python: str, rows: Sequence[Mapping[str, Any]], machine: str, target: Path) -> str:
    """Have a picture drawn by the interpreter of an environment with matplotlib; returns why not, or nothing."""
    script = Path(__file__).parent / "workers" / "picture.py"
    told = json.dumps({"rows": list(rows), "machine": machine, "target": str(target.absolute())})
    try:
        done = subprocess.run(
            [python, str(script)], input=told, capture_output=True, text=True, timeout=_PICTURE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the picture was not drawn within {_PICTURE_S:g} s"
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return f"the picture could not be drawn: {said[-1] if said else done.returncode}"
    return ""
