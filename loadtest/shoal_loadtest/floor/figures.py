"""Figures: repeated measurements of one thing, their median and range, and how they compare to another's."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of all do not exceed. Raises ValueError for no values."""
    if not values or not 0 < share <= 1:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    return sorted(values)[math.ceil(share * len(values)) - 1]


class Row(msgspec.Struct, frozen=True):
    """What one side did in one case, round by round; where it could not be measured, `note` says why.

    `part`, `case` and `figure` say what was measured, `side` whose it is. `against` names the side it is compared with.
    """

    part: str
    case: str
    side: str
    figure: str
    unit: str
    values: tuple[float, ...] = ()
    against: str = ""
    ratio: float | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        """The median of the rounds; None where nothing was measured."""
        return statistics.median(self.values) if self.values else None


def compared(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with their ratios to the rows they are compared with: the median of the rounds' own ratios.

    Sides take turns, so what disturbs one round disturbs both. Where they had different rounds it is of their medians.
    """
    known = {(row.part, row.case, row.figure, row.side): row for row in rows}
    return [msgspec.structs.replace(row, ratio=_ratio(row, known)) if row.against else row for row in rows]


def _ratio(row: Row, known: dict[tuple[str, str, str, str], Row]) -> float | None:
    other = known.get((row.part, row.case, row.figure, row.against))
    if other is None or not row.values or not other.values or not all(other.values):
        return None
    if len(row.values) == len(other.values):
        return statistics.median(ours / theirs for ours, theirs in zip(row.values, other.values, strict=True))
    return statistics.median(row.values) / statistics.median(other.values)


def as_object(row: Row) -> dict[str, Any]:
    """Return a row as `--json` has it."""
    found: dict[str, Any] = msgspec.to_builtins(row)
    numbers = {"median": row.median, "lowest": min(row.values, default=None), "highest": max(row.values, default=None)}
    return {**found, "values": [short(value) for value in row.values]} | {
        name: None if value is None else short(value) for name, value in (*numbers.items(), ("ratio", row.ratio))
    }


def short(value: float) -> float:
    """Return four significant digits of it."""
    return float(f"{value:.4g}")


def written(value: float | None) -> str:
    """Return a number as people read it: three significant digits, thousands apart."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{round(value, 2 - int(math.log10(abs(value)))):,.0f}"
    return f"{float(f'{value:.3g}'):g}"


def ranged(row: Row) -> str:
    """Return the lowest and the highest of a row, as people read it."""
    return f"{written(min(row.values))} to {written(max(row.values))}" if row.values else ""
