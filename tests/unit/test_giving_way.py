"""Ends give way to starts: when they wait, how long, how many of them, and that they leave together."""

import asyncio
import functools
from collections.abc import Callable, Coroutine

import pytest

from shoal.testing import virtual
from shoal.wire.messages import Ranges
from shoal_executor.core import Key
from shoal_executor.service.giving_way import LONGEST_S, MOST, GivingWay

ONE: Key = ("r1", 0, "n1")
OTHER: Key = ("r2", 0, "n1")


class Way(GivingWay):
    """Notes what it has ended, and when."""

    def __init__(self, at_once: int) -> None:
        super().__init__(self._note, at_once)
        self.ended: list[tuple[Key, Ranges]] = []
        self.times: list[float] = []

    def _note(self, key: Key, indices: Ranges) -> None:
        self.ended.append((key, indices))
        self.times.append(asyncio.get_running_loop().time())


def simulated(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Run a test on simulated time."""

    @functools.wraps(test)
    def run(**given: int) -> None:
        virtual.run(test(**given))

    return run


@pytest.mark.parametrize(("at_once", "starting"), [(2, 2), (0, 1_000)])
@simulated
async def test_an_end_goes_at_once_while_no_start_waits_for_another(at_once: int, starting: int) -> None:
    way = Way(at_once)
    with way.starting(starting):
        way.add(ONE, ((3, 1),))
        assert way.ended == [(ONE, ((3, 1),))]


@simulated
async def test_ends_wait_until_no_start_waits_any_more_and_go_group_by_group() -> None:
    way = Way(2)
    with way.starting(4) as done:
        way.add(ONE, ((3, 1),))
        way.add(OTHER, ((0, 1),))
        way.add(ONE, ((2, 1),))
        done(1)
        assert way.ended == []
        done(1)
        assert way.ended == [(ONE, ((2, 2),)), (OTHER, ((0, 1),))]
        await asyncio.sleep(2 * LONGEST_S)
        assert len(way.ended) == 2


@simulated
async def test_a_start_that_is_given_up_is_waited_for_no_longer() -> None:
    way = Way(1)
    with way.starting(5) as done:
        done(2)
        way.add(ONE, ((0, 1),))
        assert way.ended == []
    assert way.ended == [(ONE, ((0, 1),))]
    way.add(ONE, ((1, 1),))
    assert way.ended == [(ONE, ((0, 1),)), (ONE, ((1, 1),))]


@simulated
async def test_no_end_waits_long_and_the_first_takes_all_along() -> None:
    way = Way(1)
    with way.starting(2):
        began = asyncio.get_running_loop().time()
        for number in range(2):
            way.add(ONE, ((0, 1),))
            await asyncio.sleep(LONGEST_S / 2)
            way.add(OTHER, ((0, 1),))
            await asyncio.sleep(LONGEST_S)
            assert way.ended == [(ONE, ((0, 1),)), (OTHER, ((0, 1),))] * (number + 1)
        assert way.times == pytest.approx(
            [began + LONGEST_S, began + LONGEST_S, began + 2.5 * LONGEST_S, began + 2.5 * LONGEST_S]
        )


@simulated
async def test_not_many_wait() -> None:
    way = Way(2)
    with way.starting(3):
        way.add(ONE, ((0, MOST),))
        way.add(OTHER, ((0, MOST),))
        assert way.ended == []
        way.add(OTHER, ((MOST, 1),))
        assert way.ended == [(ONE, ((0, MOST),)), (OTHER, ((0, MOST + 1),))]
        way.add(ONE, ((MOST, 2 * MOST),))  # the count began anew
        assert len(way.ended) == 2


@simulated
async def test_nothing_is_ended_after_its_close() -> None:
    way = Way(1)
    with way.starting(2):
        way.add(ONE, ((0, 1),))
        way.close()
    await asyncio.sleep(2 * LONGEST_S)
    assert way.ended == []
