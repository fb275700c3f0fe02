"""How long a scheduler with a long past is away: kill -9 and restart, with a checkpoint and without.

    python loadtest/recovery.py [--sandboxes 1000000] [--json]

Brings a system with 1,000 simulated nodes up, runs rollouts of 256 until so many sandboxes are through, then kills the
scheduler once with its checkpoints deleted and once with them. "Away" is from the kill until a rollout submitted at the
kill is done; the supervisor's pause before it starts the process again is in it. What was folded, and how fast, is what
the new process says in its log.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

import shoal
from shoal.bus.jetstream import JetStreamBus
from shoal.cli import statefile
from shoal.cli.system import LocalSystem
from shoal.runtime.checkpoints import Checkpoints
from shoal.wire import streams

GROUP = 256
AT_ONCE = 16


def say(text: str) -> None:
    """Tell a person."""
    print(text, file=sys.stderr, flush=True)


async def fill(cluster: shoal.Cluster, sandboxes: int) -> float:
    """Run rollouts until so many sandboxes are through; returns how many a second."""
    began = told = time.perf_counter()
    through = 0
    room = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        nonlocal through
        async with room:
            rollout = await cluster.rollout("host", n=GROUP, command="work", timeout="1h", run="fill")
            summary = await rollout.wait()
            assert summary.succeeded == GROUP, summary
            through += GROUP

    async with asyncio.TaskGroup() as group:
        for _ in range(-(-sandboxes // GROUP)):
            await room.acquire()
            room.release()
            group.create_task(one())
            if time.perf_counter() - told > 5:
                told = time.perf_counter()
                say(f"{through:,} sandboxes through, {through / (told - began):,.0f} a second")
    return through / (time.perf_counter() - began)


def scheduler(state: Path) -> int:
    """Return the scheduler's pid."""
    running = statefile.read(state)
    assert running is not None
    return int(running.services["scheduler"]["pid"])


def last_said(state: Path, event: str) -> dict[str, Any]:
    """Return the newest line of this kind in the scheduler's log."""
    lines = [json.loads(line) for line in (state / "log" / "scheduler.log").read_text().splitlines()]
    found: dict[str, Any] = [line for line in lines if line.get("event") == event][-1]
    return found


async def away(cluster: shoal.Cluster, state: Path) -> dict[str, float]:
    """Kill the scheduler; returns how long it was away, and what it folded when it came back."""
    os.kill(scheduler(state), signal.SIGKILL)
    began = time.perf_counter()
    rollout = await cluster.submit("host", n=1, command="work", run="after")
    await (await cluster.attach(rollout, run="after")).wait()
    seconds = time.perf_counter() - began
    said = last_said(state, "caught up")
    replayed, recovery = int(said["replayed"]), float(said["recovery_s"])
    return {
        "away_s": round(seconds, 3), "recovery_s": recovery, "folded": replayed,
        "folded_per_s": round(replayed / recovery) if recovery else 0,
    }  # fmt: skip


async def run(sandboxes: int) -> dict[str, Any]:
    """Fill a log, then measure both ways back."""
    with tempfile.TemporaryDirectory(prefix="shoal-recovery-") as directory:
        state = Path(directory)
        async with LocalSystem(state, port=0, driver="simulated", nodes=1000, tell=say) as system:
            async with shoal.connect(system.url) as cluster:
                rate = await fill(cluster, sandboxes)
            bus = await JetStreamBus.connect(system.url)
            async with shoal.connect(system.url) as cluster:
                last = await bus.last_sequence(streams.rollout(0).name)
                checkpoints = Checkpoints(bus, "scheduler.0")
                say(f"{last:,} messages in the log; waiting for a checkpoint of all of it")
                kept = (await checkpoints.manifest())[0].generations
                while not kept or kept[0].sequence < last:
                    await asyncio.sleep(0.5)
                    kept = (await checkpoints.manifest())[0].generations
                with_checkpoint = await away(cluster, state)
                size = kept[0].bytes
                for key in await bus.keys(streams.CHECKPOINT_BUCKET):
                    if key.startswith("scheduler."):
                        await bus.delete(streams.CHECKPOINT_BUCKET, key)
                without = await away(cluster, state)
            await bus.close()
    return {
        "sandboxes": sandboxes, "messages": last, "sandboxes_per_s": round(rate), "checkpoint_bytes": size,
        "with_checkpoint": with_checkpoint, "without": without,
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sandboxes", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = uvloop.run(run(options.sandboxes))
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['sandboxes']:,} sandboxes, {found['messages']:,} messages, {found['sandboxes_per_s']:,} sandboxes/s")
    print(f"a checkpoint takes {found['checkpoint_bytes'] / 1e6:.2f} MB")
    print(f"{'':20} {'away':>8} {'recovery':>9} {'folded':>10} {'folded/s':>10}")
    for name, title in (("with_checkpoint", "with checkpoint"), ("without", "without")):
        one = found[name]
        print(
            f"{title:20} {one['away_s']:7.2f}s {one['recovery_s']:8.2f}s {one['folded']:10,} {one['folded_per_s']:10,}"
        )


if __name__ == "__main__":
    main()
