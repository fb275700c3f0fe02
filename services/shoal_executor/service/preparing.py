"""What rollouts start from, made ready; their `warm` code has as long as their time allows, and no longer."""

import asyncio
from typing import Final

from shoal.wire.messages import Snapshot
from shoal_executor.drivers.protocol import BadInputError, Driver
from shoal_executor.service.clock import now_ms

_LEAST_S: Final = 1.0
_MOST_S: Final = 10.0
_PART: Final = 10
"""Of what is left of a rollout's time, for the word that its code did not end: when the time is up, all else ends."""


async def prepared(driver: Driver, snapshot: Snapshot, due_ms: int, by_ms: int) -> None:
    """Have the driver prepare a snapshot for a rollout that ends at `due_ms`, as `clock` counts it.

    `by_ms`: until when it has to be there for half of the rollout's time, 0 where nobody says. What comes later ends as
    `deadline`, and for the time that the queue took its code is not to blame.

    Raises DriverError; BadInputError where its `warm` code still runs shortly before the end.
    """
    if not snapshot.warm or 0 < by_ms < now_ms():
        await driver.prepare(snapshot)
        return
    left_s = max(due_ms - now_ms(), 0) / 1000
    patience_s = left_s - min(max(left_s / _PART, _LEAST_S), _MOST_S, left_s / 2)
    try:
        async with asyncio.timeout(patience_s) as limit:
            await driver.prepare(snapshot)
    except TimeoutError:
        if not limit.expired():
            raise
        if driver.warming(snapshot):
            raise BadInputError(
                f"warm: its code has not come to its end within {patience_s:.1f} s, and the rollout's time is nearly"
                " up: give the rollout more, or the code less to do"
            ) from None
        await driver.prepare(snapshot)  # what takes so long is not the code
