"""What a cell's living nodes have together, for its scheduler."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from shoal.wire import messages as m
from shoal_placement.core.nodes import Executor, Node

_MOST: Final = 2**63 - 1
"""What a message can say."""


@dataclass(slots=True)
class _Pool:
    """Nodes that are alike. Of drained ones what is held there counts, since it is in flight, and nothing more."""

    open: list[m.NodeSpec] = field(default_factory=list)
    held: list[m.Room] = field(default_factory=list)
    counts_cpu: bool = True
    counts_disk: bool = True

    def add(self, node: Node) -> None:
        spec = node.spec
        if not node.drained:
            self.open.append(spec)
        elif node.held:
            self.held.append(
                m.Room(
                    spec.slots - node.slots, spec.memory - node.memory, spec.cpu_milli - node.cpu_milli,
                    spec.disk - node.disk,
                )
            )  # fmt: skip
        else:
            return
        self.counts_cpu &= spec.cpu_milli > 0
        self.counts_disk &= spec.disk > 0

    def total(self) -> m.Room:
        """Return what they have together; cpu and disk only where each of them counts it."""
        all_: list[m.NodeSpec | m.Room] = [*self.open, *self.held]
        return m.Room(
            _sum(each.slots for each in all_), _sum(each.memory for each in all_),
            _sum(each.cpu_milli for each in all_) if self.counts_cpu else 0,
            _sum(each.disk for each in all_) if self.counts_disk else 0,
        )  # fmt: skip

    def largest(self) -> m.Room:
        """Return the most that any that takes sandboxes has."""
        return m.Room(
            max((each.slots for each in self.open), default=0), max((each.memory for each in self.open), default=0),
            max((each.cpu_milli for each in self.open), default=0) if self.counts_cpu else 0,
            max((each.disk for each in self.open), default=0) if self.counts_disk else 0,
        )  # fmt: skip


def capacity_of(executors: Iterable[Executor]) -> m.CellCapacity:
    """Return the nodes that take sandboxes, as pools of those that are alike in isolation and labels."""
    pools: dict[tuple[str, tuple[tuple[str, str], ...]], _Pool] = {}
    isolations: dict[str, None] = {}
    for executor in executors:
        if not executor.alive:
            continue
        isolations[executor.isolation] = None
        for node in executor.by_number:
            if not node.drained or node.held:
                pools.setdefault((executor.isolation, tuple(sorted(node.spec.labels))), _Pool()).add(node)
    found = tuple(
        m.Pool(isolation, labels, len(pool.open), pool.total(), pool.largest())
        for (isolation, labels), pool in sorted(pools.items(), key=lambda entry: entry[0])
    )
    slots = _sum(pool.total.slots for pool in found)
    return m.CellCapacity(slots, sum(pool.nodes for pool in found), tuple(sorted(isolations)), found)


def _sum(amounts: Iterable[int]) -> int:
    return min(sum(amounts), _MOST)
