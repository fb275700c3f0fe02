"""taskiq with its NATS JetStream broker, and its result backend in a NATS object store."""

import asyncio
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from shoal_loadtest.peers.workers.celery_redis import _until_listening, free_port
from shoal_loadtest.peers.workers.protocol import Peer, Settings, cores, main

_CONFIG: Final = """\
host: "127.0.0.1"
port: {port}
jetstream {{
  store_dir: "{place}/jetstream"
  sync_interval: "10s"
}}
"""
_LOOK_S: Final = 0.02
_AT_A_TIME: Final = 32
"""Results looked for at a time: with a thousand, some that are there are not found."""


class TaskiqNats(Peer):
    """Tasks that are kicked, and whose results are looked for until they are there."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._runner = asyncio.Runner()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._noop: Any = None
        self._broker: Any = None

    def start(self) -> Settings:
        """Start a server, a client and the workers."""
        port = free_port()
        config = self.place / "nats.conf"
        config.write_text(_CONFIG.format(port=port, place=self.place))
        self._run(os.environ["LOADTEST_NATS_SERVER"], "--config", str(config))
        _until_listening(port)
        os.environ["LOADTEST_NATS"] = f"nats://127.0.0.1:{port}"
        from shoal_loadtest.peers.workers import taskiq_app

        self._noop, self._broker = taskiq_app.noop, taskiq_app.broker
        self._runner.run(self._broker.startup())
        app = "shoal_loadtest.peers.workers.taskiq_app:broker"
        self._run(sys.executable, "-m", "taskiq", "worker", "--workers", str(cores()), "--log-level", "ERROR", app)
        self.one()
        return {
            "version": importlib.metadata.version("taskiq-nats"), "broker": "PullBasedJetStreamBroker, one message a pull",
            "results": f"NATSObjectStoreResultBackend, looked for every {_LOOK_S:g} s",
            "workers": f"{cores()} processes, max_async_tasks 100", "server": "JetStream on disk, sync_interval 10s",
            "unit": "kiq() of a task that returns its argument, and wait_result()",
        }  # fmt: skip

    def _run(self, *line: str) -> None:
        log = (self.place / f"{len(self._processes)}.log").open("wb")
        with log:
            self._processes.append(subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    async def _unit(self, number: int) -> int:
        task = await self._noop.kiq(number)
        found = await task.wait_result(check_interval=_LOOK_S, timeout=300)
        return int(found.return_value)

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
        self._runner.run(self._unit(0))

    def stop(self) -> None:
        """Disconnect, end the workers, then the server."""
        self._runner.run(self._broker.shutdown())
        self._runner.close()
        for process in reversed(self._processes):
            process.terminate()
            process.wait(timeout=20)


if __name__ == "__main__":
    main(TaskiqNats)
