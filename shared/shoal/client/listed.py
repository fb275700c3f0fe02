"""What is listed in the cluster's bucket, for whoever asks later: the services are told through their logs."""

from shoal.bus.protocol import BusError
from shoal.client.link import Link
from shoal.wire import streams


async def note(link: Link, key: str, value: bytes | None) -> int:
    """Keep a value under a key of the cluster's bucket; None: no longer. Returns its revision. Raises a ShoalError."""
    try:
        if value is not None:
            return await link.bus.put(streams.CLUSTER_BUCKET, key, value)
        await link.bus.delete(streams.CLUSTER_BUCKET, key)
        return 0
    except BusError as error:
        raise link.explained(error) from error
