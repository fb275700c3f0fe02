"""The floor of a command: a trivial one in a live sandbox, through the driver alone and through a whole Shoal."""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import shoal
from shoal.cli.exits import Failure
from shoal.wire.messages import Command, CommandResult, Snapshot
from shoal_executor.drivers.each import start_one
from shoal_executor.drivers.protocol import DriverError, StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver
from shoal_loadtest.floor import whole
from shoal_loadtest.floor.bare import Missing
from shoal_loadtest.floor.figures import Row, percentile

PART: Final = "commands"
_PROGRAM: Final = "a program"
_SESSION: Final = "a line in its shell session"
_DRIVER: Final = "driver"
_SHOAL: Final = "Shoal"
_WARM: Final = 20


class Commands:
    """Takes turns; `rows` says what came of it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found: dict[tuple[str, str, str], list[float]] = {}
        self._note = ""

    async def round(self, place: Path) -> None:
        """One turn of each, the driver in a directory of its own."""
        try:
            await self._driver(place)
            await self._whole()
        except (Missing, DriverError, Failure) as error:
            self._note = str(error)

    async def _driver(self, place: Path) -> None:
        driver = ZygoteDriver(place)
        try:
            await driver.open(lambda *_: None)
            await start_one(driver, "live", StartSpec(Snapshot("host", "host")))
            program, session = Command(argv=("true",)), Command(line="true", session=True)

            async def run(command: Command) -> None:
                _succeeded(await driver.run("live", command))

            await self._time(_PROGRAM, _DRIVER, lambda: run(program))
            await self._time(_SESSION, _DRIVER, lambda: run(session))
        finally:
            await driver.close()

    async def _whole(self) -> None:
        async with whole.up("zygote") as system, shoal.connect(system.url) as cluster:
            async with cluster.rollout("host", 1) as rollout:
                async for sandbox in rollout.ready():

                    async def program(sandbox: shoal.Sandbox = sandbox) -> None:
                        await sandbox.run(["true"], check=True)

                    async def session(sandbox: shoal.Sandbox = sandbox) -> None:
                        await sandbox.run("true", session=True, check=True)

                    await self._time(_PROGRAM, _SHOAL, program)
                    await self._time(_SESSION, _SHOAL, session)

    async def _time(self, case: str, side: str, run: Callable[[], Awaitable[None]]) -> None:
        found = []
        for _ in range(_WARM + self._count):
            began = time.perf_counter()
            await run()
            found.append((time.perf_counter() - began) * 1000)
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            self._found.setdefault((case, side, name), []).append(percentile(found[_WARM:], share))

    def rows(self) -> list[Row]:
        """Return the rows."""
        if self._note and not self._found:
            return [Row(PART, case, _SHOAL, "round trip p50", "ms", note=self._note) for case in (_PROGRAM, _SESSION)]
        return [
            Row(PART, case, side, f"round trip {name}", "ms", tuple(values), "" if side == _DRIVER else _DRIVER)
            for (case, side, name), values in self._found.items()
        ]


def _succeeded(result: CommandResult) -> None:
    if result.exit_code:
        raise Missing(f"`true` ended with {result.exit_code}: {result.stderr.decode(errors='replace')}")
