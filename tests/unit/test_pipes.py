"""A pipe's end is closed once, whichever event loop owns it."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from shoal_executor.drivers.pipes import PipeEnd


class Counted(PipeEnd):
    """Notes whether its descriptor was open when the loop closed it, and closes nothing twice unseen."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.closed: list[bool] = []

    def close(self) -> None:
        try:
            os.fstat(self.fileno())
            self.closed.append(True)
        except OSError:
            self.closed.append(False)
        super().close()  # raises OSError where somebody has closed it before


async def closed_once() -> None:
    for kind in ("read", "write"):
        read, write = os.pipe()
        loop = asyncio.get_running_loop()
        transport: Any
        if kind == "read":
            end, other = Counted(read), write
            transport, _ = await loop.connect_read_pipe(asyncio.Protocol, end)
        else:
            end, other = Counted(write), read
            transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, end)
        transport.close()
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(end.closed) == 1
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end.fileno())
        os.close(other)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_pipes_end_is_closed_once(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    run(closed_once())
