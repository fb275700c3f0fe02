"""How fast the zygote driver alone starts, runs and ends sandboxes, without any of Shoal around it.

    python loadtest/starts.py [--n 256] [--rounds 3] [--json]

Prints medians: one start at a time, one `true` in a live sandbox, n starts at once (as a rate), one start while n are
live, and the memory of a sandbox (its share of all pages, PSS, of its first process). As root it has all limits on.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import uvloop

from shoal.wire.messages import Command, Snapshot
from shoal_executor.drivers.protocol import Started, StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver

HOST = Snapshot("host", "host")


async def start(driver: ZygoteDriver, names: list[str]) -> float:
    """Start sandboxes at once; returns ms until the last is up."""
    began = time.perf_counter()
    outcomes = [outcome async for outcome in driver.start(names, StartSpec(HOST))]
    for outcome in outcomes:
        if not isinstance(outcome, Started):
            raise SystemExit(f"a start failed: {outcome.detail}")
    return (time.perf_counter() - began) * 1000


async def one_by_one(driver: ZygoteDriver, stem: str) -> tuple[float, float, float]:
    """Return median ms of a start, of a `true` in it, and of its end, with 20 ms of rest between."""
    starts, commands, ends = [], [], []
    for number in range(30):
        name = f"{stem}-{number}"
        starts.append(await start(driver, [name]))
        began = time.perf_counter()
        await driver.run(name, Command(("true",)))
        commands.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        await driver.destroy([name])
        ends.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.02)
    return statistics.median(starts), statistics.median(commands), statistics.median(ends)


def first_processes() -> list[int]:
    """Return the pids of all sandboxes' first processes on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().rstrip(b"\0") == b"shoal":
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def pss_mib(pids: list[int]) -> float:
    """Return the mean proportional memory of processes, in MiB."""
    sizes = []
    for pid in pids:
        fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
        sizes.append(int(fields["Pss"].split()[0]) / 1024)
    return statistics.mean(sizes)


async def measure(n: int, rounds: int) -> dict[str, float]:
    """Measure on a driver of its own."""
    with tempfile.TemporaryDirectory(prefix="shoal-starts-") as state:
        driver = ZygoteDriver(Path(state))
        await driver.open(lambda *_: None)
        try:
            start_ms, true_ms, end_ms = await one_by_one(driver, "idle")
            rates = []
            for turn in range(rounds):
                names = [f"burst{turn}-{number}" for number in range(n)]
                rates.append(n / await start(driver, names) * 1000)
                if turn == rounds - 1:
                    crowded_ms, *_ = await one_by_one(driver, "crowded")
                    memory = pss_mib(await asyncio.to_thread(first_processes))
                await driver.destroy(names)
        finally:
            await driver.close()
    return {
        "start_ms": start_ms,
        "true_ms": true_ms,
        "end_ms": end_ms,
        "starts_per_s": statistics.median(rates),
        f"start_ms_with_{n}_live": crowded_ms,
        "pss_mib": memory,
    }


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=256, help="sandboxes at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.n < 1 or options.rounds < 1:
        parser.error("--n and --rounds take 1 or more")
    figures = uvloop.run(measure(options.n, options.rounds))
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:>24}  {value:.2f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
