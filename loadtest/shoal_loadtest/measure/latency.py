"""Latencies as HDR histograms (hdrhistogram, Tene's own in Python): in microseconds, to a thousandth, up to an hour."""

from collections.abc import Mapping
from typing import Any, Final

from hdrh.histogram import HdrHistogram

from shoal_loadtest.objectives import QUANTILES

_LONGEST_US: Final = 3_600_000_000
_DIGITS: Final = 3
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
    """Histograms by name, made when there is something to put in."""

    def __init__(self) -> None:
        self._known: dict[str, HdrHistogram] = {}

    def add(self, name: str, us: float, count: int = 1) -> None:
        """Note that something took so long, so many times."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = _new()
        # What is beyond an hour counts as an hour: it must not be missing from the tail.
        known.record_value(min(max(int(us), 1), _LONGEST_US), count)

    def encoded(self) -> dict[str, str]:
        """Return all of it as the format's own compressed text."""
        return {name: known.encode().decode() for name, known in self._known.items()}

    def merge(self, encoded: Mapping[str, str]) -> None:
        """Add what another process noted."""
        for name, text in encoded.items():
            if name not in self._known:
                self._known[name] = _new()
            self._known[name].decode_and_add(text)

    def names(self) -> list[str]:
        """Return what there is."""
        return sorted(self._known)

    def quantile_ms(self, name: str, percentile: float) -> float | None:
        """Return what so many percent were not above, in ms; None where there is nothing."""
        known = self._known.get(name)
        return known.get_value_at_percentile(percentile) / 1000 if known is not None and known.total_count else None

    def summary(self, name: str) -> dict[str, Any]:
        """Return a histogram as numbers, in ms, with its curve and the histogram itself."""
        known = self._known[name]
        figures = {of: known.get_value_at_percentile(percent) / 1000 for of, percent in QUANTILES.items()}
        curve = [[percent, known.get_value_at_percentile(percent) / 1000] for percent in _CURVE]
        return {
            "count": known.total_count, "mean": known.get_mean_value() / 1000, "min": known.get_min_value() / 1000,
            **figures, "curve": curve, "histogram": known.encode().decode(),
        }  # fmt: skip

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()


def _new() -> HdrHistogram:
    return HdrHistogram(1, _LONGEST_US, _DIGITS)
