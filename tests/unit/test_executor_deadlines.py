"""Groups whose time is up are told once each, and none before."""

import asyncio

from shoal_executor.core import Key
from shoal_executor.service import deadlines
from shoal_executor.service.clock import now_ms
from shoal_executor.service.deadlines import Deadlines


def key(number: int) -> Key:
    return (f"r{number}", 0, "n")


async def test_each_is_told_once_in_the_order_of_their_deadlines() -> None:
    told: list[Key] = []
    waiting = Deadlines(told.append)
    past = (now_ms() // 1000 - deadlines.GRACE_S) * 1000
    for number, ms in ((0, past), (1, past - 5000), (2, past + 10**8), (3, past)):
        waiting.set(key(number), ms)
    waiting.set(key(2), past)  # it waits for its deadline already
    waiting.drop(key(3))
    waiting.drop(key(4))  # which was never here
    async with asyncio.timeout(30):
        while len(told) < 2:
            await asyncio.sleep(0.01)
    assert told == [key(1), key(0)]
    assert len(waiting) == 1
    waiting.set(key(5), past - 10_000)  # sooner than what it waits for
    async with asyncio.timeout(30):
        while len(told) < 3:
            await asyncio.sleep(0.01)
    assert told[2] == key(5)
    waiting.drop(key(2))
    assert len(waiting) == 0
    waiting.set(key(6), past)
    waiting.close()
    await asyncio.sleep(0.05)
    assert len(told) == 3, "it was closed"


async def test_one_that_ends_another_is_not_told_of_it() -> None:
    told: list[Key] = []

    def over(group: Key) -> None:
        told.append(group)
        waiting.drop(key(1))

    waiting = Deadlines(over)
    for number in (0, 1):
        waiting.set(key(number), -10_000)
    async with asyncio.timeout(30):
        while len(waiting):
            await asyncio.sleep(0.01)
    assert told == [key(0)]


async def test_one_that_cannot_be_ended_keeps_no_other_from_it() -> None:
    told: list[Key] = []

    def over(group: Key) -> None:
        told.append(group)
        if group == key(0):
            raise OSError("no space is left for the journal")

    troubles: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context["exception"]))
    waiting = Deadlines(over)
    for number in (0, 1, 2):
        waiting.set(key(number), -10_000)
    async with asyncio.timeout(30):
        while len(waiting):
            await asyncio.sleep(0.01)
    assert told == [key(0), key(1), key(2)]
    assert len(troubles) == 1
