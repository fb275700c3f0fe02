"""The snapshot catalogue, as replay knows it."""

from typing import Final

from shoal.machine.service import Service, Table
from shoal.wire import streams
from shoal_snapshot.core.snapshot import SnapshotCore, State


def summary(state: State) -> list[Table]:
    """Return the snapshots, and what is being made."""
    held: dict[tuple[str, str], int] = {}
    for tenant, _, digest, _ in state.catalogue.holds:
        held[tenant, digest] = held.get((tenant, digest), 0) + 1
    snapshots = [
        (
            digest[:12], tenant, snapshot.kind, ", ".join(names) or "-", origin or "-", held.get((tenant, digest), 0),
            "pinned" if pinned else "-",
        )
        for tenant, snapshot, origin, _, _, _, pinned, names in state.catalogue.entries
        for digest in (snapshot.digest,)
    ]  # fmt: skip
    asked = [(template, len(askers)) for template, askers in state.askers]
    return [
        Table("snapshots", ("digest", "tenant", "kind", "names", "taken of", "held by", "pinned"), snapshots),
        Table("being looked at", ("template", "asked for by"), asked),
    ]


SERVICE: Final = Service(
    "snapshot", False, lambda _: streams.snapshot().name, lambda _, __: SnapshotCore(), State, summary
)
