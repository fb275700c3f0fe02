"""Time for a core: a Tick into its inbox when it has asked to be woken and nothing else came."""

import asyncio
from collections.abc import Callable
from typing import Final
from uuid import uuid4

from shoal.bus.protocol import Bus
from shoal.machine.core import Core
from shoal.runtime.dead import store
from shoal.wire.codec import encode
from shoal.wire.messages import Tick

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0


class Ticker:
    """Publishes the ticks of one partition."""

    def __init__(self, bus: Bus, core: Core, stream: str, subject: str, now_ms: Callable[[], int]) -> None:
        self._bus = bus
        self._core = core
        self._stream = stream
        self._subject = subject
        self._now_ms = now_ms
        self._nonce = uuid4().hex
        self._retime = asyncio.Event()
        self._waits_for: int | None = None  # when the core is due that is waited for, if it is to be at all
        self._told: int | None = None  # for when the last Tick was, while the core has not folded it

    def look(self) -> None:
        """The core may want another time: look whether it is one that what is waited for would miss."""
        wake = self._core.wake_at_ms()
        if self._told is not None:
            concerned = wake != self._told
        else:  # one that is due later than is waited for is seen when that is over
            concerned = wake is not None and (self._waits_for is None or wake < self._waits_for)
        if concerned:
            self._retime.set()

    async def run(self, leading: asyncio.Event) -> None:
        """Publish a Tick when the core is due, while `leading`.

        The broker's clock may be behind ours, and then the core is still due after it: the next Tick has another id.
        """
        due: int | None = None
        repeats, pause = 0, _FIRST_PAUSE_S
        while True:
            await leading.wait()
            self._retime.clear()
            wake = self._core.wake_at_ms()
            if wake != due:
                due, repeats, pause = wake, 0, _FIRST_PAUSE_S
            now = self._now_ms()
            if due is None or due > now:
                self._waits_for = due
                await wait(self._retime, None if due is None else (due - now) / 1000)
                continue
            id = f"tick:{self._stream}:{due}" + (f":{self._nonce}:{repeats}" if repeats else "")
            await store(self._bus, self._subject, encode(Tick(due)), id)
            await self._sleep_while_due(due, pause)
            repeats, pause = repeats + 1, min(pause * 2, _LONGEST_PAUSE_S)

    async def _sleep_while_due(self, due: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        self._told = due
        try:
            while self._core.wake_at_ms() == due and (left := until - loop.time()) > 0:
                self._retime.clear()
                await wait(self._retime, left)
        finally:
            self._told = None


async def wait(event: asyncio.Event, seconds: float | None) -> None:
    """Wait for the event, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
