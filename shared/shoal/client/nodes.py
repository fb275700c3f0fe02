"""Nodes that are to take no more sandboxes: told to placement through its log, and listed in the cluster's bucket."""

import secrets

from shoal.bus.protocol import Bus
from shoal.client.errors import BadRequest
from shoal.client.link import Link
from shoal.client.listed import note
from shoal.client.requests import text, truth
from shoal.wire import streams, subjects
from shoal.wire.messages import NodeDrained


async def drain(link: Link, node: str, *, drained: bool, hibernate: bool = False) -> None:
    """Drain a node, or let it take sandboxes again; returns when every cell's log has it. Raises a ShoalError."""
    truth(hibernate, "hibernate")
    if not text(node, "node", "a node's name") or any(character in node for character in " *>\t\n"):
        raise BadRequest("node", f"{node!r} is not a node's name; `shoal nodes` lists them")
    # Listed first: an executor that has left looks there for when it is wanted again.
    await note(link, streams.drained_key(node), b"{}" if drained else None)
    id = f"drain:{node}:{secrets.token_hex(8)}"
    for cell in range(link.cells):
        await link.publish(subjects.placement_node(cell), NodeDrained(node, drained, hibernate), id)


async def drained(bus: Bus) -> set[str]:
    """Return the nodes that are to take no more sandboxes."""
    return streams.drained_nodes(await bus.keys(streams.CLUSTER_BUCKET, streams.DRAINED_KEYS))
