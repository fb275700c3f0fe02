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
    """Publishes without making the caller wait; nothing is given up but what no broker could take.

    Messages are numbered from 1, and their ids follow from the number: whoever repeats what an earlier process did
    sends the same ids. Until `go` they are only kept.
    """

    def __init__(self, bus: Bus, prefix: str) -> None:
        self._bus = bus
        self._prefix = prefix
        self._going = False
        self._unstored: dict[int, tuple[str, bytes]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.sent = 0
        self.refused = 0
        self.on_stored: Callable[[], None] = lambda: None

    @property
    def outstanding(self) -> int:
        """How many messages the broker does not have yet."""
        return len(self._unstored)

    @property
    def stored(self) -> int:
        """The number up to which the broker has every message."""
        return next(iter(self._unstored)) - 1 if self._unstored else self.sent

    @property
    def unstored(self) -> tuple[tuple[int, str, bytes], ...]:
        """The messages the broker does not have yet: number, subject and payload."""
        return tuple((number, *message) for number, message in self._unstored.items())

    def send(self, subject: str, message: AnyMessage) -> None:
        """Publish a message under the next number."""
        self.sent += 1
        self._unstored[self.sent] = (subject, encode(message))
        self._idle.clear()
        if self._going:
            self._publish(self.sent, _FIRST_PAUSE_S)

    def resume(self, sent: int, unstored: tuple[tuple[int, str, bytes], ...]) -> None:
        """Go on with what an earlier process had sent."""
        self.sent = sent
        self._unstored = {number: (subject, payload) for number, subject, payload in unstored}

    def settle(self, number: int) -> None:
        """The broker has everything up to this number: an earlier process saw it."""
        for known in [known for known in self._unstored if known <= number]:
            del self._unstored[known]

    def go(self, prefix: str | None = None) -> None:
        """Publish what was kept, and from now on everything at once. `prefix`: the ids' beginning, now known."""
        self._prefix = prefix or self._prefix
        self._going = True
        for number in self._unstored:
            self._publish(number, _FIRST_PAUSE_S)
        if not self._unstored:
            self._idle.set()

    async def drain(self) -> None:
        """Wait until the broker has everything that was sent."""
        await self._idle.wait()

    def _publish(self, number: int, pause: float) -> None:
        subject, payload = self._unstored[number]
        id = f"{self._prefix}:{number}"

        def settled(future: "asyncio.Future[Stored]") -> None:
            if future.cancelled():
                self._done(number)
                return
            error = future.exception()
            if error is None:
                self._done(number)
            elif isinstance(error, TooLargeError) or not isinstance(error, BusError):
                self.refused += 1
                log.error("a message cannot be published", subject=subject, size=len(payload), error=str(error))
                self._done(number)
            else:
                log.warning("publishing again", subject=subject, id=id, error=str(error), after_s=pause)
                again = min(pause * 2, _LONGEST_PAUSE_S)
                asyncio.get_running_loop().call_later(pause, self._publish, number, again)

        self._bus.publish(subject, payload, id).add_done_callback(settled)

    def _done(self, number: int) -> None:
        del self._unstored[number]
        if not self._unstored:
            self._idle.set()
        self.on_stored()
