"""A pipe's end, for an event loop to own."""

import asyncio
import os


class PipeEnd:
    """What `connect_read_pipe` and `connect_write_pipe` take: the loop closes the descriptor, once.

    uvloop closes the descriptor by itself and then the object it was given as well. A file object would then close a
    number which by that time may be another's, who opened something in another thread.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._mine = isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def close(self) -> None:
        """Close it, if the loop has not."""
        if self._mine:
            self._mine = False
            os.close(self._fd)
