"""What an executor is told, message by message in the order of its log; what nobody can read is put aside."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from shoal.bus.protocol import Bus, Delivery, Reader, StreamAnewError
from shoal.machine.core import Cause
from shoal.runtime.dead import dead_letter
from shoal.wire import streams
from shoal.wire.codec import UndecodableError, decode
from shoal.wire.messages import AnyMessage
from shoal_executor.service.clock import Apart, now_ms
from shoal_executor.service.known import Known

_IN_A_TURN: Final = 8
"""Messages taken in one turn of the event loop. Of 1, 8, 32 and all, 8 had most sandboxes a second: with all of them
every station of the fabric waits for the one that has the batch, with 1 each turn writes a little to the broker."""

log = structlog.get_logger()


class Inbox:
    """See the module. `take` gets each message with its delivery."""

    def __init__(
        self, bus: Bus, executor: str, known: Known, take: Callable[[AnyMessage, Delivery], Awaitable[None]]
    ) -> None:
        self._bus = bus
        self._executor = executor
        self._known = known
        self._take = take
        self._stream = streams.executor(executor)
        self._reader: Reader | None = None
        self._apart = Apart()

    async def open(self, *, continued: bool) -> None:
        """Begin, or go on where an earlier process was."""
        await self._bus.ensure([self._stream])
        self._reader = await self._bus.reader(self._stream.name, after=await self._begin_after(continued))

    async def _begin_after(self, continued: bool) -> int:
        """Return after which message to go on.

        What was said to an earlier boot is nothing to a new one: placement gives all of it up when the new one joins.
        """
        last = await self._bus.last_sequence(self._stream.name)
        after = self._known.inbox if continued else None
        if after is None or after > last:
            if after is not None:
                inbox = self._stream.name
                log.error("the inbox is shorter than what was taken of it: going on at its end", inbox=inbox, last=last)
            self._known.begin_at(last)
            return last
        return after

    async def follow(self) -> None:
        """Take what comes, for ever."""
        assert self._reader is not None
        while True:
            try:
                batch = await self._reader.batch()
            except StreamAnewError as error:
                self._known.begin_at(error.last)  # the next process goes on there, and misses nothing that came since
                raise
            for number, delivery in enumerate(batch, 1):
                self._compare_clocks(delivery)
                try:
                    message = decode(delivery.payload)
                except UndecodableError as error:
                    await self.bury(delivery, f"cannot be decoded: {error}")
                else:
                    await self._take(message, delivery)
                if number % _IN_A_TURN == 0:
                    await asyncio.sleep(0)  # some are carried out, and the next stations begin, while others are taken

    def _compare_clocks(self, delivery: Delivery) -> None:
        ahead_ms = self._apart.heard(delivery.time_ms, int(time.time() * 1000), now_ms())
        if ahead_ms is not None:
            log.warning(
                "this machine's clock and the broker's are apart, or messages come that late: set both by NTP; no "
                "sandbox's time goes by this machine's, but what its log says does",
                ahead_s=ahead_ms / 1000,
            )

    async def bury(self, delivery: Delivery, reason: str) -> None:
        """Put a message aside that nobody can use."""
        log.error("dead letter", subject=delivery.subject, sequence=delivery.sequence, reason=reason)
        cause = Cause(self._stream.name, delivery.sequence, delivery.time_ms)
        await dead_letter(self._bus, delivery, cause, f"executor.{self._executor}", reason)

    async def close(self) -> None:
        """Read no more."""
        if self._reader is not None:
            await self._reader.close()
