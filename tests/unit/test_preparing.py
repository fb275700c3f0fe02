"""Warm code has as long as its rollout's time allows, and what takes long besides is not put down to it."""

import asyncio

import pytest

from shoal.wire.messages import Snapshot
from shoal_executor.drivers.protocol import BadInputError, Driver
from shoal_executor.drivers.simulated import SimulatedDriver
from shoal_executor.service.clock import now_ms
from shoal_executor.service.preparing import prepared

WARM = Snapshot("warm", "host", warm="while True: pass")


class Slow(SimulatedDriver):
    """Prepares until it is told that this is enough."""

    def __init__(self, warms: bool) -> None:
        super().__init__()
        self.enough = asyncio.Event()
        self.warms = warms
        self.asked = 0

    async def prepare(self, snapshot: Snapshot) -> None:
        self.asked += 1
        if self.asked == 2:
            self.enough.set()
        await self.enough.wait()

    def warming(self, snapshot: Snapshot) -> bool:
        return self.warms


async def test_code_that_still_runs_when_the_time_is_nearly_up_is_its_givers() -> None:
    driver = Slow(warms=True)
    with pytest.raises(BadInputError, match=r"warm: its code has not come to its end within 0\.\d s"):
        await prepared(driver, WARM, now_ms() + 400, 0)
    assert driver.asked == 1
    with pytest.raises(BadInputError, match=r"within 0\.0 s"):
        await prepared(Slow(warms=True), WARM, now_ms() - 5000, 0)


async def test_code_whose_rollout_waited_for_long_is_not_its_givers() -> None:
    driver = Slow(warms=True)
    waiting = asyncio.create_task(prepared(driver, WARM, now_ms() + 100, now_ms() - 1))
    await asyncio.sleep(0.2)
    assert not waiting.done()  # it ends as `deadline`
    driver.enough.set()
    await waiting
    assert driver.asked == 1


async def test_a_template_that_is_fetched_for_long_is_waited_for() -> None:
    driver = Slow(warms=False)
    await prepared(driver, WARM, now_ms() + 100, 0)
    assert driver.asked == 2


async def test_without_code_nothing_is_hurried() -> None:
    driver: Driver = (slow := Slow(warms=True))
    waiting = asyncio.create_task(prepared(driver, Snapshot("host", "host"), now_ms() - 1, 0))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    slow.enough.set()
    await waiting
