"""Placement, as replay knows it."""

from typing import Final

from shoal.machine import ranges
from shoal.machine.service import Service, Table
from shoal.wire import streams
from shoal.wire.quantities import format_bytes
from shoal_placement.core.placement import PlacementCore, State


def summary(state: State) -> list[Table]:
    """Return the nodes, and what waits for one."""
    nodes: list[tuple[object, ...]] = []
    for executor in state.executors:
        for spec, drained, held in executor.nodes:
            taken = sum(ranges.count(each.indices) for _, each in held)
            memory = sum(ranges.count(each.indices) * each.memory for _, each in held)
            what = "drained" if drained else "alive" if executor.alive else "silent"
            nodes.append(
                (spec.node, executor.name, executor.isolation, what, spec.slots, taken, format_bytes(memory))
            )  # fmt: skip
    waiting = [(w.rollout, w.attempt, ranges.count(w.indices)) for w, _ in state.waiting]
    return [
        Table("nodes", ("node", "executor", "isolation", "state", "slots", "taken", "memory taken"), nodes),
        Table("waiting for a node", ("rollout", "attempt", "sandboxes"), waiting),
        Table("settings", ("name", "value"), [("policy", state.policy)]),
    ]


SERVICE: Final = Service(
    "placement", True, lambda cell: streams.placement(cell).name, lambda cell, _: PlacementCore(cell), State, summary
)  # fmt: skip
