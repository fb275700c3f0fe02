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
_CLOSING_S: Final = 1.0
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
        self.encrypted = False
        """Whether TLS is up."""

    def _begin(
        self, buffer_size: int, encrypted: bool
    ) -> "tuple[asyncio.AbstractEventLoop, asyncio.StreamReader, Frames]":
        reader = asyncio.StreamReader(limit=buffer_size)
        return asyncio.get_running_loop(), reader, Frames(reader, self._heard, encrypted)

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect. Raises OSError, TimeoutError."""
        self.encrypted = False
        loop, reader, frames = self._begin(buffer_size, encrypted=False)
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
        loop, reader, frames = self._begin(buffer_size, encrypted=True)
        host = uri if isinstance(uri, str) else uri.hostname
        bare = self._io_writer.transport
        told = bare.get_protocol()
        try:
            async with asyncio.timeout(connect_timeout):
                transport = await loop.start_tls(bare, frames, ssl_context, server_hostname=host)
            assert transport is not None
        except BaseException as error:
            # The loop has put its own protocol in the place of this one, which would never hear of the end; whoever
            # closes waits for that.
            bare.abort()
            told.connection_lost(error if isinstance(error, Exception) else None)
            raise
        self._io_reader, self._io_writer = reader, asyncio.StreamWriter(transport, frames, reader, loop)
        self.encrypted = True

    @property
    def trouble(self) -> Exception | None:
        """Why the connection ended, where that is known: what was written then fails without saying so."""
        return None if self._io_reader is None else self._io_reader.exception()

    async def readline(self) -> bytes:
        """Return a line of what comes before anything else. Raises OSError, also where there is none any more."""
        line: bytes = await super().readline()  # type: ignore[no-untyped-call]  # nats-py's says no types
        if not line:
            raise ConnectionResetError("it ended the connection before it had answered")
        return line

    async def wait_closed(self) -> None:
        """Wait until it is closed. A peer that hangs takes no more, and is not waited for."""
        try:
            async with asyncio.timeout(_CLOSING_S):
                await super().wait_closed()  # type: ignore[no-untyped-call]  # nats-py's says no types
        except TimeoutError:
            if self._io_writer is not None:
                self._io_writer.transport.abort()


class Frames(asyncio.StreamReaderProtocol):
    """Cuts what comes into frames: a line, and behind a message's line its headers and its payload."""

    def __init__(self, reader: asyncio.StreamReader, heard: Heard, encrypted: bool = False) -> None:
        super().__init__(reader)
        self._heard = heard
        self._encrypted = encrypted
        self._begun: list[bytes] = []  # what is there of a frame
        self._missing = 0  # and how many bytes are not, as far as is known
        self._cut = True

    def eof_received(self) -> bool | None:
        """Return whether to go on writing, which TLS cannot: it warns of whoever wants to."""
        return bool(super().eof_received()) and not self._encrypted

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
