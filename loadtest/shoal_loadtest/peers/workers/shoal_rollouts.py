"""Shoal itself, with the driver in the second argument: `cluster.map`, and a rollout of one."""

import asyncio
import contextlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Final

import uvloop

import shoal
from shoal.cli.system import LocalSystem
from shoal_loadtest.peers.workers.protocol import Peer, Settings, serve

_NODES: Final = 1000
_RESTORED: Final = "gvisor-restored"


class ShoalRollouts(Peer):
    """Each unit is a sandbox with one `true` in it; simulated ones start no process."""

    def __init__(self, place: Path, kind: str) -> None:
        super().__init__(place)
        self._kind = kind
        self._driver = kind.partition("-")[0]
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._stack = contextlib.AsyncExitStack()
        self._cluster: shoal.Cluster | None = None
        self._start: str | shoal.Snapshot = "host"

    def start(self) -> Settings:
        """Bring a system up."""
        self._runner.run(self._up())
        simulated = self._driver == "simulated"
        unit = "a simulated sandbox: no process" if simulated else "a sandbox: started, `true`, ended"
        nodes = f"{_NODES} simulated" if simulated else "1"
        return {
            "version": importlib.metadata.version("shoal"), "isolation": self._kind, "nodes": nodes,
            "broker": "one server, JetStream on disk, sync_interval 10s", "unit": f"{unit}, in cluster.map()",
        }  # fmt: skip

    async def _up(self) -> None:
        nodes = _NODES if self._driver == "simulated" else 1
        system = LocalSystem(self.place / "state", port=0, driver=self._driver, nodes=nodes)
        await self._stack.enter_async_context(system)
        self._cluster = await self._stack.enter_async_context(shoal.connect(system.url))
        if self._kind == _RESTORED:
            async with self._cluster.rollout("host", 1) as rollout:
                async for sandbox in rollout.ready():
                    self._start = await sandbox.snapshot(memory=True)
        await self._map(2)

    async def _map(self, n: int) -> int:
        assert self._cluster is not None
        outcomes = await self._cluster.map(self._start, [["true"]] * n)
        return sum(outcome.exit_code == 0 for outcome in outcomes)

    def fan_out(self, n: int) -> int:
        """Map `true` over so many sandboxes."""
        return self._runner.run(self._map(n))

    def one(self) -> None:
        """Map it over one."""
        if self._runner.run(self._map(1)) != 1:
            raise RuntimeError("`true` failed")

    def stop(self) -> None:
        """Take the system down."""
        self._runner.run(self._stack.aclose())
        self._runner.close()


if __name__ == "__main__":
    serve(ShoalRollouts(Path(sys.argv[1]), sys.argv[2]))
