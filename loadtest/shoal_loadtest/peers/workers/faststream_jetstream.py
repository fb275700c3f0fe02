"""FastStream on NATS JetStream: tasks in one stream, results in another, both on disk."""

import asyncio
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any, Final

from shoal_loadtest.peers.workers.protocol import Peer, Settings, cores, main
from shoal_loadtest.peers.workers.services import NATS_SETTINGS, Services

_UNDER_WAY: Final = 1000
"""Publications whose confirmation is waited for together."""
_RESULT_S: Final = 300.0
_UP_S: Final = 60.0


class FaststreamJetstream(Peer):
    """Numbers that are published, and whose like come back."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._runner = asyncio.Runner()
        self._services = Services(place)
        self._broker: Any = None
        self._results: asyncio.Queue[int] = asyncio.Queue()

    def start(self) -> Settings:
        """Start a server, the workers and a client."""
        os.environ["LOADTEST_NATS"] = self._services.nats()
        from shoal_loadtest.peers.workers import faststream_app

        app = "shoal_loadtest.peers.workers.faststream_app:app"
        workers = str(cores())
        self._services.start(
            sys.executable, "-m", "faststream", "run", app, "--workers", workers
        )  # fmt: skip
        self._runner.run(self._connect(faststream_app))
        return {
            "version": importlib.metadata.version("faststream"), "workers": f"{workers} processes",
            "tasks": f"JStream, durable, PullSub(batch_size={faststream_app.BATCH})",
            "results": "another JStream, read by the client", "server": NATS_SETTINGS,
            "unit": "publish() of a number, and the worker's publication of the same",
        }  # fmt: skip

    async def _connect(self, app: Any) -> None:
        from faststream.nats import NatsBroker

        async def take(number: int) -> None:
            self._results.put_nowait(number)

        self._broker = NatsBroker(app.URL, logger=None)
        self._broker.subscriber("results.noop", stream=app.RESULTS)(take)
        await self._broker.start()
        async with asyncio.timeout(_UP_S):
            while not await self._declared():  # noqa: ASYNC110 - nobody tells when they have
                await asyncio.sleep(0.05)
        await self._all(1)

    async def _declared(self) -> bool:
        """Return whether the workers have made their stream."""
        from nats.js.errors import NoStreamResponseError

        try:
            await self._broker.publish(-1, "tasks.noop", stream="tasks", timeout=_RESULT_S)
        except NoStreamResponseError:
            return False
        return await self._results.get() == -1

    async def _all(self, n: int) -> int:
        for first in range(0, n, _UNDER_WAY):
            numbers = range(first, min(first + _UNDER_WAY, n))
            await asyncio.gather(
                *(self._broker.publish(number, "tasks.noop", stream="tasks", timeout=_RESULT_S) for number in numbers)
            )
        async with asyncio.timeout(_RESULT_S):
            return len({await self._results.get() for _ in range(n)})

    def fan_out(self, n: int) -> int:
        """Publish all, and wait for as many results."""
        return self._runner.run(self._all(n))

    def one(self) -> None:
        """Publish one."""
        self._runner.run(self._all(1))

    def stop(self) -> None:
        """Disconnect, end the workers, then the server."""
        if self._broker is not None:
            self._runner.run(self._broker.stop())
        self._runner.close()
        self._services.stop()


if __name__ == "__main__":
    main(FaststreamJetstream)
