"""Setting a cluster up: whichever process comes first does it, and all get the same answer."""

from shoal.bus.protocol import Bus
from shoal.wire import streams
from shoal.wire.quantities import BadValueError

_CELLS = "cells"


async def ensure_cluster(bus: Bus, cells: int = 1) -> int:
    """Create the cluster's streams where they are missing; returns how many cells it has.

    The number of cells is fixed by the first process that calls this; the others' `cells` is not heard.
    """
    if not 1 <= cells <= 10_000:
        raise BadValueError("cells", f"{cells} is not a number of cells from 1 to 10000")
    await bus.replace(streams.CLUSTER_BUCKET, _CELLS, str(cells).encode(), 0)
    known = await cells_of(bus)
    assert known is not None  # it was just stored, by this process or another
    await bus.ensure(streams.cluster(known))
    return known


async def cells_of(bus: Bus) -> int | None:
    """Return how many cells the cluster has, or None where nobody set one up yet."""
    entry = await bus.get(streams.CLUSTER_BUCKET, _CELLS)
    return int(entry.value) if entry is not None else None
