"""Messages on their way out, numbered, and kept until the broker has them."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

import structlog

from shoal.runtime.steady import Outcome, SteadyPublisher
from shoal.wire.codec import encode
from shoal.wire.messages import AnyMessage

log = structlog.get_logger()


class Outgoing:
    """Publishes without making the caller wait; nothing is given up but what no broker could take.

    Messages are numbered from 1, and their ids follow from the number: whoever repeats what an earlier process did
    sends the same ids. Until `go` they are only kept.
    """

    def __init__(self, publisher: SteadyPublisher, prefix: str) -> None:
        self._publisher = publisher
        self._prefix = prefix
        self._going = False
        self._unstored: dict[int, tuple[str, bytes]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiters: list[asyncio.Future[None]] = []
        self.sent = 0
        self._low = 0
        self.refused = 0
        self.on_stored: Callable[[int], None] = lambda _: None

    @property
    def outstanding(self) -> int:
        """How many messages the broker does not have yet."""
        return len(self._unstored)

    @property
    def stored(self) -> int:
        """The number up to which the broker has every message."""
        while self._low < self.sent and self._low + 1 not in self._unstored:
            self._low += 1
        return self._low

    @property
    def unstored(self) -> tuple[tuple[int, str, bytes], ...]:
        """The messages the broker does not have yet: number, subject and payload."""
        return tuple((number, *message) for number, message in self._unstored.items())

    def send(self, subject: str, message: AnyMessage) -> int:
        """Publish a message under the next number, which is returned."""
        self.sent += 1
        self._unstored[self.sent] = (subject, encode(message))
        self._idle.clear()
        if self._going:
            self._publish(self.sent)
        return self.sent

    def under_way(self, subject: str) -> frozenset[int]:
        """Return the numbers of the messages on a subject that the broker does not have yet."""
        return frozenset([number for number, (where, _) in self._unstored.items() if where == subject])

    def is_stored(self, number: int) -> bool:
        """Return whether the broker has the message of this number."""
        return number not in self._unstored

    def resume(self, sent: int, unstored: tuple[tuple[int, str, bytes], ...]) -> None:
        """Go on with what an earlier process had sent."""
        self.sent = sent
        self._unstored = {number: (subject, payload) for number, subject, payload in unstored}
        self._low = min(self._unstored, default=sent + 1) - 1

    def settle(self, number: int) -> None:
        """The broker has everything up to this number: an earlier process saw it."""
        for known in [known for known in self._unstored if known <= number]:
            del self._unstored[known]

    def go(self, prefix: str | None = None) -> None:
        """Publish what was kept, and from now on everything at once. `prefix`: the ids' beginning, now known."""
        self._prefix = prefix or self._prefix
        self._going = True
        for number in self._unstored:
            self._publish(number)
        if not self._unstored:
            self._idle.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is looked at whenever the broker has taken something."""
        while not condition():
            self._waiters.append(waiter := asyncio.get_running_loop().create_future())
            await waiter

    async def drain(self, within_s: float) -> None:
        """Wait until the broker has everything that was sent, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._idle.wait()

    def _publish(self, number: int) -> None:
        subject, payload = self._unstored[number]
        self._publisher.send(subject, payload, f"{self._prefix}:{number}", partial(self._settled, number))

    def _settled(self, number: int, outcome: Outcome) -> None:
        if outcome is None:
            return
        subject, payload = self._unstored.pop(number)
        if isinstance(outcome, BaseException):
            self.refused += 1
            log.error("a message cannot be published", subject=subject, size=len(payload), error=str(outcome))
        if not self._unstored:
            self._idle.set()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.on_stored(number)
