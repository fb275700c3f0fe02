"""What more cells cost and bring on one machine: simulated nodes, all services and the broker on the same cores.

    python loadtest/cells.py [--cells 1 2 4 8] [--nodes 1000] [--rollouts 64] [--n 500] [--json]

For each number of cells a system of its own: sandboxes started, run and ended a second, from the first submission to
the last result, and the cpu that services, executors and broker used for each. The nodes are divided over the cells.
Then a tenant with a quota asks for much more: `over` is by how much what ran at once went beyond the quota, `under` how
much of it stayed unused because each cell keeps an equal part of it.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import uvloop

import shoal
from shoal.cli import statefile
from shoal.cli.system import LocalSystem
from shoal.turns import used_s

QUOTA = 1_000


def cpu_s(state: Path) -> float:
    """Return the cpu time of all processes of a system, in seconds."""
    running = statefile.read(state)
    return sum(used_s(int(service["pid"])) for service in (running.services.values() if running else ()))


async def held(cluster: shoal.Cluster) -> tuple[int, int]:
    """Return by how much a quota was exceeded, and how much of it was not used, once nothing changes any more."""
    await cluster.limit_tenant("limited", shoal.Limits(sandboxes=QUOTA))
    rollouts = [await cluster.rollout("host", n=50, run=f"quota{number}") for number in range(64)]
    ready, most = -1, 0
    while True:
        await asyncio.sleep(1)
        before, ready = ready, sum(rollout.status().ready for rollout in rollouts)
        most = max(most, ready)
        if ready == before:
            break
    for rollout in rollouts:
        await rollout.cancel()
    return max(most - QUOTA, 0), QUOTA - ready


async def measure(cells: int, nodes: int, rollouts: int, n: int) -> dict[str, float]:
    """Measure a cluster of so many cells."""
    with tempfile.TemporaryDirectory(prefix="shoal-cells-") as directory:
        state = Path(directory) / "state"
        async with LocalSystem(state, port=0, cells=cells, driver="simulated", nodes=nodes) as system:
            async with shoal.connect(system.url) as cluster:
                await cluster.map("host", ["true"] * 100)
                used, began = cpu_s(state), time.perf_counter()
                asked = [
                    await cluster.rollout("host", n=n, run=f"u{number % 8}", command="true")
                    for number in range(rollouts)
                ]
                summaries = [await rollout.wait() for rollout in asked]
                took, used = time.perf_counter() - began, cpu_s(state) - used
            async with shoal.connect(system.url, tenant="limited") as cluster:
                over, under = await held(cluster)
    total = rollouts * n
    if sum(summary.succeeded for summary in summaries) != total:
        raise SystemExit(f"not all of {total} sandboxes succeeded")
    return {"cells": cells, "a_second": total / took, "cpu_us": used / total * 1e6, "over": over, "under": under}


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if min(*options.cells, options.nodes, options.rollouts, options.n, 10**9) < 1:
        parser.error("give 1 or more of each")
    print(f"{'cells':>6} {'a second':>9} {'cpu us':>7} {'over':>6} {'under':>6}") if not options.json else None
    for cells in options.cells:
        found = uvloop.run(measure(cells, options.nodes, options.rollouts, options.n))
        if options.json:
            print(json.dumps(found), flush=True)
        else:
            print(
                f"{cells:>6} {found['a_second']:>9.0f} {found['cpu_us']:>7.0f} {found['over']:>6} {found['under']:>6}",
                flush=True,
            )


if __name__ == "__main__":
    main()
