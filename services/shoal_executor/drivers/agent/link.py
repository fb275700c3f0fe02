"""The driver's end of a sandbox's link: asks its agent, and hands out the answers."""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import msgspec

from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.protocol import OutputSink

_UP: Final = 0
_STRAYS: Final = 10_000
"""Answers to nothing that are borne with."""


class Link(asyncio.Protocol):
    """One sandbox's link. What comes from the sandbox is a stranger's word: anything but an answer ends the link."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._unpacker = frames.Unpacker()
        self._next = _UP
        self._room: dict[int, dict[int, int]] = {}
        self._strays = 0
        self._waiting: dict[int, tuple[asyncio.Future[frames.Tell | None], OutputSink | None]] = {}
        self.up: asyncio.Future[frames.Tell | None] = asyncio.get_running_loop().create_future()
        self._waiting[_UP] = (self.up, None)

    @property
    def connected(self) -> bool:
        """Whether it has, or had, a transport, which then is what closes the socket."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The link is there."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take answers."""
        try:
            for body in self._unpacker.feed(data):
                self._take(frames.tells.decode(body))
        except (ValueError, msgspec.DecodeError):
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The sandbox is gone: whoever still waits learns so."""
        waiting, self._waiting = self._waiting, {}
        for future, _ in waiting.values():
            if not future.done():
                future.set_result(None)

    async def ask(
        self, make: Callable[[int], frames.Ask], output: OutputSink | None = None, limit: int = 0
    ) -> frames.Tell | None:
        """Ask, and wait for the answer: None when the sandbox ended instead. Cancelled, it cancels the command.

        `output` is given at most `limit` bytes of each channel: an agent that sends more is not ours any more.
        """
        if self._transport is None or self._transport.is_closing():
            return None
        self._next += 1
        id = self._next
        future: asyncio.Future[frames.Tell | None] = asyncio.get_running_loop().create_future()
        self._waiting[id] = (future, output)
        self._room[id] = {1: limit, 2: limit}
        self._transport.write(frames.pack(make(id)))
        try:
            return await future
        except asyncio.CancelledError:
            if not self._transport.is_closing():
                self._transport.write(frames.pack(frames.Cancel(id)))
            raise
        finally:
            self._room.pop(id, None)

    def say(self, message: frames.Ask) -> None:
        """Say what has no answer."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames.pack(message))

    def close(self) -> None:
        """Cut the link."""
        if self._transport is not None:
            self._transport.abort()

    def _take(self, told: frames.Tell) -> None:
        known = self._waiting.get(told.id)
        if known is None or (known[0].done() and isinstance(told, frames.Output)):
            self._strays += 1  # a few are late words on what was cancelled
            if self._strays > _STRAYS:
                self.close()
            return
        future, output = known
        if isinstance(told, frames.Output):
            room = self._room.get(told.id, {})
            room[told.channel] = room.get(told.channel, 0) - len(told.data)
            if room[told.channel] < 0:
                self.close()
            elif output is not None:
                output(told.channel, told.data)
            return
        del self._waiting[told.id]
        if not future.done():
            future.set_result(told)
