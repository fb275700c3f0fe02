"""What a cell's living nodes have together, for its scheduler."""

from collections.abc import Iterable

from shoal.wire import messages as m
from shoal.wire.bounds import MOST
from shoal_placement.core.nodes import Executor, Node

_Kind = tuple[str, tuple[tuple[str, str], ...]]
"""isolation and labels"""


def capacity_of(executors: Iterable[Executor]) -> m.CellCapacity:
    """Return the nodes that take sandboxes, as pools of those that are alike in isolation and labels.

    A pool of no nodes is what is held on drained ones of its kind: it is in flight, and takes no room of the others'.
    """
    pools: dict[_Kind, list[m.NodeSpec]] = {}
    held: dict[_Kind, list[m.Room]] = {}
    isolations: dict[str, None] = {}
    for executor in executors:
        if not executor.alive:
            continue
        isolations[executor.isolation] = None
        for node in executor.by_number:
            kind = (executor.isolation, tuple(sorted(node.spec.labels)))
            if not node.drained:
                pools.setdefault(kind, []).append(node.spec)
            elif node.held:
                held.setdefault(kind, []).append(_held(node))
    nodes = [spec for specs in pools.values() for spec in specs]
    found = tuple(
        m.Pool(isolation, labels, len(specs), _sum(specs), _largest(specs))
        for (isolation, labels), specs in sorted(pools.items())
    )
    drained = tuple(
        m.Pool(isolation, labels, 0, _together(rooms), m.Room(0))
        for (isolation, labels), rooms in sorted(held.items(), key=lambda entry: entry[0])
    )
    slots = _bounded(spec.slots for spec in nodes)
    return m.CellCapacity(slots, len(nodes), tuple(sorted(isolations)), found + drained)


def _held(node: Node) -> m.Room:
    """Return what is taken of a node."""
    spec = node.spec
    return m.Room(
        spec.slots - node.slots, spec.memory - node.memory, spec.cpu_milli - node.cpu_milli, spec.disk - node.disk
    )


def _together(rooms: Iterable[m.Room]) -> m.Room:
    rooms = list(rooms)
    return m.Room(
        _bounded(room.slots for room in rooms), _bounded(room.memory for room in rooms),
        _bounded(room.cpu_milli for room in rooms), _bounded(room.disk for room in rooms),
    )  # fmt: skip


def _sum(specs: list[m.NodeSpec]) -> m.Room:
    """Return what nodes have together; cpu and disk only where each of them counts it."""
    cpu, disk = [spec.cpu_milli for spec in specs], [spec.disk for spec in specs]
    return m.Room(
        _bounded(spec.slots for spec in specs), _bounded(spec.memory for spec in specs),
        _bounded(cpu) if all(cpu) else 0, _bounded(disk) if all(disk) else 0,
    )  # fmt: skip


def _largest(specs: list[m.NodeSpec]) -> m.Room:
    cpu, disk = [spec.cpu_milli for spec in specs], [spec.disk for spec in specs]
    return m.Room(
        max(spec.slots for spec in specs), max(spec.memory for spec in specs), max(cpu) if all(cpu) else 0,
        max(disk) if all(disk) else 0,
    )  # fmt: skip


def _bounded(amounts: Iterable[int]) -> int:
    return min(sum(amounts), MOST)
