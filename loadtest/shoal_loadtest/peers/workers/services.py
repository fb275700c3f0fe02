"""What peers stand on, each on a free port of this machine's loopback: Redis, a NATS server, their own workers."""

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

_NATS: Final = """\
host: "127.0.0.1"
port: {port}
jetstream {{
  store_dir: "{place}/jetstream"
  sync_interval: "10s"
}}
"""
_UP_S: Final = 20.0
_END_S: Final = 20.0
NATS_SERVER: Final = "LOADTEST_NATS_SERVER"
"""The variable that names the program."""
NATS_SETTINGS: Final = "JetStream on disk, sync_interval 10s"


class Services:
    """Programs that were started, and end in the opposite order. What they print goes to files in `place`."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *line: str) -> None:
        """Start one."""
        with (self._place / f"{len(self._processes)}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def redis(self, append_only: str) -> str:
        """Start Redis, with a log on disk or without, and return its address."""
        port = free_port()
        self.start(
            "redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(self._place), "--save", "",
            "--appendonly", append_only, "--appendfsync", "everysec",
        )  # fmt: skip
        until_listening(port)
        return f"redis://127.0.0.1:{port}/0"

    def nats(self) -> str:
        """Start a NATS server with JetStream, and return its address."""
        port = free_port()
        config = self._place / "nats.conf"
        config.write_text(_NATS.format(port=port, place=self._place))
        self.start(os.environ[NATS_SERVER], "--config", str(config))
        until_listening(port)
        return f"nats://127.0.0.1:{port}"

    def stop(self) -> None:
        """End all."""
        while self._processes:
            process = self._processes.pop()
            process.terminate()
            process.wait(timeout=_END_S)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until_listening(port: int) -> None:
    """Wait until somebody listens on a port. Raises TimeoutError."""
    until = time.monotonic() + _UP_S
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port} after {_UP_S:g} s")
