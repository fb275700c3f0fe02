"""Celery with Redis as broker and as result backend; the second argument says whether Redis keeps a log on disk."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shoal_loadtest.peers.workers.protocol import Peer, Settings, cores, serve


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class CeleryRedis(Peer):
    """A group of tasks, whose results are waited for."""

    def __init__(self, place: Path, append_only: str) -> None:
        super().__init__(place)
        self._append_only = append_only
        self._processes: list[subprocess.Popen[bytes]] = []
        self._noop: Any = None

    def start(self) -> Settings:
        """Start Redis and a worker; return when that has done something."""
        port = free_port()
        self._run(
            "redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(self.place), "--save", "",
            "--appendonly", self._append_only, "--appendfsync", "everysec",
        )  # fmt: skip
        _until_listening(port)
        os.environ["LOADTEST_REDIS"] = f"redis://127.0.0.1:{port}/0"
        import celery

        from shoal_loadtest.peers.workers import celery_app

        self._run(
            sys.executable, "-m", "celery", "-A", "shoal_loadtest.peers.workers.celery_app", "worker",
            f"--concurrency={cores()}", "--loglevel=ERROR", "--pool=prefork",
        )  # fmt: skip
        self._noop = celery_app.noop
        self._noop.delay(0).get(timeout=60)
        return {
            "version": celery.__version__, "workers": f"prefork, {cores()}",
            "worker_prefetch_multiplier": str(celery_app.PREFETCH), "task_acks_late": "yes",
            "redis": f"appendonly {self._append_only}, appendfsync everysec, no snapshots",
            "unit": "a group() of tasks that return their argument, and its get()",
        }  # fmt: skip

    def _run(self, *line: str) -> None:
        log = (self.place / f"{len(self._processes)}.log").open("wb")
        with log:
            self._processes.append(subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

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
        for process in reversed(self._processes):
            process.terminate()
            process.wait(timeout=20)


def _until_listening(port: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port} after 20 s")


if __name__ == "__main__":
    serve(CeleryRedis(Path(sys.argv[1]), sys.argv[2]))
