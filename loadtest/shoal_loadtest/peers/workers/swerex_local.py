"""SWE-ReX: its local deployment, which is a shell on this machine and no sandbox."""

import asyncio
import importlib.metadata
from pathlib import Path
from typing import Final

from swerex.deployment.local import LocalDeployment
from swerex.runtime.abstract import BashAction, CloseBashSessionRequest, CreateBashSessionRequest

from shoal_loadtest.peers.workers.protocol import Peer, Settings, cores, main

_SESSION_S: Final = 30.0
"""How long a shell may take to come up: a second by default, which is short where many do."""


class SwerexLocal(Peer):
    """Each unit is a deployment: started, one command in a shell session of it, stopped."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._runner = asyncio.Runner()

    def start(self) -> Settings:
        """Have one, to see that it works."""
        self.one()
        return {
            "version": importlib.metadata.version("swe-rex"), "deployment": "LocalDeployment: no isolation at all",
            "unit": "a deployment with a bash session: started, `true`, stopped", "at a time": str(cores()),
        }  # fmt: skip

    @staticmethod
    async def _unit() -> int:
        deployment = LocalDeployment()
        await deployment.start()
        try:
            runtime = deployment.runtime
            await runtime.create_session(CreateBashSessionRequest(startup_timeout=_SESSION_S))
            seen = await runtime.run_in_session(BashAction(command="true"))
            await runtime.close_session(CloseBashSessionRequest())
        finally:
            await deployment.stop()
        return int(seen.exit_code == 0)

    async def _all(self, n: int) -> int:
        gate = asyncio.Semaphore(cores())

        async def within() -> int:
            async with gate:
                return await self._unit()

        return sum(await asyncio.gather(*(within() for _ in range(n))))

    def fan_out(self, n: int) -> int:
        """Have all."""
        return self._runner.run(self._all(n))

    def one(self) -> None:
        """Have one."""
        if not self._runner.run(self._unit()):
            raise RuntimeError("`true` failed")

    def stop(self) -> None:
        """Nothing is left."""
        self._runner.close()


if __name__ == "__main__":
    main(SwerexLocal)
