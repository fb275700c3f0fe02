"""What a cell's living nodes have together, for its scheduler."""

from collections.abc import Iterable

from shoal.wire import messages as m
from shoal_placement.core.nodes import Executor


def capacity_of(executors: Iterable[Executor]) -> m.CellCapacity:
    """Return the nodes that take sandboxes, as pools of those that are alike in isolation and labels."""
    pools: dict[tuple[str, tuple[tuple[str, str], ...]], list[m.NodeSpec]] = {}
    isolations: dict[str, None] = {}
    for executor in executors:
        if not executor.alive:
            continue
        isolations[executor.isolation] = None
        for node in executor.by_number:
            if not node.drained:
                pools.setdefault((executor.isolation, tuple(sorted(node.spec.labels))), []).append(node.spec)
    nodes = [spec for specs in pools.values() for spec in specs]
    found = tuple(
        m.Pool(isolation, labels, len(specs), _sum(specs), _largest(specs))
        for (isolation, labels), specs in sorted(pools.items())
    )
    return m.CellCapacity(sum(spec.slots for spec in nodes), len(nodes), tuple(sorted(isolations)), found)


def _sum(specs: list[m.NodeSpec]) -> m.Room:
    """Return what nodes have together; cpu and disk only where each of them counts it."""
    cpu, disk = [spec.cpu_milli for spec in specs], [spec.disk for spec in specs]
    return m.Room(
        sum(spec.slots for spec in specs), sum(spec.memory for spec in specs), sum(cpu) if all(cpu) else 0,
        sum(disk) if all(disk) else 0,
    )  # fmt: skip


def _largest(specs: list[m.NodeSpec]) -> m.Room:
    cpu, disk = [spec.cpu_milli for spec in specs], [spec.disk for spec in specs]
    return m.Room(
        max(spec.slots for spec in specs), max(spec.memory for spec in specs), max(cpu) if all(cpu) else 0,
        max(disk) if all(disk) else 0,
    )  # fmt: skip
