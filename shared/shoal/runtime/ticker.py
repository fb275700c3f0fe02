"""Time for a core: a Tick into its inbox when it has asked to be woken and nothing else came."""

import asyncio
from collections.abc import Callable
from uuid import uuid4

from shoal.bus.protocol import Bus
from shoal.machine.core import Core
from shoal.runtime.dead import store
from shoal.wire.codec import encode
from shoal.wire.messages import Tick


class Ticker:
    """Publishes the ticks of one partition."""

    def __init__(self, bus: Bus, core: Core, stream: str, subject: str, now_ms: Callable[[], int]) -> None:
        self._bus = bus
        self._core = core
        self._stream = stream
        self._subject = subject
        self._now_ms = now_ms
        self._nonce = uuid4().hex

    async def run(self, leading: asyncio.Event, retime: asyncio.Event) -> None:
        """Publish a Tick when the core is due, while `leading`; `retime` says that the core may want another time.

        The broker's clock may be behind ours, and then the core is still due after it: the next Tick has another id.
        """
        due: int | None = None
        repeats = 0
        while True:
            await leading.wait()
            retime.clear()
            wake = self._core.wake_at_ms()
            if wake != due:
                due, repeats = wake, 0
            now = self._now_ms()
            if due is None or due > now:
                await wait(retime, None if due is None else (due - now) / 1000)
                continue
            id = f"tick:{self._stream}:{due}" + (f":{self._nonce}:{repeats}" if repeats else "")
            await store(self._bus, self._subject, encode(Tick(due)), id)
            await self._sleep_while_due(due, min(0.05 * 2**repeats, 1.0), retime)
            repeats = min(repeats + 1, 1_000_000)

    async def _sleep_while_due(self, due: int, seconds: float, retime: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self._core.wake_at_ms() == due and (left := until - loop.time()) > 0:
            retime.clear()
            await wait(retime, left)


async def wait(event: asyncio.Event, seconds: float | None) -> None:
    """Wait for the event, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
