"""Celery with Redis as broker and as result backend; the second argument says whether Redis keeps a log on disk."""

import os
import sys
from pathlib import Path
from typing import Any

from shoal_loadtest.peers.workers.protocol import Peer, Settings, cores, serve
from shoal_loadtest.peers.workers.services import Services


class CeleryRedis(Peer):
    """A group of tasks, whose results are waited for."""

    def __init__(self, place: Path, append_only: str) -> None:
        super().__init__(place)
        self._append_only = append_only
        self._services = Services(place)
        self._noop: Any = None

    def start(self) -> Settings:
        """Start Redis and a worker; return when that has done something."""
        os.environ["LOADTEST_REDIS"] = self._services.redis(self._append_only)
        import celery

        from shoal_loadtest.peers.workers import celery_app

        self._services.start(
            sys.executable, "-m", "celery", "-A", "shoal_loadtest.peers.workers.celery_app", "worker",
            f"--concurrency={cores()}", "--loglevel=ERROR", "--pool=prefork",
        )  # fmt: skip
        self._noop = celery_app.noop
        self.one()
        return {
            "version": celery.__version__, "workers": f"prefork, {cores()}",
            "worker_prefetch_multiplier": str(celery_app.PREFETCH), "task_acks_late": "yes",
            "redis": f"appendonly {self._append_only}, appendfsync everysec, no snapshots",
            "unit": "a group() of tasks that return their argument, and its get()",
        }  # fmt: skip

    def fan_out(self, n: int) -> int:
        """Apply a group, then get its results."""
        from celery import group

        done = group(self._noop.s(number) for number in range(n)).apply_async()
        return len(set(done.get(timeout=600)))

    def one(self) -> None:
        """Delay one."""
        self._noop.delay(0).get(timeout=60)

    def stop(self) -> None:
        """End the worker, then Redis."""
        self._services.stop()


if __name__ == "__main__":
    serve(CeleryRedis(Path(sys.argv[1]), sys.argv[2]))
