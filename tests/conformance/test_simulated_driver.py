import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from conformance.drivers import HOST, DriverConformance, fresh, start
from conformance.files import FilesConformance
from shoal.wire.messages import Command, EndReason
from shoal_executor.drivers.protocol import NoSuchSandboxError, Started, StartFailed, StartSpec
from shoal_executor.drivers.simulated import Profile, SimulatedDriver


class TestSimulatedDriver(DriverConformance, FilesConformance):
    real = False

    @pytest_asyncio.fixture
    async def driver(self) -> AsyncIterator[SimulatedDriver]:
        driver = SimulatedDriver()
        await driver.open(lambda *_: None)
        yield driver
        await driver.close()


async def test_what_happens_depends_on_seed_and_name_only() -> None:
    async def lived(seed: int) -> list[str]:
        driver = SimulatedDriver(Profile(seed, start_ms=0.2, start_failure_rate=0.5, command_failure_rate=0.5))
        outcomes = await start(driver, [f"r-{i}" for i in range(40)], StartSpec(HOST))
        story = [f"{outcome}" for outcome in outcomes]
        live = [outcome.names[0] for outcome in outcomes if isinstance(outcome, Started)]
        story += [f"{(await driver.run(name, Command(('x',)))).exit_code}" for name in live]
        assert any(isinstance(outcome, StartFailed) for outcome in outcomes)
        return sorted(story)

    assert await lived(1) == await lived(1) != await lived(2)


async def test_results_say_that_they_are_simulated() -> None:
    driver = SimulatedDriver()
    name = fresh()
    await start(driver, [name], StartSpec(HOST))
    assert (await driver.run(name, Command(("x",)))).stdout.startswith(b"simulated")
    assert driver.isolation == "simulated"


async def test_what_an_earlier_process_simulated_is_lost() -> None:
    exits: list[tuple[str, EndReason, str]] = []
    driver = SimulatedDriver()
    await driver.open(lambda *told: exits.append(told), ["a-0", "b-1"])
    assert [told[:2] for told in exits] == [("a-0", EndReason.NODE_LOST), ("b-1", EndReason.NODE_LOST)]
    assert "end with their executor" in exits[0][2]
    assert await driver.list() == []


async def test_two_who_wait_for_one_command() -> None:
    driver = SimulatedDriver(Profile(command_ms=20, command_spread=0.0))
    name = fresh()
    await start(driver, [name], StartSpec(HOST))
    first, second = (asyncio.create_task(driver.run(name, Command(("x",)), id="k")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert b"simulated" in (await second).stdout
    both = [asyncio.create_task(driver.run(name, Command(("x",)), id="l")) for _ in range(2)]
    await asyncio.sleep(0)
    await driver.destroy([name])
    assert [type(each) for each in await asyncio.gather(*both, return_exceptions=True)] == [NoSuchSandboxError] * 2


async def test_names_that_begin_alike_are_different_sandboxes() -> None:
    driver = SimulatedDriver()
    names = ["a-1", "a-1-0", "a-10", "a-1.1", "a", "b-1"]
    await start(driver, names, StartSpec(HOST))
    assert sorted(await driver.list()) == sorted(names)
    await driver.write_file("a-1-0", "note", b"mine")
    await driver.destroy(["a-1", "b-1", "c-1"])
    assert sorted(await driver.list()) == ["a", "a-1-0", "a-1.1", "a-10"]
    assert (await driver.read_file("a-1-0", "note")).data == b"mine"
    for gone in ("a-1", "b-1", "c-1"):
        with pytest.raises(NoSuchSandboxError):
            await driver.run(gone, Command(("x",)))
    await driver.close()
    assert await driver.list() == []
