"""Which tenants a cluster has, and what they may have: told to every scheduler in its log, and listed in a bucket.

A tenant's rollouts are spread over the cells by their names, and each cell keeps to its part of a limit. Together they
never give out more than the whole; what one cell's part leaves unused it lends to the others. Of what may wait, each
cell has an equal part, and takes one rollout of any size where none waits.
"""

import secrets
from typing import Final

import msgspec

from shoal.bus.protocol import BusError
from shoal.client.errors import BadRequest
from shoal.client.link import Link
from shoal.client.listed import note
from shoal.wire import streams, subjects
from shoal.wire.limits import limits_problem
from shoal.wire.messages import Limits, TenantAdded, TenantLimited, TenantRemoved

_KEYS: Final = "tenant"
_LIMITS: Final = "limits"


async def tenants(link: Link) -> list[str]:
    """Return the tenants by name; none means that whoever comes is welcome. Raises a ShoalError."""
    try:
        keys = await link.bus.keys(streams.CLUSTER_BUCKET, _KEYS)
    except BusError as error:
        raise link.explained(error) from error
    return [key.partition(".")[2] for key in keys]


async def add(link: Link, tenant: str) -> None:
    """Make a tenant; returns when every cell's log has it. Raises a ShoalError."""
    await _tell(link, TenantAdded(tenant))
    await note(link, f"{_KEYS}.{tenant}", b"{}")


async def remove(link: Link, tenant: str) -> None:
    """Unmake a tenant: its running rollouts go on, and no new one is admitted. Raises a ShoalError."""
    await _tell(link, TenantRemoved(tenant))
    await note(link, f"{_KEYS}.{tenant}", None)


async def limits(link: Link) -> dict[str, Limits]:
    """Return what tenants may have, of those that were given limits. Raises a ShoalError."""
    found: dict[str, Limits] = {}
    try:
        for key in await link.bus.keys(streams.CLUSTER_BUCKET, _LIMITS):
            entry = await link.bus.get(streams.CLUSTER_BUCKET, key)
            if entry is not None:
                found[key.partition(".")[2]] = msgspec.msgpack.decode(entry.value, type=Limits)
    except BusError as error:
        raise link.explained(error) from error
    return found


async def limit(link: Link, tenant: str, limits: Limits) -> None:
    """Say what a tenant may have; returns when every cell's log has it. Raises BadRequest, a ShoalError.

    While the cells hear of it one after the other, one may go by the old limits and another by the new ones already.
    """
    if not isinstance(limits, Limits):
        raise BadRequest("limits", f"{limits!r} are none; give shoal.Limits(sandboxes=100)")
    if problem := limits_problem(limits):
        raise BadRequest(*problem)
    # Of two who say so at once, the one whose value stays in the bucket is right in every cell.
    version = await note(link, f"{_LIMITS}.{tenant}", msgspec.msgpack.encode(limits))
    id = f"limits:{tenant}:{secrets.token_hex(8)}"
    for cell in range(link.cells):
        await link.publish(subjects.rollout_system(cell), TenantLimited(tenant, limits, version), id)


async def _tell(link: Link, message: TenantAdded | TenantRemoved) -> None:
    id = f"tenant:{message.tenant}:{secrets.token_hex(8)}"
    for cell in range(link.cells):
        await link.publish(subjects.rollout_system(cell), message, id)
