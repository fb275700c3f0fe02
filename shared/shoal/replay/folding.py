"""Folding what was recorded as a service does: without what was passed over of it."""

from collections.abc import Sequence

from shoal.archive.source import ArchiveError, History
from shoal.bus.protocol import Delivery
from shoal.machine.core import Cause, Core, Effect, respond
from shoal.machine.passing import PassedOver, decoded, why_of
from shoal.wire import streams


async def passed_over(history: History, partition: str) -> PassedOver:
    """Return which messages of a partition's log are left out. Raises ArchiveError."""
    found = PassedOver()
    value = (await history.values(streams.CLUSTER_BUCKET)).get(streams.passed_key(partition))
    try:
        found.learn(decoded(value, partition))
    except ValueError as error:
        raise ArchiveError(str(error)) from error
    return found


def fold(
    core: Core, partition: str, passed: PassedOver, delivery: Delivery, cause: Cause, payload: bytes | None = None
) -> Sequence[Effect]:
    """Fold one message, if it is not passed over; return what follows. `payload`: in the place of its own.

    Raises ArchiveError where the core fails on it.
    """
    if passed.reason(delivery.sequence, delivery.subject, delivery.payload, delivery.time_ms, delivery.id):
        return ()
    try:
        return respond(core, delivery.subject, delivery.payload if payload is None else payload, cause)[0]
    except Exception as error:
        raise ArchiveError(
            f"{partition} cannot be told from message {delivery.sequence} of {cause.stream} on: this version fails on"
            f" it ({why_of(error)}), and nothing at hand says that it was passed over; use the version that folded it,"
            " or a recording that goes further"
        ) from error
