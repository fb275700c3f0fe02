"""Policies side by side, on four workloads and simulated nodes.

    PYTHONPATH=loadtest python -m scheduling [--nodes 1000] [--slots 8] [--seed 1] [--out DIRECTORY] [--json]

The cores are the real ones; messages take 1 ms from service to service; nodes start one sandbox after the other, in
12 ms in the median (one in a hundred nodes twenty times as slow). A table goes to stdout, a picture into DIRECTORY.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import msgspec

from scheduling.measures import Result, result
from scheduling.report import plots, table
from scheduling.workloads import WORKLOADS, Load
from shoal.replay.demand import Demand, Group, Machine
from shoal.replay.services import services
from shoal.replay.simulating import Simulation
from shoal.wire import messages as m

POLICIES = {
    "fair + soonest": ("fair", "soonest"),
    "fifo + soonest": ("fifo", "soonest"),
    "fifo + random": ("fifo", "random"),
}

MEMORY = 2**30


def demand(loads: list[Load], nodes: int, slots: int, order: str, policy: str, seed: int) -> Demand:
    """Return a cell of so many nodes, and what is asked of it."""
    source = random.Random(seed)
    machines = tuple(
        Machine(
            f"e{number}", 0, "simulated", (m.NodeSpec(f"n{number}", slots, slots * MEMORY),), 1000 / 12,
            source.lognormvariate(2.5, 0.4) * (20 if number % 100 == 99 else 1), spread=0.2,  # some are slow
        )
        for number in range(nodes)
    )  # fmt: skip
    spec = m.RolloutSpec("host", 1, (m.Command(("true",)),), m.Resources(memory=MEMORY), timeout_ms=86_400_000)
    groups = tuple(
        Group(load.at_ms + 100, f"r{number}", load.tenant, load.run, 0,
              msgspec.structs.replace(spec, n=len(load.durations_ms)), load.durations_ms)
        for number, load in enumerate(loads)
    )  # fmt: skip
    return Demand(groups, machines, settings={"scheduler": {"order": order}, "placement": {"policy": policy}})


def main() -> None:
    """Parse the options, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=8, help="of each node")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=list(WORKLOADS), help="one workload")
    parser.add_argument("--out", type=Path, default=Path("loadtest-out"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if min(options.nodes, options.slots) < 1 or options.nodes * options.slots < 256:
        parser.error("--nodes and --slots: give at least 256 slots in all")
    slots = options.nodes * options.slots
    results: dict[str, dict[str, Result]] = {}
    for workload, make in WORKLOADS.items():
        if options.only not in (None, workload):
            continue
        loads = make(slots, random.Random(options.seed))
        results[workload] = {}
        for policy, (order, placement) in POLICIES.items():
            began = time.perf_counter()
            asked = demand(loads, options.nodes, options.slots, order, placement, options.seed)
            simulation = Simulation(asked, services(), options.seed)
            results[workload][policy] = result(simulation.run(), loads, slots)
            took = time.perf_counter() - began
            count = sum(len(load.durations_ms) for load in loads)
            note = f"{workload}, {policy}: {count} sandboxes, {simulation.messages} messages"
            print(f"{note}, {took:.1f} s", file=sys.stderr)
    if options.json:
        print(json.dumps({w: {p: one.as_dict() for p, one in by.items()} for w, by in results.items()}))
        return
    print(table(results))
    pictures = plots(results, options.out)
    print(f"\npicture: {pictures[0]}" if pictures else "\nno picture: pip install matplotlib draws one")


if __name__ == "__main__":
    main()
