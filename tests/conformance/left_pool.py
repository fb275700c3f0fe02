"""A pool in a process of its own, to be killed: `python left_pool.py DIRECTORY`.

Gives away two sandboxes that were ready and ends one of them, says "ready" with their names, and waits for its end.
"""

import asyncio
import sys
from pathlib import Path

from shoal.wire.messages import Resources, Snapshot
from shoal_executor.drivers import pool as module
from shoal_executor.drivers.heat import Budget
from shoal_executor.drivers.pool import Pool
from shoal_executor.drivers.protocol import StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver

HOST = Snapshot("host", "host")
SMALL = Resources(memory=64 * 1024**2)


async def main(place: Path) -> None:
    module._QUIET_S = 0.01  # type: ignore[misc]
    inner = ZygoteDriver(place / "state")
    driver = Pool(inner, place / "pool", Budget(4, 1 << 30))
    await driver.open(lambda *_: None)
    for number in range(2):
        names = [f"first{number}-{each}" for each in range(4)]
        async for _ in driver.start(names, StartSpec(HOST, SMALL)):
            pass
        await driver.destroy(names)
    while driver.ready < 4:
        await asyncio.sleep(0.01)
    async for _ in driver.start(("given-0", "gone-0"), StartSpec(HOST, SMALL)):
        pass
    await driver.write_file("given-0", "note", b"kept")
    await inner.destroy([driver._given["gone-0"]])
    sys.stdout.write("ready given-0 gone-0\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
