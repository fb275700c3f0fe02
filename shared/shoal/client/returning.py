"""A live sandbox made what a snapshot holds: one that the cluster sealed, for an executor takes no other."""

from typing import TYPE_CHECKING

from shoal.client.catalogue import sealed
from shoal.client.errors import BadRequest
from shoal.client.snapshots import TIMEOUT_S, Snapshot
from shoal.wire.messages import RollBack, RolledBack

if TYPE_CHECKING:
    from shoal.client.sandbox import Sandbox


async def roll_back(sandbox: "Sandbox", snapshot: Snapshot, id: str | None) -> None:
    """Make a live sandbox what a snapshot holds."""
    if not isinstance(snapshot, Snapshot):
        raise BadRequest("snapshot", f"{snapshot!r} is none; give what sandbox.snapshot() returned")
    async with sandbox.step(id) as step:
        wire = await sealed(sandbox.rollout.link, snapshot.wire)
        answer = await sandbox.ask(lambda head: RollBack(*head, wire), TIMEOUT_S, "rolling back", step)
    if not isinstance(answer, RolledBack):
        raise sandbox.unexpected(answer)
