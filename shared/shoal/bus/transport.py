"""nats-py's TCP transport, which takes out of what comes the messages that somebody listens for.

nats-py reads through a stream: what comes is copied into a buffer, wakes a task in the loop's next turn, and is matched
there against one expression after the other. Here each message for a listener goes straight to it, in the turn of the
event loop in which its bytes came. All else, frame by frame, goes the stream's way to nats-py's parser. See ADR 0023.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Final
from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport

_END: Final = b"\r\n"
_BREAK: Final = len(_END)
_MESSAGES: Final = (b"MSG ", b"HMSG ")

Heard = Callable[[int, bytes, bytes, bytes, bytes], bool]
"""Called with the number of a subscription and a message's subject, where to reply, headers and payload.

Returns whether somebody listens for it; where nobody does, it is nats-py's.
"""


class DirectTransport(TcpTransport):
    """See the module."""

    def __init__(self, heard: Heard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nats-py's says no types
        self._heard = heard

    def _begin(self, buffer_size: int) -> "tuple[asyncio.AbstractEventLoop, asyncio.StreamReader, Frames]":
        reader = asyncio.StreamReader(limit=buffer_size)
        return asyncio.get_running_loop(), reader, Frames(reader, self._heard)

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect. Raises OSError, TimeoutError."""
        loop, reader, frames = self._begin(buffer_size)
        async with asyncio.timeout(connect_timeout):
            transport, _ = await loop.create_connection(lambda: frames, uri.hostname or "", uri.port or 0)
        writer = asyncio.StreamWriter(transport, frames, reader, loop)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = writer

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Go on encrypted. Raises OSError, TimeoutError."""
        assert self._io_writer is not None, "connect first"
        loop, reader, frames = self._begin(buffer_size)
        host = uri if isinstance(uri, str) else uri.hostname
        async with asyncio.timeout(connect_timeout):
            transport = await loop.start_tls(self._io_writer.transport, frames, ssl_context, server_hostname=host)
        assert transport is not None
        self._io_reader, self._io_writer = reader, asyncio.StreamWriter(transport, frames, reader, loop)


class Frames(asyncio.StreamReaderProtocol):
    """Cuts what comes into frames: a line, and behind a message's line its headers and its payload."""

    def __init__(self, reader: asyncio.StreamReader, heard: Heard) -> None:
        super().__init__(reader)
        self._heard = heard
        self._begun: list[bytes] = []  # what is there of a frame
        self._missing = 0  # and how many bytes are not, as far as is known
        self._cut = True

    def data_received(self, data: bytes) -> None:
        """Hand over all frames that are whole now."""
        if self._begun:
            self._begun.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._begun)
            self._begun.clear()
        at = 0
        while at < len(data) and self._cut:
            try:
                stop = self._frame(data, at)
            except ValueError:  # it is none: nats-py says so, and ends the connection
                self._cut = False
                break
            if stop > len(data):
                self._begun.append(data[at:])
                self._missing = stop - len(data)
                return
            at = stop
        if at < len(data):
            super().data_received(data[at:])

    def _frame(self, data: bytes, at: int) -> int:
        """Hand over the frame that begins there; returns where it ends, or how far there must be more of it at least.

        Raises ValueError for what is no frame.
        """
        end = data.find(_END, at)
        if end < 0:
            return len(data) + 1
        body = end + _BREAK
        if not data.startswith(_MESSAGES, at):
            super().data_received(data[at:body])
            return body
        words = data[at:end].split()
        count, fixed = len(words), 5 if words[0] == b"HMSG" else 4
        size = int(words[-1])
        last = body + size
        stop = last + _BREAK
        if size < 0 or not fixed <= count <= fixed + 1:
            raise ValueError
        if stop > len(data):
            return stop
        head = body + int(words[-2]) if fixed == 5 else body
        reply = words[3] if count > fixed else b""
        if not self._heard(int(words[2]), words[1], reply, data[body:head], data[head:last]):
            super().data_received(data[at:stop])
        return stop
