"""Sizes and durations as people write them: `256MiB`, `10m`, `1.5h`. Numbers pass through unchanged."""

import re
from typing import Final

_UNITS_BYTES: Final = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3, "t": 1000**4, "tb": 1000**4,
    "ki": 1024, "kib": 1024, "mi": 1024**2, "mib": 1024**2, "gi": 1024**3, "gib": 1024**3,
    "ti": 1024**4, "tib": 1024**4,
}  # fmt: skip
_MOST_BYTES: Final = 2**60
_MOST_SECONDS: Final = 3650 * 86400.0
_UNITS_SECONDS: Final = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


class BadValueError(ValueError):
    """A value a person gave is not usable. `field` names it; the text says what would be right."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def parse_bytes(value: int | str, field: str = "size") -> int:
    """Return a size in bytes. Raises BadValueError for what is no size such as `256MiB`, is zero or absurd."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = _QUANTITY.fullmatch(str(value))
        unit = _UNITS_BYTES.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise BadValueError(field, f"{value!r} is not a size; write a number and a unit, such as 256MiB or 2GiB")
        amount = float(match[1]) * unit
        size = int(amount) if amount <= _MOST_BYTES else _MOST_BYTES + 1
    if not 0 < size <= _MOST_BYTES:
        raise BadValueError(field, f"{value!r} is not a size above zero and up to 2**60 bytes, such as 256MiB")
    return size


def parse_seconds(value: float | str, field: str = "duration") -> float:
    """Return a duration in seconds. Raises BadValueError for what is no duration such as `10m`, is zero or absurd."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    else:
        match = _QUANTITY.fullmatch(str(value))
        unit = _UNITS_SECONDS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise BadValueError(
                field, f"{value!r} is not a duration; write a number and a unit, such as 30s, 10m or 2h"
            )
        seconds = float(match[1]) * unit
    if not 0 < seconds <= _MOST_SECONDS:  # false for NaN, too
        raise BadValueError(field, f"{value!r} is not a duration above zero and up to ten years, such as 30s or 10m")
    return float(seconds)


def format_bytes(size: int) -> str:
    """Return a size as people read it, in binary units."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return (
                f"{amount:.0f} {unit}"
                if unit == "B" or amount >= 100 or amount == int(amount)
                else f"{amount:.1f} {unit}"
            )
        amount /= 1024
    return f"{amount:.1f} TiB"
