"""What warm templates and forks of live sandboxes save, turn by turn against what they replace. Needs root.

    python loadtest/snapshots.py [--rounds 20] [--live 200] [--forks 200] [--json]

By the zygote driver alone: a sandbox whose interpreter has 35 modules already (forked from a warm one) against a cold
one that imports them, each to its first answer, with their memory (PSS of all their processes); the same start while
others live; and a live sandbox captured. Through the whole system: `sandbox.fork(n)`, until all of them answer.
"""

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import uvloop

import shoal
from shoal.cli.system import LocalSystem
from shoal.wire.messages import Blob, Command, Snapshot
from shoal_executor.drivers.each import start_one
from shoal_executor.drivers.heat import Budget
from shoal_executor.drivers.pool import Pool
from shoal_executor.drivers.protocol import Driver, Started, StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver
from starts import pss_mib

IMPORTS = (
    "import argparse, ast, asyncio, base64, bisect, calendar, collections, csv, datetime, decimal, difflib, email,"
    " fractions, ftplib, gzip, hashlib, html, http.client, inspect, json, logging, multiprocessing, pickle, random, re,"
    " sqlite3, ssl, statistics, string, subprocess, tarfile, threading, unittest, urllib.request, zipfile"
)
COLD = Snapshot("host", "host")
WARM = Snapshot("warm-modules", "host", warm=IMPORTS)


class Blobs:
    """Where the driver finds what was captured."""

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}

    def add(self, path: Path) -> Blob:
        """Return the blob that a file is."""
        content = path.read_bytes()
        blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
        self.paths[blob.digest] = path
        return blob

    async def path_of(self, blob: Blob) -> Path:
        """Return the file."""
        return self.paths[blob.digest]


async def to_first_answer(driver: Driver, name: str, snapshot: Snapshot) -> float:
    """Start a sandbox and have it use a module; returns ms until it has answered."""
    began = time.perf_counter()
    await start_one(driver, name, StartSpec(snapshot))
    code = f"{'' if snapshot.warm else IMPORTS + chr(10)}json.dumps({{'answer': 42}})"
    result = await driver.run(name, Command(python=code))
    if result.stdout != b"'{\"answer\": 42}'\n":
        raise SystemExit(f"the sandbox did not answer: {result.stderr.decode()}")
    return (time.perf_counter() - began) * 1000


def processes(names: list[str]) -> list[int]:
    """Return the pids of these sandboxes' processes."""
    found: list[int] = []
    for path in Path("/sys/fs/cgroup").glob("*/**/cgroup.procs"):
        if path.parent.name in names:
            found += map(int, path.read_text().split())
    return sorted(dict.fromkeys(found))


async def by_the_driver(rounds: int, live: int) -> dict[str, float]:
    """Measure on a driver of its own."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="shoal-snapshots-") as place:
        blobs = Blobs()
        driver = ZygoteDriver(Path(place) / "state", blobs)
        await driver.open(lambda *_: None)
        try:
            await driver.prepare(WARM)
            times: dict[str, list[float]] = {"warm": [], "cold": []}
            names: dict[str, list[str]] = {"warm": [], "cold": []}
            for number in range(rounds):
                for kind, snapshot in (("warm", WARM), ("cold", COLD)):
                    names[kind].append(f"{kind}-{number}")
                    times[kind].append(await to_first_answer(driver, names[kind][-1], snapshot))
            for kind in times:
                figures[f"{kind}_ms"] = statistics.median(times[kind])
                pids = processes(names[kind])
                figures[f"{kind}_mib"] = await asyncio.to_thread(pss_mib, pids) * len(pids) / rounds
            directory = Path(place) / "kept"
            captured: list[float] = []
            for number in range(rounds):
                directory.mkdir(exist_ok=True)
                await driver.run("warm-0", Command(line="head -c 100000 /dev/urandom > data"))
                began = time.perf_counter()
                kept = await driver.capture("warm-0", directory, memory=False)
                captured.append((time.perf_counter() - began) * 1000)
                kept.layer.rename(directory / f"layer-{number}")
            figures["capture_ms"] = statistics.median(captured)
            await driver.destroy([name for kind in names.values() for name in kind])
            many = [f"many-{number}" for number in range(live)]
            async for outcome in driver.start(many, StartSpec(WARM)):
                if not isinstance(outcome, Started):
                    raise SystemExit(f"a start failed: {outcome.detail}")
            crowded = [await to_first_answer(driver, f"crowded-{number}", WARM) for number in range(rounds)]
            figures[f"warm_ms_with_{live}_live"] = statistics.median(crowded)
            pids = processes(many)
            figures[f"warm_mib_with_{live}_live"] = await asyncio.to_thread(pss_mib, pids) * len(pids) / live
        finally:
            await driver.close()
        figures["warm_ahead_ms"] = await started_ahead(Path(place) / "ahead", rounds)
    return figures


async def started_ahead(place: Path, rounds: int) -> float:
    """Return the median ms to the first answer of a warm sandbox that the executor's pool had ready."""
    pool = Pool(ZygoteDriver(place / "state"), place / "pool", Budget(1, 1 << 30))
    times: list[float] = []
    try:
        await pool.open(lambda *_: None)
        for number in range(rounds + 2):
            while number > 1 and not pool.ready:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
            times.append(await to_first_answer(pool, f"ahead-{number}", WARM))
            await pool.destroy([f"ahead-{number}"])
    finally:
        await pool.close()
    return statistics.median(times[2:])


async def through_the_system(forks: int) -> dict[str, float]:
    """Fork a live sandbox on a system of its own."""
    with tempfile.TemporaryDirectory(prefix="shoal-snapshots-") as place:
        async with LocalSystem(Path(place), port=0) as system, shoal.connect(system.url) as cluster:
            async with cluster.rollout("host", warm=f"{IMPORTS}\ncount = 41", timeout="10m") as rollout:
                async for parent in rollout.ready():
                    await parent.run("echo kept > note")
                    began = time.perf_counter()
                    children = await parent.fork(forks)
                    started = time.perf_counter() - began
                    code = "count += 1\ncount, open('note').read()"
                    said = await asyncio.gather(*(child.python(code) for child in children))
                    answered = time.perf_counter() - began
                    if {result.stdout for result in said} != {"(42, 'kept\\n')\n"}:
                        raise SystemExit(f"a fork is not what its parent was: {said[0]}")
                    await children[0].rollout.release()
    return {f"{forks}_forks_started_s": started, f"{forks}_forks_answered_s": answered}


async def measure(rounds: int, live: int, forks: int) -> dict[str, float]:
    """Measure both."""
    return {**await by_the_driver(rounds, live), **await through_the_system(forks)}


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--live", type=int, default=200, help="sandboxes that live while another starts")
    parser.add_argument("--forks", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if min(options.rounds, options.live, options.forks) < 1:
        parser.error("--rounds, --live and --forks take 1 or more")
    if os.geteuid() != 0:
        parser.error("snapshots of live sandboxes need root")
    figures = uvloop.run(measure(options.rounds, options.live, options.forks))
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:>28}  {value:.2f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
