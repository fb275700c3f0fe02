"""What an agent hears its driver on, and answers."""

from typing import Protocol


class Line(Protocol):
    """A link to a driver: a socket, or what does as one."""

    def fileno(self) -> int:
        """Return what is readable when there is something to receive."""
        ...

    def recv(self, size: int, /) -> bytes:
        """Receive something, nothing at the end."""
        ...

    def send(self, data: bytearray, /) -> int:
        """Send some of it."""
        ...

    def close(self) -> None:
        """End it."""
        ...
