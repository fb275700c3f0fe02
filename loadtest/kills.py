"""100,000 sandboxes while every process of the system is killed in turn: all conclude, each exactly once.

    python loadtest/kills.py [--sandboxes 100000] [--seconds 60] [--every 2] [--brokers 1|3] [--replicas 1] [--json]
                             [--archive FILE.shoal]

Simulated nodes (1,000 in one executor). Rollouts of 250 are submitted evenly over the time, `on_lost="restart"`, while
scheduler, placement, snapshot, executor and each broker are killed (kill -9) in turn. At the end what the trainer got
is compared with what it asked for, and with the log. The pause is the longest time in which the trainer heard of no
result though it waited for some.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop

import shoal
from shoal.cli import statefile
from shoal.cli.system import LocalSystem
from shoal.runtime.logs import set_up_logs
from shoal.runtime.options import Settings
from shoal.runtime.process import connect_patiently
from shoal.wire import streams
from shoal.wire.codec import decode
from shoal.wire.messages import RolloutConcluded

GROUP = 250
SERVICES = ("scheduler", "placement", "snapshot", "executor")


def say(text: str) -> None:
    """Tell a person."""
    print(text, file=sys.stderr, flush=True)


class Trainer:
    """Asks for rollouts, and notes every outcome it gets."""

    def __init__(self, cluster: shoal.Cluster) -> None:
        self._cluster = cluster
        self._heard = time.perf_counter()
        self._waiting = 0
        self.got: dict[str, list[shoal.SandboxOutcome]] = {}
        self.longest_pause_s = 0.0
        self.asked = 0

    async def one(self) -> None:
        """Run one rollout to its end."""
        rollout = await self._cluster.rollout(
            "host", n=GROUP, command="work", timeout="10m", on_lost="restart", max_attempts=50, run="kills"
        )
        outcomes = self.got.setdefault(rollout.id, [])
        self._begin(GROUP)
        async for outcome in rollout.outcomes():
            outcomes.append(outcome)
            self._hear()
        await rollout.wait()

    def _begin(self, count: int) -> None:
        if not self._waiting:
            self._heard = time.perf_counter()
        self._waiting += count
        self.asked += count

    def _hear(self) -> None:
        now = time.perf_counter()
        self.longest_pause_s = max(self.longest_pause_s, now - self._heard)
        self._heard = now
        self._waiting -= 1

    @property
    def heard(self) -> int:
        """How many outcomes came."""
        return sum(map(len, self.got.values()))


async def kill(state: Path, seconds: float, every: float, killed: Counter[str]) -> None:
    """Kill every process in turn."""
    until = time.perf_counter() + seconds
    turn = 0
    while time.perf_counter() < until:
        await asyncio.sleep(every)
        running = statefile.read(state)
        assert running is not None
        groups = [[name for name in running.services if name.split("-")[0] == kind] for kind in (*SERVICES, "broker")]
        victims = groups[turn % len(groups)]
        name = victims[turn // len(groups) % len(victims)]
        turn += 1
        pid = running.services[name]["pid"]
        if isinstance(pid, int):
            try:
                os.kill(pid, signal.SIGKILL)
                killed[name] += 1
            except ProcessLookupError:
                say(f"{name} was just away")


async def concluded(url: str) -> Counter[str]:
    """Return how often the log says that each rollout was concluded."""
    bus = await connect_patiently(Settings(url), "kills", asyncio.Event())  # the last one killed may be a broker
    assert bus is not None
    log = streams.rollout(0).name
    last = await bus.last_sequence(log)
    reader = await bus.reader(log)
    found: Counter[str] = Counter()
    at = 0
    while at < last:
        for delivery in await reader.batch(4096):
            message = decode(delivery.payload)
            at = delivery.sequence
            if isinstance(message, RolloutConcluded):
                found[message.rollout] += 1
    await bus.close()
    return found


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Do all of it; returns what was found."""
    killed: Counter[str] = Counter()
    rollouts = options.sandboxes // GROUP
    with tempfile.TemporaryDirectory(prefix="shoal-kills-") as directory:
        state = Path(directory)
        system = LocalSystem(
            state, port=0, driver="simulated", nodes=1000, brokers=options.brokers, replicas=options.replicas
        )
        async with system, shoal.connect(system.url) as cluster:
            trainer = Trainer(cluster)
            began = time.perf_counter()
            killing = asyncio.create_task(kill(state, options.seconds, options.every, killed))
            async with asyncio.TaskGroup() as group:
                for number in range(rollouts):
                    group.create_task(trainer.one())
                    if number % 40 == 39:
                        say(f"{trainer.asked:,} asked, {trainer.heard:,} heard of, killed {killed.total()}")
                    until = began + (number + 1) * options.seconds / rollouts
                    await asyncio.sleep(max(until - time.perf_counter(), 0))
                await killing
            seconds = time.perf_counter() - began
            ends = await concluded(system.url)
            if options.archive:
                command = [sys.executable, "-m", "shoal.cli", "export", "-o", options.archive, "--url", system.url]
                await asyncio.to_thread(subprocess.run, command, check=True, timeout=600)
    doubled = sum(len(outcomes) - len({each.index for each in outcomes}) for outcomes in trainer.got.values())
    missing = sum(GROUP - len({each.index for each in outcomes}) for outcomes in trainer.got.values())
    return {
        "sandboxes": trainer.asked, "seconds": round(seconds, 1), "brokers": options.brokers,
        "replicas": options.replicas, "killed": dict(killed), "missing": missing, "doubled": doubled,
        "not_succeeded": sum(each.reason != "succeeded" for outcomes in trainer.got.values() for each in outcomes),
        "started_again": sum(each.attempt > 0 for outcomes in trainer.got.values() for each in outcomes),
        "rollouts": len(trainer.got), "concluded_once": sum(ends[name] == 1 for name in trainer.got),
        "longest_pause_s": round(trainer.longest_pause_s, 2),
    }  # fmt: skip


def main() -> None:
    """Measure and print; not zero when anything was lost or doubled."""
    set_up_logs("kills", "error")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sandboxes", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--archive", metavar="FILE.shoal", help="keep the whole log, for `shoal replay verify`")
    parser.add_argument("--json", action="store_true")
    found = uvloop.run(run(parser.parse_args()))
    if "--json" in sys.argv:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name.replace('_', ' '):16} {value}")
    right = not found["missing"] and not found["doubled"] and not found["not_succeeded"]
    sys.exit(0 if right and found["concluded_once"] == found["rollouts"] else 1)


if __name__ == "__main__":
    main()
