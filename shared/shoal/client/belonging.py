"""Whose a connection is: it is used in the process and the event loop that made it, until it is closed."""

import asyncio
import os
from typing import Final, Never, Self

from shoal.client.errors import NotConnected

CLOSED: Final = "this connection was closed; connect again"


class Live:
    """A handle of something that lives: what it does goes through the connection of its process."""

    def __reduce__(self) -> Never:
        raise TypeError(
            f"a {type(self).__name__} is a live handle and stays in its process: hand over rollout.id, connect there,"
            " and attach() to it"
        )

    def __copy__(self) -> Self:
        return self


class Process:
    """The process that made a connection: of what a fork leaves to another one, nothing goes on there by itself."""

    def __init__(self) -> None:
        self._id = os.getpid()

    @property
    def here(self) -> bool:
        """Whether this is it."""
        return os.getpid() == self._id

    def check(self, address: str = "") -> None:
        """Raise NotConnected in another process."""
        if not self.here:
            raise NotConnected(address, f"this connection belongs to process {self._id}; connect again in this one")


class Belonging:
    """Where a connection of the running event loop may be used. `address` is for people."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self.process = Process()
        self.closed = False

    def check(self) -> None:
        """Raise NotConnected where it cannot be used: at once, for nobody would hear of it what he waits for."""
        self.process.check(self._address)
        if self.closed:
            raise NotConnected(self._address, CLOSED)
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return  # nothing is waited for
        if running is not self._loop:
            raise NotConnected(
                self._address,
                "this connection belongs to another event loop, such as that of an earlier asyncio.run(); connect again"
                " in this one",
            )

    def leave(self) -> bool:
        """Use it no more; return whether there is anything to end. Idempotent.

        What a fork left here is its process's, and only forgotten; with an event loop that has ended, so has all of it.
        Raises NotConnected where another event loop has it and goes on.
        """
        if not self.closed and self.process.here and not self._loop.is_closed():
            self.check()
            self.closed = True
            return True
        self.closed = True
        return False
