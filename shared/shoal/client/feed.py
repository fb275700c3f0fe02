"""Following one stream and handing each message on, in order, in the turn of the loop in which it came."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence

from shoal.bus.protocol import Bus, BusError, Delivery, Reader
from shoal.wire.codec import UndecodableError, decode
from shoal.wire.messages import AnyMessage

log = logging.getLogger("shoal")


class Feed:
    """One reader in one task. `handle` gets every decoded message, `broken` the error after which nothing follows."""

    def __init__(
        self,
        reader: Reader,
        name: str,
        handle: Callable[[AnyMessage, Delivery], None],
        broken: Callable[[BusError], None],
    ) -> None:
        self._reader = reader
        self._handle = handle
        self._broken = broken
        self._task = asyncio.create_task(self._follow(), name=f"shoal {name}")

    async def _follow(self) -> None:
        while True:
            try:
                batch = await self._reader.batch()
            except BusError as error:
                self._broken(error)
                return
            for delivery in batch:
                message = decoded(delivery)
                if message is not None:
                    self._handle(message, delivery)

    async def close(self) -> None:
        """Stop following."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._reader.close()


def decoded(delivery: Delivery) -> AnyMessage | None:
    """Return the message, or None, with a warning, for what this version cannot read."""
    try:
        return decode(delivery.payload)
    except UndecodableError as error:
        log.warning("message %d on %s cannot be decoded: %s", delivery.sequence, delivery.subject, error)
        return None


async def history(
    bus: Bus,
    stream: str,
    *,
    after: int = 0,
    since_ms: int | None = None,
    until: int | None = None,
    only: Sequence[str] = (),
) -> AsyncGenerator[Delivery, None]:
    """Yield what a stream keeps now (after a sequence, or stored at or after since_ms; up to sequence until), then end.

    `only`: what is on these subjects.
    """
    last = await bus.last_sequence(stream) if until is None else until
    if only:  # there is one at least at the end, or nothing would say that it is reached
        last = min(last, max([await bus.last_sequence(stream, subject) for subject in only]))
    first = await bus.first_sequence(stream)
    if max(first, after + 1) > last:
        return
    if since_ms is not None:
        (newest,) = await _first_after(bus, stream, last - 1)
        if newest.time_ms < since_ms:
            return
    reader = await bus.reader(stream, after=max(after, first - 1), since_ms=since_ms, filters=only)
    try:
        while True:
            for delivery in await reader.batch():
                if delivery.sequence <= last:
                    yield delivery
                if delivery.sequence >= last:
                    return
    finally:
        await reader.close()


async def _first_after(bus: Bus, stream: str, after: int) -> Sequence[Delivery]:
    reader = await bus.reader(stream, after=after)
    try:
        return await reader.batch(1)
    finally:
        await reader.close()
