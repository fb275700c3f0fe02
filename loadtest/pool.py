"""What a sandbox costs that was started ahead, beside one that was not, turn by turn. Needs root; gvisor needs runsc.

    python loadtest/pool.py [--rounds 20] [--driver zygote] [--json]

By the driver alone: from asking for one sandbox until it is there, and until its first command has ended. Before each
turn the pool is full again and the machine is left alone for a moment.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from shoal.wire.messages import Command, Snapshot
from shoal_executor.drivers.each import start_one
from shoal_executor.drivers.gvisor.driver import GvisorDriver
from shoal_executor.drivers.heat import Budget
from shoal_executor.drivers.pool import Pool
from shoal_executor.drivers.protocol import Driver, StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver

_HOST = Snapshot("host", "host")
_PAUSE_S = 0.4


async def one(driver: Driver, name: str) -> tuple[float, float]:
    """Return ms until the sandbox is there, and until its first command has ended; it is ended then."""
    began = time.perf_counter()
    await start_one(driver, name, StartSpec(_HOST))
    there = (time.perf_counter() - began) * 1000
    await driver.run(name, Command(("true",)))
    done = (time.perf_counter() - began) * 1000
    await driver.destroy([name])
    return there, done


async def full(pool: Pool) -> None:
    """Wait until the pool is full, and a moment longer."""
    while not pool.ready:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.01)
    await asyncio.sleep(_PAUSE_S)


async def measure(kind: str, rounds: int) -> dict[str, float]:
    """Take turns."""
    found: dict[str, list[tuple[float, float]]] = {"ahead": [], "anew": []}
    with tempfile.TemporaryDirectory(prefix="shoal-pool-") as place:
        make = GvisorDriver if kind == "gvisor" else ZygoteDriver
        plain = make(Path(place) / "plain")
        pool = Pool(make(Path(place) / "pooled"), Path(place) / "pool", Budget(1, 1 << 30))
        try:
            await plain.open(lambda *_: None)
            await pool.open(lambda *_: None)
            for number in range(2):
                await one(pool, f"hot-{number}")
            for number in range(rounds):
                await full(pool)
                found["ahead"].append(await one(pool, f"ahead-{number}"))
                await full(pool)
                found["anew"].append(await one(plain, f"anew-{number}"))
        finally:
            await pool.close()
            await plain.close()
    return {
        f"{name}_{what}_ms": statistics.median(times[at] for times in all_times)
        for name, all_times in found.items()
        for at, what in enumerate(("there", "first_command"))
    }


def main() -> None:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--driver", choices=["zygote", "gvisor"], default="zygote")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("it needs root")
    ms = asyncio.run(measure(options.driver, options.rounds))
    if options.json:
        print(json.dumps(ms))
        return
    for what in ("there", "first_command"):
        ahead, anew = ms[f"ahead_{what}_ms"], ms[f"anew_{what}_ms"]
        print(f"{what:>14}: {ahead:.2f} ms started ahead, {anew:.2f} ms not: {anew / ahead:.1f} times as long")


if __name__ == "__main__":
    main()
