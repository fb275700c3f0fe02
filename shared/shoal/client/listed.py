"""What is listed in the cluster's bucket, for whoever asks later: said to the services through their logs before."""

from shoal.bus.protocol import BusError
from shoal.client.link import Link
from shoal.wire import streams


async def note(link: Link, key: str, value: bytes | None) -> None:
    """Keep a value under a key of the cluster's bucket; None: no longer. Raises a ShoalError."""
    try:
        if value is None:
            await link.bus.delete(streams.CLUSTER_BUCKET, key)
        else:
            await link.bus.put(streams.CLUSTER_BUCKET, key, value)
    except BusError as error:
        raise link.explained(error) from error
