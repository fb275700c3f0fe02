"""A pool is a driver like any other, and what it gives away is given once."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from conformance.drivers import HOST, Blobs, DriverConformance, fresh, one, sh, start
from conformance.files import FilesConformance
from shoal.wire.messages import Command, EndReason, InputFile, Resources, Snapshot
from shoal_executor.drivers import pool as module
from shoal_executor.drivers.heat import Budget
from shoal_executor.drivers.pool import Pool
from shoal_executor.drivers.protocol import (
    DriverReport,
    ExitSink,
    NoSuchSandboxError,
    NotEndedError,
    Started,
    StartFailed,
    StartSpec,
)
from shoal_executor.drivers.simulated import Profile, SimulatedDriver
from shoal_executor.drivers.zygote.driver import ZygoteDriver

pytestmark = pytest.mark.sandbox
SMALL = Resources(memory=64 * 1024**2)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUIET_S", 0.01)


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


class TestPooledZygote(DriverConformance, FilesConformance):
    @pytest_asyncio.fixture
    async def driver(self, tmp_path: Path, blobs: Blobs) -> AsyncIterator[Pool]:
        driver = Pool(ZygoteDriver(tmp_path / "state", blobs), tmp_path / "pool", Budget(4, 1 << 30))
        await driver.open(lambda *_: None)
        for _ in range(2):  # what most tests start is hot by now
            names = [fresh() for _ in range(4)]
            await start(driver, names, StartSpec(HOST))
            await driver.destroy(names)
        await until(driver, 4)
        yield driver
        await driver.close()


class TestPooledSimulation(DriverConformance, FilesConformance):
    real = False

    @pytest_asyncio.fixture
    async def driver(self, tmp_path: Path) -> AsyncIterator[Pool]:
        driver = Pool(SimulatedDriver(Profile()), tmp_path / "pool", Budget(4, 1 << 30))
        await driver.open(lambda *_: None)
        yield driver
        await driver.close()


async def until(driver: Pool, ready: int) -> None:
    async with asyncio.timeout(20):
        while driver.ready != ready:
            await asyncio.sleep(0.01)


async def warm(driver: Pool, ready: int = 4) -> None:
    for _ in range(2):
        names = [fresh() for _ in range(ready)]
        await start(driver, names, StartSpec(HOST, SMALL))
        await driver.destroy(names)
    await until(driver, ready)


@pytest_asyncio.fixture
async def inner(tmp_path: Path) -> ZygoteDriver:
    return ZygoteDriver(tmp_path / "state")


@pytest_asyncio.fixture
async def driver(inner: ZygoteDriver, tmp_path: Path) -> AsyncIterator[Pool]:
    driver = Pool(inner, tmp_path / "pool", Budget(4, 1 << 30))
    await driver.open(lambda *_: None)
    yield driver
    await driver.close()


async def test_what_is_ready_is_given_away_once_and_only_to_those_it_fits(driver: Pool, inner: ZygoteDriver) -> None:
    await warm(driver)
    waiting = set(await inner.list())
    assert await driver.list() == []
    names = [fresh() for _ in range(10)]
    specs = {name: StartSpec(HOST, SMALL, (InputFile("in", name.encode()),)) for name in names}
    outcomes = await asyncio.gather(*(start(driver, [name], spec) for name, spec in specs.items()))
    assert outcomes == [[Started((name,))] for name in names]
    assert sorted(await driver.list()) == sorted(names)
    assert [(await driver.read_file(name, "in")).data for name in names] == [name.encode() for name in names]
    for name in names:
        assert (await sh(driver, name, "test -e mine || touch mine; ls")).stdout == b"in\nmine\n"
    assert waiting <= set(await inner.list())  # they were given away, not replaced
    other = await one(driver, resources=SMALL, env=(("WHO", "me"),))
    assert (await sh(driver, other, "echo $WHO")).stdout == b"me\n"
    await driver.destroy([*names, other])
    assert await driver.list() == []


async def test_one_that_died_while_it_waited_is_not_given_away(driver: Pool, inner: ZygoteDriver) -> None:
    await warm(driver, 2)
    for name in await inner.list():
        pid = await inner._live[name].zygote.where(name)
        os.kill(pid, signal.SIGKILL)
    names = [fresh(), fresh()]
    outcomes = await start(driver, names, StartSpec(HOST, SMALL))
    assert set(outcomes) == {Started((name,)) for name in names}
    for name in names:
        assert (await sh(driver, name, "echo on")).stdout == b"on\n"


async def test_what_stands_on_files_that_are_gone_is_not_given_away(driver: Pool, tmp_path: Path) -> None:
    await warm(driver)
    shutil.rmtree(tmp_path / "state/images")
    names = [fresh() for _ in range(4)]
    outcomes = await start(driver, names, StartSpec(HOST, SMALL))
    assert {each.names for each in outcomes if isinstance(each, Started)} == {(name,) for name in names}
    assert {(await sh(driver, name, "echo hi")).stdout for name in names} == {b"hi\n"}
    assert all(driver.stands(name) for name in names)
    await driver.destroy(names)


async def test_its_ends_and_errors_have_the_name_it_was_given(inner: ZygoteDriver, tmp_path: Path) -> None:
    ends: list[tuple[str, EndReason]] = []
    driver = Pool(inner, tmp_path / "pool", Budget(4, 1 << 30))
    await driver.open(lambda name, reason, _: ends.append((name, reason)))
    try:
        await warm(driver, 2)
        name = fresh()
        await start(driver, [name], StartSpec(HOST, SMALL))
        pid = await inner._live[driver._given[name]].zygote.where(driver._given[name])
        running = asyncio.create_task(sh(driver, name, "sleep 60"))
        await sh(driver, name, "true")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(NoSuchSandboxError, match=name):
            await running
        assert ends == [(name, EndReason.DIED)]
        (refused,) = await start(driver, [fresh()], StartSpec(HOST, SMALL, (InputFile("/usr/no", b""),)))
        assert isinstance(refused, StartFailed)
        assert "input file" in refused.detail
        assert refused.name not in await driver.list()
    finally:
        await driver.close()


async def test_one_that_cannot_be_ended_is_still_known_by_the_name_it_was_given(
    driver: Pool, inner: ZygoteDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(driver, 2)
    names = [fresh(), fresh()]
    await start(driver, names, StartSpec(HOST, SMALL))
    stuck, destroy = driver._given[names[0]], inner.destroy

    async def but_one(those: Sequence[str]) -> None:
        await destroy(those)
        if stuck in those:
            raise NotEndedError({stuck}, "it is stuck")

    monkeypatch.setattr(inner, "destroy", but_one)
    with pytest.raises(NotEndedError) as caught:
        await driver.destroy(names)
    assert caught.value.names == {names[0]}
    assert [note.name for note in (tmp_path / "pool").iterdir()] == [names[0]]
    monkeypatch.undo()


async def test_what_is_hot_no_more_is_ended(driver: Pool, inner: ZygoteDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    await warm(driver, 2)
    driver._heat._known.clear()
    driver._stirred.set()
    await until(driver, 0)
    assert await inner.list() == []
    for _ in range(2):
        (bad,) = await start(driver, [fresh()], StartSpec(Snapshot("dir-x", "dir", "/no/such/directory"), SMALL))
        assert isinstance(bad, StartFailed)
    await asyncio.sleep(0.1)
    assert driver.ready == 0


async def test_the_next_process_knows_who_was_given_what(tmp_path: Path) -> None:
    program = Path(__file__).with_name("left_pool.py")
    with subprocess.Popen([sys.executable, program, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        words = next(line for line in process.stdout if line.startswith("ready")).split()
        process.kill()
    ends: list[str] = []
    inner = ZygoteDriver(tmp_path / "state")
    driver = Pool(inner, tmp_path / "pool", Budget(4, 1 << 30))
    given, gone = words[1:]
    await driver.open(lambda name, *_: ends.append(name), keep=[given, gone])
    try:
        assert await driver.list() == [given]
        assert len(await inner.list()) == 1  # those that nobody had are ended
        assert ends == [gone]
        assert (await driver.run(given, Command(line="cat note"))).stdout == b"kept"
        await driver.destroy([given, gone])
        assert list((tmp_path / "pool").iterdir()) == []
    finally:
        await driver.close()
    assert not (tmp_path / "pool").exists()


async def test_one_that_was_never_opened_leaves_the_notes_of_who_has_them(tmp_path: Path) -> None:
    notes = tmp_path / "pool"
    driver = Pool(SimulatedDriver(Profile()), notes, Budget(4, 1 << 30))
    await driver.open(lambda *_: None)
    (notes / "given").symlink_to("inner")
    await Pool(SimulatedDriver(Profile()), notes, Budget(4, 1 << 30)).close()
    assert (notes / "given").is_symlink()
    await driver.close()


async def test_the_pool_is_filled_again_after_an_idle_one_ended_while_another_was_started(tmp_path: Path) -> None:
    class Killing(SimulatedDriver):
        """The first that is started ahead ends while the second is."""

        ahead = 0

        async def open(self, on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
            self.told = on_exit
            return await super().open(on_exit, keep)

        async def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
            if names[0].startswith("pool-"):
                self.ahead += 1
                if self.ahead == 2:
                    (idle,) = [name for name in await self.list() if name.startswith("pool-")]
                    self.told(idle, EndReason.OUT_OF_MEMORY, "killed")
            async for outcome in super().start(names, spec):
                yield outcome

    driver = Pool(Killing(Profile()), tmp_path / "pool", Budget(4, 1 << 30))
    await driver.open(lambda *_: None)
    for _ in range(2):
        names = [fresh() for _ in range(4)]
        await start(driver, names, StartSpec(HOST))
        await driver.destroy(names)
    async with asyncio.timeout(20):
        while driver._heat._known:  # until the end of the idle one was taken in
            await asyncio.sleep(0.01)
    for _ in range(3):
        names = [fresh() for _ in range(4)]
        await start(driver, names, StartSpec(HOST))
        await driver.destroy(names)
    await until(driver, 4)
    await driver.close()
