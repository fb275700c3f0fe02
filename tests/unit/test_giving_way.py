"""Ends give way to starts: when they wait, how long, and how many of them."""

import asyncio
import functools
from collections.abc import Callable, Coroutine

import pytest

from shoal.testing import virtual
from shoal_executor.service.giving_way import LONGEST_S, MOST, GivingWay


def simulated(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Run a test on simulated time."""

    @functools.wraps(test)
    def run(**given: int) -> None:
        virtual.run(test(**given))

    return run


async def ends(way: GivingWay, count: int) -> list[asyncio.Task[float]]:
    """Have so many wait for their turns; each returns how long it did."""

    async def one() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await way.turn()
        return loop.time() - began

    tasks = [asyncio.create_task(one()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


def waits(*tasks: asyncio.Task[float]) -> list[bool]:
    return [not task.done() for task in tasks]


@pytest.mark.parametrize(("at_once", "starting"), [(2, 2), (0, 1_000)])
@simulated
async def test_an_end_goes_at_once_while_no_start_waits_for_another(at_once: int, starting: int) -> None:
    way = GivingWay(at_once)
    with way.starting(starting):
        (end,) = await ends(way, 1)
        assert await end == 0


@simulated
async def test_ends_wait_until_no_start_waits_any_more() -> None:
    way = GivingWay(2)
    with way.starting(4) as done:
        waiting = await ends(way, 2)
        done(1)
        await asyncio.sleep(0)
        assert waits(*waiting) == [True, True]
        done(1)
        assert await asyncio.gather(*waiting) == [0, 0]


@simulated
async def test_a_start_that_is_given_up_is_waited_for_no_longer() -> None:
    way = GivingWay(1)
    with way.starting(5) as done:
        done(2)
        (end,) = await ends(way, 1)
        assert waits(end) == [True]
    assert await end == 0
    (later,) = await ends(way, 1)
    assert await later == 0


@simulated
async def test_no_end_waits_long() -> None:
    way = GivingWay(1)
    with way.starting(2):
        (end,) = await ends(way, 1)
        assert await end == pytest.approx(LONGEST_S)


@simulated
async def test_not_many_wait_and_who_waits_longest_goes_first() -> None:
    way = GivingWay(2)
    with way.starting(3):
        waiting = await ends(way, 2 * MOST + 2)
        await asyncio.sleep(0)
        assert waits(*waiting) == [False] * 2 + [True] * 2 * MOST


@simulated
async def test_an_end_that_is_cancelled_keeps_nobody_elses_place() -> None:
    way = GivingWay(1)
    with way.starting(2) as done:
        first, second, *_ = await ends(way, MOST)
        second.cancel()
        await asyncio.sleep(0)
        (late,) = await ends(way, 1)
        await asyncio.sleep(0)
        assert waits(first, late) == [True, True]
        done(1)
        assert [await first, await late] == [0, 0]
