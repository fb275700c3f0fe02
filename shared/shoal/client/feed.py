"""Following one stream and handing each message on, in order, in the turn of the loop in which it came."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from shoal.archive.live import kept
from shoal.bus.protocol import BusError, Delivery, Reader, UnreachableError
from shoal.wire.codec import UndecodableError, decode
from shoal.wire.messages import AnyMessage

log = logging.getLogger("shoal")
history = kept


class Feed:
    """One reader in one task. `handle` gets every decoded message, `broken` the error after which nothing follows.

    What `handle` raises is logged: the messages after that one are others', who wait for them.
    """

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

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self._task.done()

    async def _follow(self) -> None:
        while True:
            try:
                batch = await self._reader.batch()
            except BusError as error:
                self._broken(error)
                return
            for delivery in batch:
                message = decoded(delivery)
                if message is None:
                    continue
                try:
                    self._handle(message, delivery)
                except Exception:
                    log.exception("message %d on %s cannot be handled", delivery.sequence, delivery.subject)

    async def close(self) -> None:
        """Stop following."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._reader.close()


async def following(reader: Reader) -> Sequence[Delivery]:
    """Return the next messages, for a caller of ours who waits. Raises UnreachableError where the reader was closed."""
    try:
        return await reader.batch()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise UnreachableError("it is followed no more") from None  # with the connection, and not by the caller


def decoded(delivery: Delivery) -> AnyMessage | None:
    """Return the message, or None, with a warning, for what this version cannot read."""
    try:
        return decode(delivery.payload)
    except UndecodableError as error:
        log.warning("message %d on %s cannot be decoded: %s", delivery.sequence, delivery.subject, error)
        return None
