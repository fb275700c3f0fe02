"""Latencies as HDR histograms (hdrhistogram, Tene's own in Python): in microseconds, to a thousandth, up to an hour."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hdrh.histogram import HdrHistogram

from shoal_loadtest.objectives import QUANTILES

_LONGEST_US: Final = 3_600_000_000
_DIGITS: Final = 3
PASSING: Final = 2
"""Digits of what is only shown for a second, and emptied: that takes time for every bucket."""
_CURVE: Final = (
    0,
    10,
    20,
    30,
    40,
    50,
    60,
    70,
    75,
    80,
    85,
    90,
    92,
    94,
    95,
    96,
    97,
    98,
    99,
    99.5,
    99.9,
    99.95,
    99.99,
    100,
)


class Latencies:
    """Histograms by name, made when there is something to put in; `digits` tells how exact they are."""

    def __init__(self, digits: int = _DIGITS) -> None:
        self._digits = digits
        self._known: dict[str, HdrHistogram] = {}

    def add(self, name: str, us: float, count: int = 1) -> None:
        """Note that something took so long, so many times."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = _new(self._digits)
        # What is beyond an hour counts as an hour: it must not be missing from the tail.
        known.record_value(min(max(int(us), 1), _LONGEST_US), count)

    def encoded(self) -> dict[str, str]:
        """Return all of it as the format's own compressed text."""
        return {name: known.encode().decode() for name, known in self._known.items() if known.total_count}

    def merge(self, encoded: Mapping[str, str]) -> None:
        """Add what another process noted."""
        for name, text in encoded.items():
            if name not in self._known:
                self._known[name] = _new(self._digits)
            self._known[name].decode_and_add(text)

    def names(self) -> list[str]:
        """Return what there is."""
        return sorted(name for name, known in self._known.items() if known.total_count)

    def quantile_ms(self, name: str, percentile: float) -> float | None:
        """Return what so many percent were not above, in ms; None where there is nothing."""
        return self.quantiles_ms(name, (percentile,)).get(percentile)

    def quantiles_ms(self, name: str, percentiles: Sequence[float]) -> dict[float, float]:
        """Return what so many percent each were not above, in ms; nothing where there is nothing."""
        known = self._known.get(name)
        if known is None or not known.total_count:
            return {}
        return _quantiles(known, _recorded(known), percentiles)

    def summary(self, name: str) -> dict[str, Any]:
        """Return a histogram as numbers, in ms, with its curve and the histogram itself."""
        known = self._known[name]
        recorded = _recorded(known)
        at = _quantiles(known, recorded, [*_CURVE, *QUANTILES.values()])
        mean = (
            sum((value + known.get_highest_equivalent_value(value)) / 2 * count for value, count in recorded)
            / known.total_count
        )
        figures = {of: at[percent] for of, percent in QUANTILES.items()}
        curve = [[percent, at[percent]] for percent in _CURVE]
        return {
            "count": known.total_count, "mean": mean / 1000, "min": known.get_min_value() / 1000,
            **figures, "curve": curve, "histogram": known.encode().decode(),
        }  # fmt: skip

    def clear(self) -> None:
        """Forget everything. The histograms stay: each refers to itself, so one let go of is long in memory."""
        for known in self._known.values():
            if known.total_count:
                known.reset()


def _recorded(known: HdrHistogram) -> list[tuple[int, int]]:
    """Return the values that were recorded, and how often, in order; the library's iterators take 30 ms for that."""
    return [(known.get_value_from_index(index), count) for index, count in enumerate(known.counts) if count]


def _quantiles(
    known: HdrHistogram, recorded: Sequence[tuple[int, int]], percentiles: Sequence[float]
) -> dict[float, float]:
    """Return as the library would, in ms, what so many percent each were not above."""
    found: dict[float, float] = {}
    pairs, passed, value = iter(recorded), 0, 0
    for percent in sorted(set(percentiles)):
        target = known.get_target_count_at_percentile(percent)
        while passed < target:
            value, count = next(pairs)
            passed += count
        high = known.get_highest_equivalent_value(value) if percent else known.get_lowest_equivalent_value(value)
        found[percent] = high / 1000
    return found


def _new(digits: int) -> HdrHistogram:
    return HdrHistogram(1, _LONGEST_US, digits)
