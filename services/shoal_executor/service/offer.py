"""What an executor brings into a cluster."""

from dataclasses import dataclass

from shoal.wire.messages import NodeSpec, Snapshot


@dataclass(frozen=True, slots=True)
class Offer:
    """Its name, its cell and its nodes. `warm`: snapshots made ready before it joins."""

    executor: str
    cell: int
    nodes: tuple[NodeSpec, ...]
    warm: tuple[Snapshot, ...] = ()
