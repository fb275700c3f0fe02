"""Dead letters and stubborn publishing: for messages nobody can use, and for those that must be stored."""

import asyncio
from typing import Final

import structlog

from shoal.bus.protocol import Bus, BusError, Delivery, Stored, TooLargeError
from shoal.machine.core import Cause
from shoal.wire import subjects
from shoal.wire.codec import encode
from shoal.wire.messages import DEAD_PAYLOAD_KEPT, DeadLetter

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
_SAY_EVERY_S: Final = 30.0

log = structlog.get_logger()


def dead_letter_of(delivery: Delivery, cause: Cause, reader: str, reason: str) -> tuple[str, bytes, str]:
    """Return subject, payload and id of the dead letter for a message a reader cannot use."""
    kept = delivery.payload[:DEAD_PAYLOAD_KEPT]
    letter = DeadLetter(cause.stream, cause.sequence, delivery.subject, reader, reason, kept, len(delivery.payload))
    return subjects.dead(cause.stream), encode(letter), f"dead:{cause.stream}:{cause.sequence}:{cause.time_ms}:{reader}"


async def dead_letter(bus: Bus, delivery: Delivery, cause: Cause, reader: str, reason: str) -> None:
    """Keep a message this reader cannot use where operators find it; returns when it is stored."""
    log.error("message put aside", stream=cause.stream, sequence=cause.sequence, reader=reader, reason=reason)
    subject, payload, id = dead_letter_of(delivery, cause, reader, reason)
    await store(bus, subject, payload, id)


async def store(bus: Bus, subject: str, payload: bytes, id: str) -> Stored:
    """Publish until the broker has it. Raises only what no waiting mends: TooLargeError."""
    pause, said_at = FIRST_PAUSE_S, float("-inf")
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await bus.publish(subject, payload, id)
        except TooLargeError:
            raise
        except BusError as error:
            if loop.time() - said_at >= _SAY_EVERY_S:
                said_at = loop.time()
                log.error("not stored; trying until it is", subject=subject, id=id, error=str(error))
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)
