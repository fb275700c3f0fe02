"""How well what-if foretells: a bursty run is recorded, run once more for real with another policy, and compared.

    python loadtest/whatif.py [--bursts 4] [--groups 12] [--n 64] [--nodes 24] [--slots 16] [--policy random] [--json]

Both runs are of simulated nodes (a start takes 200 ms in the median, each sandbox 1 to 3 s), with real services and a
real broker: the first with the default policies, the second with `--policy` for placement and first come, first
served. Predicted is what `shoal replay whatif` makes of the first one's recording with the second one's policies.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop

import shoal
from shoal.archive.live import LiveHistory
from shoal.bus.jetstream import JetStreamBus
from shoal.cli.system import LocalSystem
from shoal.replay.changes import changed
from shoal.replay.course import Measures, measure
from shoal.replay.recorded import Recording, read
from shoal.replay.services import services
from shoal.replay.simulating import Simulation

GAP_S = 6.0


async def bursts(url: str, options: argparse.Namespace) -> None:
    """Ask for bursts of groups, and wait until all are done."""
    async with shoal.connect(url, tenant="a") as one, shoal.connect(url, tenant="b") as other:
        loop = asyncio.get_running_loop()
        began, asked = loop.time(), []

        async def ask(number: int, at: float) -> None:
            await asyncio.sleep(max(at - loop.time(), 0))
            cluster = (one, other)[number % 3 == 0]
            rollout = await cluster.rollout("host", n=options.n, run=f"u{number % 2}", command="work")
            await rollout.wait(300)

        for burst in range(options.bursts):
            asked += [
                asyncio.create_task(ask(number, began + burst * GAP_S + number * 0.02))
                for number in range(options.groups)
            ]
        await asyncio.gather(*asked)


async def recorded(options: argparse.Namespace, order: str, policy: str) -> Recording:
    """Run it for real with these policies; returns the recording."""
    with tempfile.TemporaryDirectory(prefix="shoal-whatif-") as directory:
        system = LocalSystem(
            Path(directory) / "state", port=0, driver="simulated", nodes=options.nodes, slots=options.slots,
            executor_options=["--start-ms", "200", "--command-ms", "2000"], executors=options.executors,
        )  # fmt: skip
        os.environ |= {"SHOAL_ORDER": order, "SHOAL_POLICY": policy}
        async with system:
            await bursts(system.url, options)
            bus = await JetStreamBus.connect(system.url)
            found = await read(LiveHistory(bus))
            await bus.close()
            return found


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Record, predict, run for real; returns all three."""
    first = await recorded(options, "fair", "soonest")
    other = changed(first.demand, ["scheduler.order=fifo", f"placement.policy={options.policy}"])
    real = measure((await recorded(options, "fifo", options.policy)).course)
    measures: dict[str, Measures] = {
        "recorded": measure(first.course),
        "simulated": measure(Simulation(first.demand, services()).run()),
        "predicted": measure(Simulation(other, services()).run()),
        "real": real,
    }
    found: dict[str, Any] = {name: each.as_dict() for name, each in measures.items()}
    found["error"] = {
        key: round(found["predicted"][key] / found["real"][key] - 1, 3)
        for key in ("full_p50_s", "full_p99_s", "makespan_s", "waited_gpu_s")
    }
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bursts", type=int, default=4)
    parser.add_argument("--groups", type=int, default=12, help="in a burst")
    parser.add_argument("--n", type=int, default=64, help="sandboxes in a group")
    parser.add_argument("--nodes", type=int, default=24)
    parser.add_argument("--executors", type=int, default=4, help="processes that serve the nodes")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--policy", default="random")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = uvloop.run(run(options))
    if options.json:
        print(json.dumps(found))
        return
    names = ("recorded", "simulated", "predicted", "real")
    print(f"{'':14}" + "".join(f"{name:>12}" for name in names) + f"{'error':>9}", file=sys.stdout)
    for key in ("full_p50_s", "full_p99_s", "makespan_s", "waited_gpu_s", "utilisation"):
        error = f"{found['error'][key]:+.1%}" if key in found["error"] else ""
        print(f"{key:14}" + "".join(f"{found[name][key]:12.3f}" for name in names) + f"{error:>9}")


if __name__ == "__main__":
    main()
