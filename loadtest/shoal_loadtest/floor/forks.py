"""The fork server of the driver `zygote` alone: namespaces and a root of one's own, but no control groups."""

import asyncio
import itertools
import os
import socket
import time
from pathlib import Path
from typing import Final

from shoal.wire.messages import Resources, Snapshot
from shoal_executor.drivers import roots
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.link import Link
from shoal_executor.drivers.inhabited import sizes
from shoal_executor.drivers.protocol import DriverError
from shoal_executor.drivers.zygote.filter import compile_filter
from shoal_executor.drivers.zygote.forkserver import ForkServer
from shoal_loadtest.floor.bare import Missing
from shoal_loadtest.floor.loops import TRUE

_BASE: Final = 1_870_659_584
"""The first uid of its sandboxes, below those of any executor."""
_PATIENCE_S: Final = 5.0
_END_S: Final = 30.0


class ForkLoop:
    """See the module."""

    name = "fork server alone"

    def __init__(self) -> None:
        self._server: ForkServer | None = None
        self._ended: dict[str, asyncio.Event] = {}
        self._numbers = itertools.count()

    async def open(self, place: Path) -> None:
        """Launch it."""
        root, usr = await asyncio.to_thread(roots.root_of, Snapshot("host", "host"), place)
        (place / "scratch").mkdir()
        base = _BASE if os.geteuid() == 0 else -1
        scratch, program = str(place / "scratch"), compile_filter()
        template = frames.Template(str(root), usr, scratch, base, -1, -1, _PATIENCE_S, program)
        server = ForkServer(self._hear, lambda _: None)
        try:
            await server.launch(template, place / "diary", place / "fork", "host")
        except DriverError as error:
            raise Missing(f"the fork server failed: {error}") from error
        self._server = server
        await self.unit("first")

    def _hear(self, _: ForkServer, event: frames.Event, ours: socket.socket | None) -> None:
        if event.name in self._ended:
            self._ended[event.name].set()

    async def unit(self, name: str) -> float:
        """Fork, ask the agent to run `true`, kill."""
        assert self._server is not None
        began = time.perf_counter()
        ours, theirs = socket.socketpair()
        link, ended = Link(), asyncio.Event()
        self._ended[name] = ended
        await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
        disk, shm = sizes(Resources())
        self._server.fork(frames.Order(name, disk=disk, shm=shm), [theirs.fileno()])
        theirs.close()
        up = await link.up
        if not isinstance(up, frames.Up) or up.error:
            raise Missing(f"a fork failed: {up.error if isinstance(up, frames.Up) else 'it ended'}")
        done = await link.ask(lambda id: frames.Run(id, TRUE, False), None, TRUE.output_limit)
        if not isinstance(done, frames.Done) or done.result.exit_code:
            raise Missing(f"a command failed: {done}")
        took = time.perf_counter() - began
        self._server.kill(name)
        async with asyncio.timeout(_END_S):
            await ended.wait()
        link.close()
        del self._ended[name]
        return took

    async def close(self) -> None:
        """End it, and all it forked."""
        if self._server is not None:
            await self._server.end()
