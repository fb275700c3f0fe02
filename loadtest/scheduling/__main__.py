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

from scheduling.cell import Cell
from scheduling.measures import Measures, measure
from scheduling.report import plots, table
from scheduling.workloads import WORKLOADS

POLICIES = {
    "fair + soonest": ("fair", "soonest"),
    "fifo + soonest": ("fifo", "soonest"),
    "fifo + random": ("fifo", "random"),
}


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
    results: dict[str, dict[str, Measures]] = {}
    for workload, make in WORKLOADS.items():
        if options.only not in (None, workload):
            continue
        groups = make(slots, random.Random(options.seed))
        results[workload] = {}
        for policy, (order, placement) in POLICIES.items():
            began = time.perf_counter()
            cell = Cell(groups, options.nodes, options.slots, order, placement, options.seed)
            cell.run()
            results[workload][policy] = measure(cell, groups, slots)
            took = time.perf_counter() - began
            note = (
                f"{workload}, {policy}: {sum(len(g.durations_ms) for g in groups)} sandboxes, {cell.messages} messages"
            )
            print(f"{note}, {took:.1f} s", file=sys.stderr)
    if options.json:
        print(json.dumps({w: {p: one.as_dict() for p, one in by.items()} for w, by in results.items()}))
        return
    print(table(results))
    pictures = plots(results, options.out)
    print(f"\npicture: {pictures[0]}" if pictures else "\nno picture: pip install matplotlib draws one")


if __name__ == "__main__":
    main()
