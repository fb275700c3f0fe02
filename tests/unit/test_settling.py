"""Sandboxes are told together, a moment later, what they may forget."""

import asyncio
from collections.abc import Sequence

import pytest

from shoal_executor.drivers.simulated import Profile, SimulatedDriver
from shoal_executor.service import settling
from shoal_executor.service.settling import Settling


class Told(SimulatedDriver):
    def __init__(self) -> None:
        super().__init__(Profile())
        self.told: list[tuple[str, tuple[str, ...]]] = []

    def settle(self, name: str, ids: Sequence[str]) -> None:
        self.told.append((name, tuple(ids)))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(settling, "LATER_S", 0.02)
    return Told()


async def until(driver: Told, count: int) -> None:
    async with asyncio.timeout(30):
        while len(driver.told) < count:
            await asyncio.sleep(0.005)


async def test_what_gathers_is_told_together_and_once(driver: Told) -> None:
    told = Settling(driver)
    for name, id in (("a", "1"), ("b", "1"), ("a", "2")):
        told.settle(name, id)
    assert driver.told == []
    await until(driver, 2)
    told.settle("a", "3")
    await until(driver, 3)
    assert driver.told == [("a", ("1", "2")), ("b", ("1",)), ("a", ("3",))]


async def test_what_is_large_is_told_at_once_with_what_waits(driver: Told) -> None:
    told = Settling(driver)
    told.settle("a", "1")
    told.settle("a", "2", now=True)
    assert driver.told == [("a", ("1", "2"))]
    await asyncio.sleep(0.06)
    assert len(driver.told) == 1


async def test_nothing_is_told_to_one_that_is_held_until_it_is_no_longer(driver: Told) -> None:
    told = Settling(driver)
    with told.held("a"):
        told.settle("a", "1", now=True)
        told.settle("b", "1")
        await until(driver, 1)
        await asyncio.sleep(0.06)
        assert driver.told == [("b", ("1",))]
    await until(driver, 2)
    assert driver.told[1] == ("a", ("1",))


async def test_one_that_is_gone_and_an_end(driver: Told) -> None:
    told = Settling(driver)
    told.settle("a", "1")
    told.settle("b", "1")
    told.forget("a")
    told.close()
    await asyncio.sleep(0.06)
    assert driver.told == []
