"""A number that is drawn anew each time: fixed, one of several, or from a distribution; the same for the same seed."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from shoal.wire.quantities import BadValueError, parse_seconds

_SAMPLE: Final = 20_000
FORMS: Final = (
    "a number, a duration such as '30s', a list to choose from, or a table with distribution = 'uniform' (least, "
    "most), 'exponential' (mean) or 'lognormal' (median, spread), each with least and most as bounds"
)


class _Bounded(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="distribution"):
    least: float | str = 0.0
    most: float | str = math.inf


class Uniform(_Bounded, frozen=True, kw_only=True, tag="uniform"):
    """Any number between `least` and `most`."""


class Exponential(_Bounded, frozen=True, kw_only=True, tag="exponential"):
    """As the times between events that do not know of each other."""

    mean: float | str


class Lognormal(_Bounded, frozen=True, kw_only=True, tag="lognormal"):
    """Long in the tail, as work is: `spread` is the standard deviation of the logarithm."""

    median: float | str
    spread: float = 0.5


class Draw:
    """See the module. Made from what a scenario says; `said` is that. Raises ValueError for what is no such thing."""

    __slots__ = ("_one", "mean", "said")

    def __init__(self, said: Any) -> None:
        self.said = said
        self._one = _drawing(said)
        self.mean = self._mean()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Draw) and other.said == self.said

    def __hash__(self) -> int:
        return hash(repr(self.said))

    def __repr__(self) -> str:
        return f"Draw({self.said!r})"

    def one(self, rng: random.Random) -> float:
        """Return one of them."""
        return self._one(rng)

    def count(self, rng: random.Random) -> int:
        """Return one of them as a whole number of at least 1."""
        return max(round(self._one(rng)), 1)

    def _mean(self) -> float:
        """Return what they are on average; of distributions that are cut off, by a sample that is always the same."""
        if isinstance(self.said, int | float | str):
            return self._one(random.Random(0))
        if isinstance(self.said, list):
            return sum(map(_number, self.said)) / len(self.said)
        rng = random.Random(0)
        return sum(self._one(rng) for _ in range(_SAMPLE)) / _SAMPLE


def _number(said: Any) -> float:
    if isinstance(said, bool) or not isinstance(said, int | float | str):
        raise ValueError(f"{said!r} is not {FORMS}")
    try:
        found = float(said) if not isinstance(said, str) else parse_seconds(said)
    except BadValueError as error:
        raise ValueError(error.problem) from error
    if found < 0 or found != found:
        raise ValueError(f"{said!r} is less than nothing")
    return found


def _drawing(said: Any) -> Callable[[random.Random], float]:
    if isinstance(said, list):
        if not said:
            raise ValueError("the list to choose from is empty")
        choices: Sequence[float] = [_number(each) for each in said]
        return lambda rng: rng.choice(choices)
    if not isinstance(said, dict):
        fixed = _number(said)
        return lambda rng: fixed
    try:
        how = msgspec.convert(said, type=Uniform | Exponential | Lognormal)
    except msgspec.ValidationError as error:
        raise ValueError(f"{str(error).partition(' - at ')[0]}; write {FORMS}") from error
    least, most = _number(how.least), _number(how.most)
    if least > most:
        raise ValueError(f"least = {least:g} is more than most = {most:g}")
    if isinstance(how, Uniform):
        if most == math.inf:
            raise ValueError("a uniform distribution needs most")
        return lambda rng: rng.uniform(least, most)
    if isinstance(how, Exponential):
        mean = _number(how.mean)
        if not mean:
            raise ValueError("mean is 0; give a number above that")
        return lambda rng: min(max(rng.expovariate(1 / mean), least), most)
    median, spread = _number(how.median), how.spread
    if not median or spread < 0:
        raise ValueError("median is above 0, and spread at least 0")
    return lambda rng: min(max(median * math.exp(spread * rng.gauss(0, 1)), least), most)
