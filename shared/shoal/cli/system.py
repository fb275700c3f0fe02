"""The whole system on this machine: the broker, every service, one executor."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final

from shoal import host
from shoal.bus.ending import end
from shoal.cli import statefile
from shoal.cli.exits import Exit, Failure
from shoal.cli.interrupts import checkpoint
from shoal.cli.processes import ended
from shoal.cli.statefile import Running
from shoal.cli.supervisor import Child
from shoal.runtime.lease import start_time

if TYPE_CHECKING:
    from shoal.broker import EmbeddedBroker, EmbeddedCluster
    from shoal.client.results import NodeInfo

_READY_S: Final = 60.0
_POLL_S: Final = 0.05
_STOP_EXECUTOR_S: Final = 20.0
_STOP_SERVICE_S: Final = 20.0  # a leader that is told to stop saves its state, which a slow broker may hold up
_BROKER_PAUSE_S: Final = 0.5


def _quiet(_: str) -> None:
    return


class LocalSystem:
    """Brings everything up when entered and takes it down when left; every part ends with this process.

    `port` 0 takes a free one. `brokers` is 1, or 3 for a cluster that keeps everything thrice; of each service but
    the executor `replicas` run, one at work and the others ready to take over. `driver`: one, or several separated by
    commas, each with `executors` of its own in each of the `cells`; `executor_options` are added to the command line
    of each. `sync_interval`: of the brokers, as NATS writes it, or `always`. `tell` gets a sentence whenever something
    happens that a person should know. Raises Failure when something cannot start; then nothing is left running.
    """

    def __init__(
        self,
        state: Path,
        *,
        port: int = 4222,
        driver: str = "zygote",
        slots: int | None = None,
        nodes: int = 1,
        cells: int = 1,
        brokers: int = 1,
        replicas: int = 1,
        executors: int = 1,
        executor_options: Sequence[str] = (),
        sync_interval: str = "10s",
        tell: Callable[[str], None] = _quiet,
    ) -> None:
        if brokers not in (1, 3):
            raise ValueError(f"{brokers} brokers: there is one, or a cluster of three")
        self._state = state.absolute()
        self._port = port
        self._drivers = driver.split(",")
        self._slots = slots
        self._nodes = nodes
        self._cells = cells
        self._brokers = brokers
        self._replicas = replicas
        self._executors = executors
        self._executor_options = list(executor_options)
        self._sync_interval = sync_interval
        self._broker: EmbeddedBroker | EmbeddedCluster | None = None
        self._servers: dict[str, EmbeddedBroker] = {}
        self._server_restarts: dict[str, int] = {}
        self._tell = tell
        self._children: list[Child] = []
        self._broker_keepers: list[asyncio.Task[None]] = []
        self._lock: IO[str] | None = None
        self._running = Running(os.getpid(), start_time(os.getpid()) or 0, driver=driver)
        self.nodes: list[NodeInfo] = []

    @property
    def url(self) -> str:
        """Where clients connect: an address, or several separated by commas."""
        return self._running.url

    async def __aenter__(self) -> "LocalSystem":
        self._lock = statefile.lock(self._state)
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start(self) -> None:
        began_ms = time.time_ns() // 1_000_000
        self._note()
        await self._start_broker()
        checkpoint()
        self._tell("starting the services")
        blobs = ["--blobs", (self._state / "blobs").as_uri()]
        # Whoever starts all of it by one command may name any directory that is theirs.
        roots = ["--template-roots", os.environ.get("SHOAL_TEMPLATE_ROOTS") or "/"]
        kept = [*blobs, "--state", str(self._state / "snapshot"), *roots]
        for name, options in (("scheduler", []), ("placement", []), ("snapshot", kept)):
            for number in range(1, self._replicas + 1):
                self._add(name if number == 1 else f"{name}-{number}", f"shoal_{name}", *options)
        for cell in range(self._cells):
            for number, driver in enumerate(self._drivers):
                for copy in range(self._executors):
                    end = (f"-{driver}" if number else "") + (f"-cell{cell}" if cell else "")
                    end += f"-{copy + 1}" if copy else ""
                    options = ["--executor", f"local{end}", "--driver", driver, "--cell", str(cell)]
                    options += ["--state", str(self._state / f"executor{end}"), *blobs, *roots]
                    options += [*self._size(cell * self._executors + copy), *self._executor_options]
                    self._add(f"executor{end}", "shoal_executor", *options, death_signal=signal.SIGTERM)
        failures = [child.failure for child in self._children]
        ready = asyncio.create_task(self._ready(began_ms))
        try:
            awaited: list[asyncio.Future[Any]] = [ready, *failures]
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            for failure in failures:
                if failure.done():
                    raise failure.result()
            await ready
        finally:
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)
        checkpoint()
        for child in self._children:
            child.settled()
        self._running.ready = True
        self._note()

    def _size(self, number: int) -> list[str]:
        """Return the options for how much one of a driver's executors has: all of them share this machine."""
        options = [] if self._slots is None else ["--slots", str(self._slots)]
        each = self._cells * self._executors
        nodes = self._nodes // each + (number < self._nodes % each)
        if nodes > 1:
            options += ["--nodes", str(nodes)]
        if (sharing := len(self._drivers) * each) > 1 and not os.environ.get("SHOAL_MEMORY"):
            options += ["--memory", str(host.memory() // sharing)]
        return options

    async def _start_broker(self) -> None:
        from shoal.broker import BrokerError, EmbeddedBroker, EmbeddedCluster

        one, three, sync = self._state / "broker", self._state / "brokers", self._sync_interval
        mine, other = (one, three) if self._brokers == 1 else (three, one)
        again = mine.exists()
        if other.exists():
            raise Failure(
                Exit.STATE_DIRECTORY,
                f"what is in {self._state} was made with --brokers {4 - self._brokers} and stays there; "
                f"go on with that, or name another directory with --state",
            )
        try:
            if self._brokers == 1:
                self._tell("starting the broker")
                self._broker = broker = EmbeddedBroker(one, port=self._port, sync_interval=sync)
                self._servers = {"broker": broker}
            else:
                self._tell(f"starting {self._brokers} brokers")
                self._broker = cluster = EmbeddedCluster(three, port=self._port, sync_interval=sync)
                self._servers = {f"broker-{number}": server for number, server in enumerate(cluster.servers, 1)}
            await self._broker.start()
        except BrokerError as error:
            status = Exit.PORT if str(error).startswith("port ") else Exit.START_FAILED
            raise Failure(status, str(error)) from error
        self._running.url = self._broker.url
        self._broker_keepers = [
            asyncio.create_task(self._keep_broker(name, server), name=f"keep {name}")
            for name, server in self._servers.items()
        ]
        if again:
            await self._check_cells()

    async def _check_cells(self) -> None:
        """Raise Failure where the cluster that is there has another number of cells: it keeps that."""
        from shoal.bus.jetstream import JetStreamBus
        from shoal.bus.protocol import BusError
        from shoal.runtime.cluster import cells_of

        cells = None
        with contextlib.suppress(BusError):  # whoever needs an answer asks again
            bus = await JetStreamBus.connect(self.url, name="shoal-up")
            try:
                cells = await cells_of(bus)
            finally:
                await bus.close()
        if cells is not None and cells != self._cells:
            raise Failure(
                Exit.STATE_DIRECTORY,
                f"what is in {self._state} was made with --cells {cells} and stays so; "
                f"go on with that, or name another directory with --state",
            )

    def _add(self, name: str, module: str, *options: str, death_signal: int = signal.SIGKILL) -> None:
        argv = [sys.executable, "-P", "-m", module, "--url", self.url, *options]
        if "--cells" not in options:
            argv += ["--cells", str(self._cells), "--stream-replicas", str(self._brokers)]
        log = self._state / "log" / f"{name}.log"
        child = Child(name, argv, log, tell=self._tell, changed=self._note, death_signal=death_signal)
        self._children.append(child)
        child.start()

    async def _ready(self, began_ms: int) -> None:
        """Wait until the executor has joined and the scheduler has taken in that there is room."""
        from shoal.bus.jetstream import JetStreamBus
        from shoal.bus.protocol import BusError
        from shoal.cli.connecting import connect
        from shoal.client.errors import ShoalError
        from shoal.runtime.lease import position_of
        from shoal.wire import streams

        until = time.monotonic() + _READY_S
        waiting = "the cluster to be set up"
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + _READY_S):
                while True:
                    with contextlib.suppress(ShoalError, BusError):
                        async with connect(self.url) as cluster:
                            waiting = "an executor to join"
                            self._tell("waiting for the executor")
                            awaited = len(self._drivers) * self._cells * self._executors
                            while len({node.executor for node in self.nodes}) < awaited:
                                found = await cluster.nodes()
                                self.nodes = [
                                    node for node in found if node.state == "alive" and node.last_seen_ms >= began_ms
                                ]
                                await asyncio.sleep(_POLL_S)
                        waiting = "the scheduler to hear of it"
                        bus = await JetStreamBus.connect(self.url, name="shoal-up")
                        try:
                            for cell in range(self._cells):
                                log = streams.rollout(cell).name
                                while time.monotonic() < until:
                                    last = await bus.last_sequence(log)
                                    if last and await position_of(bus, f"scheduler.{cell}") >= last:
                                        break
                                    await asyncio.sleep(_POLL_S)
                            return
                        finally:
                            await bus.close()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise Failure(
                Exit.START_FAILED,
                f"the system is not ready after {_READY_S:g} s: still waiting for {waiting}; see {self._state / 'log'}",
            ) from error

    async def _keep_broker(self, name: str, server: "EmbeddedBroker") -> None:
        from shoal.broker import BrokerError

        while True:
            try:
                pid = server.pid
                self._note()
                why = await self._until_useless(name, server, pid)
                self._server_restarts[name] = self._server_restarts.get(name, 0) + 1
                self._note()
                self._tell(f"{name} (pid {pid}) {why}; starting it again")
                await server.stop()
            except BrokerError:
                pass
            try:
                await server.start()
            except BrokerError as error:
                self._tell(f"{name} cannot be started: {error}; trying again in {_BROKER_PAUSE_S:g} s")
                await asyncio.sleep(_BROKER_PAUSE_S)

    async def _until_useless(self, name: str, server: "EmbeddedBroker", pid: int) -> str:
        """Wait until a server is dead, or as good as that; returns which."""
        from shoal.broker.room import room_again

        death = asyncio.create_task(ended(pid), name=f"death of {name}")
        room = asyncio.create_task(room_again(name, server.state, self._tell), name=f"room of {name}")
        try:
            await asyncio.wait({death, room}, return_when=asyncio.FIRST_COMPLETED)
            if death.done() or room.exception() is not None:
                await death
                return "died"
            return f"stores nothing though its disk has room again: {room.result()}"
        finally:
            await end(death, room)

    def _note(self) -> None:
        """Store who runs, for `shoal status`."""
        from shoal.broker import BrokerError

        services: dict[str, dict[str, object]] = {}
        for name, server in self._servers.items() if self._running.url else ():
            restarts = self._server_restarts.get(name, 0)
            try:
                services[name] = {"pid": server.pid, "state": "running", "restarts": restarts}
            except BrokerError:
                services[name] = {"pid": None, "state": "restarting", "restarts": restarts}
        for child in self._children:
            services[child.name] = {"pid": child.pid, "state": child.state, "restarts": child.restarts}
        self._running.services = services
        if self._lock is not None:
            with contextlib.suppress(OSError):  # a full disk must not end what runs
                statefile.write(self._state, self._running)

    async def stop(self) -> None:
        """Take everything down: the executor first, so that it can say so, the broker last. Idempotent."""
        stopping = asyncio.create_task(self._stop())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            await stopping  # a second Ctrl-C changes nothing (a third ends us)
            raise

    async def _stop(self) -> None:
        children, self._children = list(self._children), []
        executors = [child for child in children if child.name.startswith("executor")]
        await asyncio.gather(*(child.stop(_STOP_EXECUTOR_S) for child in executors))
        await asyncio.gather(*(child.stop(_STOP_SERVICE_S) for child in children if child not in executors))
        keepers, self._broker_keepers = list(self._broker_keepers), []
        await end(*keepers)
        if self._running.url and self._broker is not None:
            await self._broker.stop()
        if self._lock is not None:
            statefile.remove(self._state)
            self._lock.close()
            self._lock = None
