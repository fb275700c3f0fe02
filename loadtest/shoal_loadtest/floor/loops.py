"""Loops that start a sandbox, run `true` in it and end it, so many at a time: over drivers, programs, and Shoal."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import shoal
from shoal.bus.ending import end
from shoal.wire.messages import Blob, Command, Snapshot
from shoal_executor.drivers.each import start_one
from shoal_executor.drivers.gvisor.driver import GvisorDriver
from shoal_executor.drivers.protocol import Driver, DriverError, StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver
from shoal_loadtest.floor.bare import Missing, Program
from shoal_loadtest.floor.ends import Ends

MOST: Final = 64
"""Starts at a time, at most."""
CONCURRENCIES: Final = (1, 2, 4, 8, 16, 32, MOST)
TRUE: Final = Command(argv=("true",))
_HOST: Final = Snapshot("host", "host")

Unit = Callable[[str], Awaitable[float]]
"""Has one sandbox, of a name, through; returns the seconds until its command had ended."""


class Loop(Protocol):
    """One way to start, use and end a sandbox."""

    name: str

    async def open(self, place: Path) -> None:
        """Make ready in an empty directory. Raises Missing where it cannot be had here."""
        ...

    async def unit(self, name: str) -> float:
        """Have one sandbox, of this name, through; return the seconds until its `true` had ended. Raises Missing."""
        ...

    async def close(self) -> None:
        """Leave nothing behind."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a loop: units a second, and ms until each one's command had ended."""

    a_second: float
    first_ms: tuple[float, ...]


async def turn(unit: Unit, stem: str, count: int, at_once: int) -> Turn:
    """Have so many through, `at_once` of them at a time: as one ends, the next begins."""
    left = iter(range(count))
    found: list[float] = []

    async def one_after_the_other() -> None:
        for number in left:
            found.append(await unit(f"{stem}-{number}"))  # noqa: PERF401 - in the order of their ends

    began = time.perf_counter()
    tasks = [asyncio.create_task(one_after_the_other()) for _ in range(min(at_once, count))]
    try:
        await asyncio.gather(*tasks)
    finally:
        await end(*tasks)
    return Turn(count / (time.perf_counter() - began), tuple(1000 * each for each in found))


async def burst(unit: Unit, stem: str, count: int) -> tuple[float, ...]:
    """Begin so many at the same moment; returns ms until each one's command had ended, when all have."""
    return (await turn(unit, stem, count, count)).first_ms


class DriverLoop:
    """A driver by itself."""

    def __init__(self, name: str, make: Callable[[Path], Driver]) -> None:
        self.name = name
        self._make = make
        self._driver: Driver | None = None
        self._snapshot = _HOST

    async def open(self, place: Path) -> None:
        """Open the driver, and have started what comes once."""
        driver = self._make(place)
        try:
            await driver.open(lambda *_: None)
            self._driver = driver
            await driver.prepare(self._snapshot)
            await self.unit("first")
        except DriverError as error:
            raise Missing(str(error)) from error

    async def unit(self, name: str) -> float:
        """Start, run, destroy."""
        assert self._driver is not None
        began = time.perf_counter()
        try:
            await start_one(self._driver, name, StartSpec(self._snapshot))
        except DriverError as error:
            raise Missing(f"a start failed: {error}") from error
        await self._driver.run(name, TRUE)
        took = time.perf_counter() - began
        await self._driver.destroy([name])
        return took

    async def close(self) -> None:
        """Close the driver."""
        if self._driver is not None:
            await self._driver.close()


def zygote() -> DriverLoop:
    """Return the loop over the driver `zygote`."""
    return DriverLoop("driver", lambda place: ZygoteDriver(place, parallel=MOST))


class Files:
    """Files as blobs."""

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}

    def add(self, path: Path) -> Blob:
        """Take a file in."""
        content = path.read_bytes()
        blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
        self._paths[blob.digest] = path
        return blob

    async def path_of(self, blob: Blob) -> Path:
        """Return the file."""
        return self._paths[blob.digest]


class RestoredLoop(DriverLoop):
    """The driver `gvisor`, from a sandbox whose memory was kept."""

    def __init__(self) -> None:
        self._files = Files()
        super().__init__("driver", lambda place: GvisorDriver(place, self._files, parallel=MOST))

    async def open(self, place: Path) -> None:
        """Open the driver, start one and keep it."""
        await super().open(place / "driver")
        assert self._driver is not None
        if not self._driver.keeps_memory:
            raise Missing("isolation gvisor keeps no memory here: apt install erofs-utils")
        await start_one(self._driver, "kept", StartSpec(_HOST))
        kept = place / "kept"
        kept.mkdir()
        captured = await self._driver.capture("kept", kept, memory=True)
        await self._driver.destroy(["kept"])
        assert captured.memory is not None
        layers, memory = (self._files.add(captured.layer),), self._files.add(captured.memory)
        self._snapshot = Snapshot("kept", "host", layers=layers, memory=memory, isolation="gvisor", template="host")
        await self.unit("restored")


class ProgramLoop:
    """A program that starts sandboxes, called from threads."""

    def __init__(self, program: Program) -> None:
        self.name = program.name
        self._program = program
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix=program.name)

    async def open(self, place: Path) -> None:
        """Make it ready."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._program.open, place)
        await self.unit("first")

    async def unit(self, name: str) -> float:
        """Call it."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._program.unit)

    async def close(self) -> None:
        """End the threads."""
        self._program.close()
        self._threads.shutdown(wait=True)


class ShoalLoop:
    """A whole Shoal that is up: a unit is a rollout of one, a burst a rollout of many; their commands travel along.

    Like those of other loops, both are over when their sandboxes have ended.
    """

    name = "Shoal"

    def __init__(self, cluster: shoal.Cluster, start: str | shoal.Snapshot, isolation: str, ends: Ends) -> None:
        self._cluster = cluster
        self._ends = ends
        self._start = start
        self._isolation = isolation

    async def unit(self, name: str) -> float:
        """Have a rollout of one."""
        (took_ms,) = await self.burst(1)
        return took_ms / 1000

    async def burst(self, count: int) -> tuple[float, ...]:
        """Have one rollout of so many; returns ms from its submission until each one's outcome was heard."""
        began = time.perf_counter()
        rollout = await self._cluster.rollout(self._start, count, command=["true"], isolation=self._isolation)
        took: list[float] = []
        async for outcome in rollout.outcomes():
            if outcome.result is None or not outcome.result.ok:
                raise Missing(f"a sandbox of Shoal's failed: {outcome.reason} {outcome.detail}")
            took.append(1000 * (time.perf_counter() - began))
        await self._ends.of(rollout.id, count)
        return tuple(took)

    async def group(self, count: int) -> None:
        """Have one rollout of so many through."""
        rollout = await self._cluster.rollout(self._start, count, command=["true"], isolation=self._isolation)
        summary = await rollout.wait()
        if summary.succeeded != count:
            raise Missing(f"of {count} sandboxes of Shoal's {summary.succeeded} succeeded")
