"""Messages on their way out. Each is published, in order, and again under its own id until the broker has it."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from shoal.bus.protocol import Bus, BusError, Stored, TooLargeError
from shoal.wire.codec import encode
from shoal.wire.messages import AnyMessage

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0

log = structlog.get_logger()


class Outgoing:
    """Publishes without making the caller wait; nothing is given up but what no broker could take."""

    def __init__(self, bus: Bus, prefix: str) -> None:
        self._bus = bus
        self._prefix = prefix
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.outstanding = 0
        self.refused = 0
        self.on_stored: Callable[[], None] = lambda: None

    def send(self, subject: str, message: AnyMessage) -> None:
        """Publish a message under the next id."""
        self._count += 1
        self.outstanding += 1
        self._idle.clear()
        self._publish(subject, encode(message), f"{self._prefix}:{self._count}", _FIRST_PAUSE_S)

    async def drain(self) -> None:
        """Wait until the broker has everything that was sent."""
        await self._idle.wait()

    def _publish(self, subject: str, payload: bytes, id: str, pause: float) -> None:
        def settled(future: "asyncio.Future[Stored]") -> None:
            if future.cancelled():
                self._done()
                return
            error = future.exception()
            if error is None:
                self._done()
            elif isinstance(error, TooLargeError) or not isinstance(error, BusError):
                self.refused += 1
                log.error("a message cannot be published", subject=subject, size=len(payload), error=str(error))
                self._done()
            else:
                log.warning("publishing again", subject=subject, id=id, error=str(error), after_s=pause)
                asyncio.get_running_loop().call_later(
                    pause, self._publish, subject, payload, id, min(pause * 2, _LONGEST_PAUSE_S)
                )

        self._bus.publish(subject, payload, id).add_done_callback(settled)

    def _done(self) -> None:
        self.outstanding -= 1
        if self.outstanding == 0:
            self._idle.set()
        self.on_stored()
