"""Arrivals of load tests: right in law, the same for the same seed, and never moved by anything that is late."""

import asyncio
import itertools
import random
import statistics
import time

import pytest

from shoal_loadtest.load.arrivals import Split, moments
from shoal_loadtest.load.pacing import Cutting, paced
from shoal_loadtest.scenario.model import Arrival, Bursts, Closed, Constant, Poisson, Ramp, Seconds

ONE = Split()


def first(process: Arrival, count: int, *, rate: float = 0.0, mean: float = 1.0, seconds: float = 0.0,
          split: Split = ONE, seed: int = 1) -> list[float]:  # fmt: skip
    return list(itertools.islice(moments(process, rate, mean, seconds, random.Random(seed), split), count))


def test_poisson_arrivals_have_its_mean_and_its_spread() -> None:
    times = first(Poisson(), 50_000, rate=500, mean=2)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times == sorted(times)
    assert statistics.fmean(gaps) == pytest.approx(2 / 500, rel=0.02)
    assert statistics.stdev(gaps) == pytest.approx(2 / 500, rel=0.03)  # of exponential gaps both are the same
    # Counts in equal spans have a variance of their mean.
    spans = [0] * int(times[-1])
    for at in times:
        if at < len(spans):
            spans[int(at)] += 1
    assert statistics.variance(spans) == pytest.approx(statistics.fmean(spans), rel=0.3)
    # No memory: who waited for long is not nearer to the next.
    long = [gap - 0.004 for gap in gaps if gap > 0.004]
    assert statistics.fmean(long) == pytest.approx(0.004, rel=0.05)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert first(Poisson(), 100, rate=10) == first(Poisson(), 100, rate=10)
    assert first(Poisson(), 100, rate=10) != first(Poisson(), 100, rate=10, seed=2)


def test_constant_arrivals_are_evenly_spaced() -> None:
    assert first(Constant(), 4, rate=100, mean=25) == pytest.approx([0, 0.25, 0.5, 0.75])


def test_bursts_come_at_once_and_again() -> None:
    assert first(Bursts(rollouts=3, every=Seconds(10)), 7) == [0, 0, 0, 10, 10, 10, 20]


@pytest.mark.parametrize(("begin", "end"), [(10, 100), (100, 10), (50, 50)])
def test_a_ramp_has_the_rate_it_should_have_at_each_moment(begin: float, end: float) -> None:
    seconds = 100.0
    times = first(Ramp(rate=begin, to=end), 10**6, seconds=seconds)
    assert len(times) == pytest.approx((begin + end) / 2 * seconds, abs=1)
    assert times == sorted(times)
    for at in (5.0, 50.0, 95.0):
        rate = sum(at - 2.5 <= t < at + 2.5 for t in times) / 5
        assert rate == pytest.approx(begin + (end - begin) * at / seconds, abs=1)


@pytest.mark.parametrize(
    "process",
    [Constant(), Bursts(rollouts=5, every=Seconds(1)), Ramp(rate=20, to=60)],
    ids=lambda process: type(process).__name__,
)
def test_several_generators_make_the_same_process_together(process: Arrival) -> None:
    whole = first(process, 120, rate=50, seconds=10)
    parts = [first(process, 120, rate=50, seconds=10, split=Split(part, 3)) for part in range(3)]
    assert sorted(itertools.chain(*parts))[:120] == pytest.approx(whole)


def test_several_generators_share_what_is_to_be_done() -> None:
    for count in (0, 1, 7, 1000):
        assert sum(Split(part, 3).share(count) for part in range(3)) == count
    rates = [len([t for t in first(Poisson(), 5_000, rate=90, split=Split(part, 3), seed=part) if t < 30])
             for part in range(3)]  # fmt: skip
    assert sum(rates) == pytest.approx(90 * 30, rel=0.1)


def test_what_is_closed_has_no_moments() -> None:
    with pytest.raises(ValueError, match="no moments"):
        moments(Closed(), 1, 1, 1, random.Random(0), Split())


async def test_moments_do_not_move_when_somebody_is_slow() -> None:
    offsets = [0.0, 0.01, 0.02, 0.03, 0.2]
    begin = time.monotonic_ns()
    seen: list[tuple[int, int]] = []
    async for intended in paced(offsets, begin, None, Cutting()):
        seen.append((intended, time.monotonic_ns()))
        if len(seen) == 1:
            await asyncio.sleep(0.1)  # the system, or the generator itself, stands still
    assert [intended - begin for intended, _ in seen] == [int(offset * 1e9) for offset in offsets]
    assert all(at >= intended for intended, at in seen)
    # The three that fell into the pause were asked for late, and their latency counts from when they should have been.
    assert all(at - intended >= 60_000_000 for intended, at in seen[1:4])


async def test_an_end_that_is_wanted_comes_at_once_and_a_phases_time_is_kept() -> None:
    cutting = Cutting()
    begin = time.monotonic_ns()
    asyncio.get_running_loop().call_later(0.05, cutting.now)
    assert [each async for each in paced([0.0, 3600.0], begin, None, cutting)] == [begin]
    found = [each async for each in paced(itertools.count(0, 1), begin - 10**10, begin - 10**10 + 3 * 10**9, Cutting())]
    assert len(found) == 3
