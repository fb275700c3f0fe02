"""What it costs to place a group of 256 sandboxes, among how many nodes.

    python loadtest/placement.py [--nodes 100 1000 10000] [--groups 20] [--json]

The placement core alone, one executor for each node: medians of the time for one request, in microseconds, for a group
that may be anywhere, one that starts from a snapshot that some nodes hold, and one spread over eight zones. `first` is
the first of its kind: an index is made for it then, with a look at every node.
"""

import argparse
import json
import statistics
import time

from shoal.machine.core import Cause, Effect, Publish
from shoal.wire import messages as m
from shoal_placement.core.placement import PlacementCore

GIB = 2**30
HOST = m.Snapshot("host", "host")
DISK = m.Snapshot("disk", "disk", disks=(m.Blob("disk", 10**8),))
KINDS = {"anywhere": (HOST, ""), "snapshot": (DISK, ""), "spread": (HOST, "zone")}


class Placement:
    """A core with so many nodes."""

    def __init__(self, nodes: int) -> None:
        self.core = PlacementCore(0)
        self.now = 1_000
        for number in range(nodes):
            spec = m.NodeSpec(f"n{number}", 64, 64 * GIB, (("zone", f"z{number % 8}"),))
            self.handle(m.ExecutorJoined(f"e{number}", "b", "zygote", (spec,)))

    def handle(self, message: m.AnyMessage) -> list[Effect]:
        """Fold one message."""
        self.now += 1
        return list(self.core.handle(message, Cause("S", self.now, self.now)))

    def group(self, name: str, snapshot: m.Snapshot, spread_over: str) -> tuple[float, int]:
        """Place 256 and let them go again; returns microseconds of placing, and how many orders it took."""
        spec = m.RolloutSpec("host", 256, spread_over=spread_over)
        request = m.PlaceRequested(name, "t", "u", 0, 0, ((0, 256),), spec, snapshot, 10**12)
        began = time.perf_counter()
        effects = self.handle(request)
        took = (time.perf_counter() - began) * 1e6
        orders = [each.message for each in effects if isinstance(each, Publish)]
        for order in orders:
            if isinstance(order, m.StartSandboxes):
                self.handle(m.SlotsReleased(f"e{order.node[1:]}", "b", order.node, name, 0, order.indices))
        self.now += 5_000
        return took, len(orders)


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--groups", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if min(*options.nodes, options.groups, 10**9) < 1:
        parser.error("--nodes and --groups take 1 or more")
    found = []
    for nodes in options.nodes:
        placement = Placement(nodes)
        for kind, (snapshot, spread) in KINDS.items():
            first, orders = placement.group(f"{kind}-first", snapshot, spread)
            times = [placement.group(f"{kind}-{number}", snapshot, spread)[0] for number in range(options.groups)]
            median = statistics.median(times)
            found.append({"nodes": nodes, "kind": kind, "us": median, "first_us": first, "orders": orders})
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'nodes':>7} {'group':10} {'us':>8} {'first us':>9} {'orders':>7}")
    for each in found:
        print(f"{each['nodes']:>7} {each['kind']:10} {each['us']:>8.0f} {each['first_us']:>9.0f} {each['orders']:>7}")


if __name__ == "__main__":
    main()
