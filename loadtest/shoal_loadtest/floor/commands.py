"""The floor of a command: a trivial one in a live sandbox, through the driver alone and through a whole Shoal.

Between the two stands the least that a command can be which is asked for and answered through the broker: a bare
process that does nothing but hear it, have the driver run it, and say what came of it.
"""

import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import shoal
from shoal.cli.exits import Failure
from shoal.wire import messages as m, streams, subjects
from shoal.wire.codec import decode, encode
from shoal_executor.drivers.protocol import DriverError
from shoal_loadtest.floor import whole
from shoal_loadtest.floor.bare import Missing
from shoal_loadtest.floor.carrier import CARRIER, LIVE, driver_of, live
from shoal_loadtest.floor.channels import CHANNELS, Channel
from shoal_loadtest.floor.fabric import Brokers, running, station
from shoal_loadtest.floor.figures import Row, percentile
from shoal_loadtest.floor.roles import EXECUTOR, RUN, TENANT
from shoal_loadtest.floor.station import Order
from shoal_loadtest.floor.work import Work

PART: Final = "commands"
ISOLATIONS: Final = ("zygote", "gvisor")
_KINDS: Final = {
    "a program": m.Command(argv=("true",)),
    "a line in its shell session": m.Command(line="true", session=True),
}
_DRIVER: Final = "driver"
_SHOAL: Final = "Shoal"
_WARM: Final = 20
_END_S: Final = 30.0

Run = Callable[[m.Command], Awaitable[m.CommandResult]]


class Commands:
    """Takes turns for one isolation; `rows` says what came of it."""

    def __init__(self, isolation: str, count: int) -> None:
        self._isolation = isolation
        self._count = count
        self._found: dict[tuple[str, str, str], list[float]] = {}
        self._note = ""

    async def round(self, place: Path) -> None:
        """One turn of each, the drivers in directories of their own."""
        try:
            await self._driver(place / _DRIVER)
            for channel in CHANNELS:
                await self._hopped(channel, place / channel)
            await self._whole()
        except (Missing, DriverError, Failure) as error:
            self._note = str(error)

    async def _driver(self, place: Path) -> None:
        driver = driver_of(self._isolation, place)
        try:
            await live(driver)
            await self._time(_DRIVER, lambda command: driver.run(LIVE, command))
        finally:
            await driver.close()

    async def _hopped(self, name: str, place: Path) -> None:
        async with running(Brokers()) as broker:
            order = Order(CARRIER, broker.url, name, Work(1, 1), isolation=self._isolation, place=str(place))
            channel = CHANNELS[name]()
            try:
                async with station(order, "shoal_loadtest.floor.carrier", end_s=_END_S):
                    await channel.open(broker.url, streams.trajectory(0).name, 0)
                    await self._time(f"bare process, {name}", lambda command: ask(channel, command))
            finally:
                await channel.close()

    async def _whole(self) -> None:
        async with whole.up(self._isolation) as system, shoal.connect(system.url) as cluster:
            async with cluster.rollout("host", 1, isolation=self._isolation) as rollout:
                async for sandbox in rollout.ready():

                    async def run(command: m.Command, sandbox: shoal.Sandbox = sandbox) -> m.CommandResult:
                        said = await sandbox.run(command.line or command.argv, session=command.session)
                        return m.CommandResult(said.exit_code, stderr=said.stderr.encode())

                    await self._time(_SHOAL, run)

    async def _time(self, side: str, run: Run) -> None:
        for kind, command in _KINDS.items():
            found = []
            for _ in range(_WARM + self._count):
                began = time.perf_counter()
                result = await run(command)
                found.append((time.perf_counter() - began) * 1000)
                if result.exit_code:
                    raise Missing(f"`true` ended with {result.exit_code}: {result.stderr.decode(errors='replace')}")
            for name, share in (("p50", 0.5), ("p99", 0.99)):
                self._found.setdefault((kind, side, name), []).append(percentile(found[_WARM:], share))

    def rows(self) -> list[Row]:
        """Return the rows: all is compared with the driver."""
        cases = {kind: f"{kind}, {self._isolation}" for kind in _KINDS}
        if not self._found:
            return [Row(PART, case, _SHOAL, "round trip p50", "ms", note=self._note) for case in cases.values()]
        return [
            Row(PART, cases[kind], side, f"round trip {name}", "ms", tuple(values), "" if side == _DRIVER else _DRIVER,
                note=self._note if side == _SHOAL else "")
            for (kind, side, name), values in self._found.items()
        ]  # fmt: skip


async def ask(channel: Channel, command: m.Command) -> m.CommandResult:
    """Ask a bare process for a command, and wait for what came of it."""
    id = uuid.uuid4().hex
    asked = m.RunCommand(id, TENANT, RUN, 0, "floor", 0, 0, command)
    await channel.publish(subjects.executor_command(EXECUTOR, TENANT), encode(asked), id)
    while True:
        for _, payload in await channel.batch():
            match decode(payload):
                case m.CommandFinished(id=answered, result=result) if answered == id:
                    return result
