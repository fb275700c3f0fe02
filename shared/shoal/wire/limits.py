"""What a tenant's limits may be: the same where they are given and where they are kept to."""

from typing import Final

from shoal.wire.values import Limits

_LEAST_WEIGHT: Final = 0.001
_MOST_WEIGHT: Final = 1000
_MOST: Final = 2**60 - 1
_FASTEST: Final = 10**9
"""Starts a second; a scheduler counts thousandths of them."""


def limits_problem(limits: Limits) -> tuple[str, str] | None:
    """Return the field that cannot be used, and what would be right; None where all can."""
    if not (_number(limits.weight) and _LEAST_WEIGHT <= limits.weight <= _MOST_WEIGHT):  # false for NaN, too
        return "weight", f"{limits.weight!r} cannot be used; give a number from {_LEAST_WEIGHT} to {_MOST_WEIGHT}"
    rate = limits.starts_per_s
    if not (_number(rate) and 0 <= rate <= _FASTEST):
        return "starts_per_s", f"{rate!r} cannot be used; give 0 for no limit, or a number up to {_FASTEST}"
    for field in ("sandboxes", "memory", "cpu_milli", "waiting"):
        value = getattr(limits, field)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
            return field, f"{value!r} cannot be used; give 0 for no limit, or a whole number below 2**60"
    return None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
