"""taskiq with its NATS JetStream broker, and its result backend in a NATS object store."""

import asyncio
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any, Final

from shoal_loadtest.peers.workers.protocol import Peer, Settings, cores, main
from shoal_loadtest.peers.workers.services import NATS_SETTINGS, Services

_LOOK_S: Final = 0.002
_AT_A_TIME: Final = 32
"""Results looked for at a time."""


class TaskiqJetstream(Peer):
    """Tasks that are kicked, and whose results are looked for until they are there.

    Each result that is found leaves consumers for a while, and a server allows a thousand of them: so units are few.
    """

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._runner = asyncio.Runner()
        self._services = Services(place)
        self._noop: Any = None
        self._broker: Any = None

    def start(self) -> Settings:
        """Start a server, a client and the workers."""
        os.environ["LOADTEST_NATS"] = self._services.nats()
        from shoal_loadtest.peers.workers import taskiq_app

        self._noop, self._broker = taskiq_app.noop, taskiq_app.broker
        self._runner.run(self._broker.startup())
        app = "shoal_loadtest.peers.workers.taskiq_app:broker"
        workers = str(cores())
        self._services.start(
            sys.executable, "-m", "taskiq", "worker", "--workers", workers, "--log-level", "ERROR", app
        )
        self.one()
        return {
            "version": importlib.metadata.version("taskiq-nats"),
            "broker": "PullBasedJetStreamBroker, one message a pull",
            "results": f"NATSObjectStoreResultBackend, looked for every {_LOOK_S:g} s, {_AT_A_TIME} at a time",
            "workers": f"{workers} processes, max_async_tasks 100", "server": NATS_SETTINGS,
            "unit": "kiq() of a task that returns its argument, and wait_result()",
        }  # fmt: skip

    async def _all(self, n: int) -> int:
        tasks = await asyncio.gather(*(self._noop.kiq(number) for number in range(n)))
        gate = asyncio.Semaphore(_AT_A_TIME)

        async def result(task: Any) -> int:
            async with gate:
                return int((await task.wait_result(check_interval=_LOOK_S, timeout=300)).return_value)

        return len(set(await asyncio.gather(*map(result, tasks))))

    def fan_out(self, n: int) -> int:
        """Kick all, then wait for all."""
        return self._runner.run(self._all(n))

    def one(self) -> None:
        """Kick one."""
        self._runner.run(self._all(1))

    def stop(self) -> None:
        """Disconnect, end the workers, then the server."""
        if self._broker is not None:
            self._runner.run(self._broker.shutdown())
        self._runner.close()
        self._services.stop()


if __name__ == "__main__":
    main(TaskiqJetstream)
