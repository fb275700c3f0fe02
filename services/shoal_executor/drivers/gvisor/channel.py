"""The driver's end of a container's two sockets, which may be changed for others while nobody notices."""

import asyncio
import os
from collections.abc import Callable
from typing import cast

from shoal_executor.drivers.agent.link import Link
from shoal_executor.drivers.pipes import PipeEnd


class Channel(asyncio.Transport):
    """Carries a link over the sockets of one container after the other: a checkpoint ends one, and another goes on.

    Between two, what is written waits. `over` is called once, when it is closed, by whichever end.
    """

    def __init__(self, link: Link, over: Callable[[], None]) -> None:
        super().__init__()
        self._link = link
        self._over = over
        self._pipes: _Pipes | None = None
        self._passing = 0
        self._waiting: list[bytes] | None = None
        self._closed = False
        link.connection_made(self)

    async def attach(self, read: int, write: int) -> None:
        """Go on over these descriptors, which it owns from now on. What waits goes on waiting until `flow`."""
        if self._closed:
            os.close(read)
            os.close(write)
            return
        loop = asyncio.get_running_loop()
        pipes = _Pipes(self, self._link)
        try:
            await loop.connect_read_pipe(lambda: pipes, PipeEnd(read))
        except BaseException:
            os.close(write)
            raise
        transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, PipeEnd(write))
        pipes.writer = transport
        self._pipes = pipes

    def hold_after_one(self) -> None:
        """Let what is written wait, but for the very next."""
        self._passing = 1
        self._waiting = []

    def pass_by(self, data: bytes) -> None:
        """Write now, before what waits."""
        if self._pipes is not None and self._pipes.writer is not None:
            self._pipes.writer.write(data)

    def flow(self) -> None:
        """Write what waited, and wait no more."""
        waited, self._waiting = self._waiting or [], None
        for data in waited:
            self.pass_by(data)

    def expect_end(self, *, expected: bool = True) -> None:
        """From now on the end of its container is nobody's news; or it is again."""
        if self._pipes is not None:
            self._pipes.expected = expected
            if not expected and self._pipes.drained.is_set():
                self.abort()

    async def detach(self) -> None:
        """Take what is left in the pipe of a container that has ended as expected, and let go of it."""
        pipes, self._pipes = self._pipes, None
        if pipes is not None:
            await pipes.drained.wait()
            pipes.close()

    # --- what a link asks of its transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write, or let it wait."""
        if self._waiting is None or self._passing:
            self._passing = 0
            self.pass_by(bytes(data))
        else:
            self._waiting.append(bytes(data))

    def is_closing(self) -> bool:
        """Return whether it is closed."""
        return self._closed

    def abort(self) -> None:
        """Close it: the agent, whose input ends, ends, too."""
        if self._closed:
            return
        self._closed = True
        pipes, self._pipes = self._pipes, None
        if pipes is not None:
            pipes.expected = True
            pipes.close()
        self._link.connection_lost(None)
        self._over()


class _Pipes(asyncio.Protocol):
    def __init__(self, channel: Channel, link: Link) -> None:
        self._channel = channel
        self._link = link
        self.reader: asyncio.ReadTransport | None = None
        self.writer: asyncio.WriteTransport | None = None
        self.expected = False
        self.drained = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.reader = cast(asyncio.ReadTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._link.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.drained.set()
        if not self.expected:
            self._channel.abort()

    def close(self) -> None:
        if self.reader is not None:
            self.reader.close()
        if self.writer is not None and not self.writer.is_closing():
            self.writer.abort()
