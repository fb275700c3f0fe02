"""What is asked of a cluster, and what there is to serve it: recorded, or made up for a load test."""

from dataclasses import dataclass, field
from typing import Final

from shoal.wire import messages as m

HOST: Final = m.Snapshot("host", "host")


@dataclass(frozen=True, slots=True)
class Group:
    """One rollout: when it was submitted (ms), and of each sandbox how long it is busy once it is ready (ms).

    `codes` are its commands' exit codes where they are not 0. `cancelled_ms`: how long after its submission somebody
    cancelled it; -1: nobody.
    """

    at_ms: int
    rollout: str
    tenant: str
    run: str
    cell: int
    spec: m.RolloutSpec
    busy_ms: tuple[int, ...]
    codes: tuple[tuple[int, int], ...] = ()
    cancelled_ms: int = -1


@dataclass(frozen=True, slots=True)
class Machine:
    """One executor: its nodes, what it says of its pace, and its real one.

    It starts no more than one sandbox each `start_ms`. `profiles` are orders it was seen to carry out: after how long
    (ms) the first of their sandboxes was ready, the second and so on; one of about the same size is drawn for each new
    order, and none of its sandboxes is ready sooner.
    """

    executor: str
    cell: int
    isolation: str
    nodes: tuple[m.NodeSpec, ...]
    starts_per_s: float
    start_ms: float
    profiles: tuple[tuple[int, ...], ...] = ((0,),)
    spread: float = 0.0
    """Of the logarithm of each start's time."""
    from_ms: int = 0
    until_ms: int = -1
    """When it joined and left; -1: it stayed."""


@dataclass(frozen=True, slots=True)
class Demand:
    """All of it, from `began_ms` (ms since the epoch) on; the times within are from there.

    `told` is what operators told schedulers and placement meanwhile: when, to which service, what. `hop_ms`: from one
    service to another.
    """

    groups: tuple[Group, ...]
    machines: tuple[Machine, ...]
    cells: int = 1
    began_ms: int = 0
    hop_ms: int = 1
    told: tuple[tuple[int, str, m.AnyMessage], ...] = ()
    snapshots: dict[tuple[str, str], m.Snapshot] = field(default_factory=dict)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How many sandboxes all machines hold at most."""
        return sum(node.slots for machine in self.machines for node in machine.nodes)
