"""Setting a cluster up: whichever process comes first does it, and all get the same answer."""

import secrets

from shoal.bus.protocol import Bus
from shoal.runtime.sealing import seals_of
from shoal.wire import streams
from shoal.wire.quantities import BadValueError


async def ensure_cluster(bus: Bus, cells: int = 1, replicas: int = 1) -> int:
    """Create the cluster's streams where they are missing; returns how many cells it has.

    How many cells there are, and on how many brokers each stream is kept, is fixed by the first process that calls
    this; the others' `cells` and `replicas` are not heard. Buses learn `replicas` from the bucket it is kept in; only
    that bucket itself is made as the connection was told (`JetStreamBus.connect`).
    """
    if not 1 <= cells <= 10_000:
        raise BadValueError("cells", f"{cells} is not a number of cells from 1 to 10000")
    if not 1 <= replicas <= 5:
        raise BadValueError("stream-replicas", f"{replicas} is not a number of replicas from 1 to 5")
    if await cells_of(bus) is None:
        # In this order: who finds the number of cells finds the other as well, or the cluster is older than that.
        await bus.replace(streams.CLUSTER_BUCKET, streams.REPLICAS_KEY, str(replicas).encode(), 0)
        await bus.replace(streams.CLUSTER_BUCKET, streams.CELLS_KEY, str(cells).encode(), 0)
    if await bus.get(streams.CLUSTER_BUCKET, streams.ID_KEY) is None:
        await bus.replace(streams.CLUSTER_BUCKET, streams.ID_KEY, secrets.token_hex(8).encode(), 0)
    await seals_of(bus)  # so that there is a key, whoever needs it first
    known = await cells_of(bus)
    assert known is not None  # it was just stored, by this process or another
    await bus.ensure(streams.cluster(known))
    return known


async def cells_of(bus: Bus) -> int | None:
    """Return how many cells the cluster has, or None where nobody set one up yet."""
    entry = await bus.get(streams.CLUSTER_BUCKET, streams.CELLS_KEY)
    return int(entry.value) if entry is not None else None
