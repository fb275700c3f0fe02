"""What replay takes over a large history: verifying it, any past state of it, with checkpoints and without.

    python loadtest/replays.py [--sandboxes 1000000] [--moments 5] [--archive ARCHIVE] [--json]

Brings a system with 1,000 simulated nodes up, archives it without end meanwhile (`shoal archive follow`), and runs
rollouts of 256 until so many sandboxes are through; or looks at an archive there is. Every recorded inbox is folded
through the present code and every effect compared. Then the scheduler's state is rebuilt at random past moments, with
the archive's checkpoints and without: both must be equal. And where the leader saved its state while it was live, the
state rebuilt from the log alone must be the same, byte for byte.
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

import shoal
import shoal.archive
from recovery import fill, say
from shoal.archive.source import History
from shoal.cli.system import LocalSystem
from shoal.replay.rebuilding import rebuild
from shoal.replay.services import services
from shoal.replay.verifying import verify


async def make(sandboxes: int, place: Path, state: Path) -> None:
    """Have so many sandboxes go through a system, archived in a directory meanwhile."""
    async with LocalSystem(state, port=0, driver="simulated", nodes=1000, tell=say) as system:
        command = [sys.executable, "-m", "shoal.cli", "archive", "follow", "--to", str(place), "--url", system.url]
        follower = subprocess.Popen([*command, "--every", "1s"], stderr=subprocess.DEVNULL)
        try:
            async with shoal.connect(system.url) as cluster:
                await fill(cluster, sandboxes)
            await asyncio.sleep(70)  # the leaders save their states once a minute at the latest
        finally:
            follower.send_signal(signal.SIGINT)
            await asyncio.to_thread(follower.wait, 60)


async def states(history: History, moments: int) -> dict[str, Any]:
    """Rebuild the scheduler's state at random past moments; returns how long that took, and how it compares."""
    scheduler, source = services()["scheduler"], random.Random(1)
    _, last = await history.bounds(scheduler.stream(0))
    took: dict[bool, list[float]] = {True: [], False: []}
    equal = 0
    for _ in range(moments):
        at, dumps = source.randint(1, last), []
        for checkpoints in (True, False):
            began = time.perf_counter()
            found = await rebuild(history, scheduler, 0, sequence=at, checkpoints=checkpoints)
            took[checkpoints].append(time.perf_counter() - began)
            dumps.append(found.core.dump())
        equal += dumps[0] == dumps[1]
    live = same = 0
    for service in services().values():
        async for saved in history.states(service.partition(0)):
            if saved.version == service.make(0, 1).state_version:
                found = await rebuild(history, service, 0, sequence=saved.sequence, checkpoints=False)
                live, same = live + 1, same + (found.core.dump() == saved.state)
    with_, without = sorted(took[True]), sorted(took[False])
    return {
        "messages": last, "moments": moments, "equal": equal, "live_states": live, "as_live": same,
        "with_checkpoints_s": round(with_[len(with_) // 2], 2), "without_s": round(without[len(without) // 2], 2),
    }  # fmt: skip


async def look(archive: Path, moments: int) -> dict[str, Any]:
    """Verify an archive and rebuild states of it."""
    async with shoal.archive.open(archive, damaged=True) as history:
        began = time.perf_counter()
        found = await verify(history, services())
        seconds = time.perf_counter() - began
        if found.divergence is not None:
            raise SystemExit(found.divergence.what)
        folded = sum(found.folded.values())
        return {
            "folded": folded, "compared": sum(found.compared.values()), "verify_s": round(seconds, 2),
            "folds_per_s": round(folded / seconds), **await states(history, moments),
        }  # fmt: skip


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Do all of it; returns what was found."""
    if options.archive is not None:
        return await look(options.archive, options.moments)
    with tempfile.TemporaryDirectory(prefix="shoal-replay-") as directory:
        place = Path(directory) / "log"
        await make(options.sandboxes, place, Path(directory) / "state")
        return {"sandboxes": options.sandboxes, **await look(place, options.moments)}


def main() -> None:
    """Measure and print; not zero where two states that must be equal are not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sandboxes", type=int, default=1_000_000)
    parser.add_argument("--moments", type=int, default=5)
    parser.add_argument("--archive", type=Path, help="an archive there is, instead")
    parser.add_argument("--json", action="store_true")
    found = uvloop.run(run(parser.parse_args()))
    if "--json" in sys.argv:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name.replace('_', ' '):20} {value:,}")
    sys.exit(0 if found["equal"] == found["moments"] and found["as_live"] == found["live_states"] else 1)


if __name__ == "__main__":
    main()
