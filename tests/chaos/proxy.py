"""A TCP proxy on loopback that cuts, stalls and delays what goes through it."""

import asyncio
import socket
import struct
from types import TracebackType

_PIECE = 64 * 1024


class _Pair:
    """One connection: a client's half, the server's half, and a pump for each direction."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.pumps: set[asyncio.Task[None]] = set()

    def cut(self, *, reset: bool) -> None:
        """End both halves at once: with a reset, or as if both had closed; what was under way is lost."""
        for pump in self.pumps:
            pump.cancel()
        for writer in (self.client, self.server):
            if writer is None or writer.transport.is_closing():
                continue
            sock = writer.get_extra_info("socket")
            if reset and sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes everything on to another one. Counts what it did."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.delay_s = 0.0
        """How long each piece is held back, in each direction, in seconds."""
        self.port = 0
        self.accepted = 0
        self.cuts = 0
        self.passed = 0

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._pairs)

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        while self._pairs:
            await asyncio.sleep(0.01)
        await self._server.wait_closed()

    def cut(self, *, reset: bool = True) -> None:
        """End every connection there is."""
        for pair in list(self._pairs):
            self.cuts += 1
            pair.cut(reset=reset)

    def stall(self) -> None:
        """Accept connections and read nothing from any: no end can tell it from a network that drops everything."""
        self._flows.clear()

    def go_on(self) -> None:
        """Pass on what came meanwhile, late as it is, and all that comes."""
        self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        pair = _Pair(writer)
        self._pairs.add(pair)
        try:
            there, pair.server = await asyncio.open_connection("127.0.0.1", self._target)
            if writer.transport.is_closing():  # it was cut meanwhile
                return
            pair.pumps = {
                asyncio.create_task(self._pump(reader, pair.server)),
                asyncio.create_task(self._pump(there, writer)),
            }
            await asyncio.wait(pair.pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the other side is not there: neither are we
        finally:
            for pump in pair.pumps:
                pump.cancel()
            await asyncio.gather(*pair.pumps, return_exceptions=True)
            for each in (writer, pair.server):
                if each is not None:
                    each.transport.abort()
            await asyncio.sleep(0)  # the loop closes them now
            self._pairs.discard(pair)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._flows.wait()
            piece = await reader.read(_PIECE)
            await self._flows.wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if not piece:
                return
            writer.write(piece)
            await writer.drain()
            self.passed += len(piece)
