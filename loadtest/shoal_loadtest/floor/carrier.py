"""A bare process that has commands carried out: hears one, has the driver run it, says what came of it.

`python -m shoal_loadtest.floor.carrier`, for `commands`. The messages and streams are Shoal's own; there is nothing
else of it: no journal, no repeats, no sandboxes but one.
"""

import asyncio
from pathlib import Path
from typing import Final

import uvloop

from shoal.wire import messages as m, subjects
from shoal.wire.codec import decode, encode
from shoal_executor.drivers.each import start_one
from shoal_executor.drivers.gvisor.driver import GvisorDriver
from shoal_executor.drivers.protocol import Driver, StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver
from shoal_loadtest.floor import station
from shoal_loadtest.floor.channels import CHANNELS
from shoal_loadtest.floor.loops import Files
from shoal_loadtest.floor.quiet import quiet
from shoal_loadtest.floor.roles import EXECUTOR_LOG, RUN, TENANT

CARRIER: Final = "carrier"
LIVE: Final = "live"
TRAJECTORY: Final = subjects.trajectory(0, TENANT, RUN)
_HOST: Final = m.Snapshot("host", "host")


def driver_of(isolation: str, place: Path) -> Driver:
    """Return a driver of this isolation, in a directory of its own."""
    return GvisorDriver(place, Files()) if isolation == "gvisor" else ZygoteDriver(place)


async def live(driver: Driver) -> None:
    """Have the one sandbox. Raises DriverError."""
    await driver.open(lambda *_: None)
    await start_one(driver, LIVE, StartSpec(_HOST))


async def carry(order: station.Order, _: asyncio.Event) -> None:
    """Serve, for ever."""
    channel = CHANNELS[order.channel]()
    driver = driver_of(order.isolation, Path(order.place))
    try:
        await live(driver)
        await channel.open(order.url, EXECUTOR_LOG, order.after)
        station.tell({"ready": True})
        while True:
            for sequence, payload in await channel.batch():
                match decode(payload):
                    case m.RunCommand() as asked:
                        result = await driver.run(LIVE, asked.command, id=asked.id)
                        head = (asked.id, asked.rollout, asked.index, asked.attempt)
                        finished = m.CommandFinished(*head, asked.command, result)
                        await channel.publish(TRAJECTORY, encode(finished), f"{EXECUTOR_LOG}:{sequence}")
    finally:
        try:
            await driver.close()
        finally:
            await channel.close()


if __name__ == "__main__":
    quiet()
    uvloop.run(station.main(carry))
