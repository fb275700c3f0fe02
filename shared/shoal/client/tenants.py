"""Which tenants a cluster has: told to every scheduler through its log, and listed in the cluster's bucket."""

import secrets
from typing import Final

from shoal.bus.protocol import BusError
from shoal.client.link import Link
from shoal.wire import streams, subjects
from shoal.wire.messages import TenantAdded, TenantRemoved

_KEYS: Final = "tenant"


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
    await _list(link, tenant, listed=True)


async def remove(link: Link, tenant: str) -> None:
    """Unmake a tenant: its running rollouts go on, and no new one is admitted. Raises a ShoalError."""
    await _tell(link, TenantRemoved(tenant))
    await _list(link, tenant, listed=False)


async def _tell(link: Link, message: TenantAdded | TenantRemoved) -> None:
    id = f"tenant:{message.tenant}:{secrets.token_hex(8)}"
    for cell in range(link.cells):
        await link.publish(subjects.rollout_system(cell), message, id)


async def _list(link: Link, tenant: str, *, listed: bool) -> None:
    key = f"{_KEYS}.{tenant}"
    try:
        if listed:
            await link.bus.put(streams.CLUSTER_BUCKET, key, b"{}")
        else:
            await link.bus.delete(streams.CLUSTER_BUCKET, key)
    except BusError as error:
        raise link.explained(error) from error
