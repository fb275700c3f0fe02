"""Three nats-servers on this machine that keep every stream thrice: as on three machines, but for the one disk."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from shoal.broker.embedded import BrokerError, EmbeddedBroker, Routes, check_port, free_ports
from shoal.bus.api import Api
from shoal.bus.connection import Connection
from shoal.bus.protocol import BusError

SERVERS: Final = 3
_POLL_S: Final = 0.05


class EmbeddedCluster:
    """Three servers, each with its own directory `1`, `2` and `3` in a state directory, connected by routes.

    They end with the process (strictly: the thread) that started them, however that ends, unless `detached`.
    """

    def __init__(self, state: Path, *, port: int = 0, sync_interval: str = "10s", detached: bool = False) -> None:
        """`port` is the first server's, 0 for a free one. All ports are kept for later starts where they are free.

        `sync_interval`: as NATS writes it, or `always`. Raises BrokerError when the directory cannot be used.
        """
        clients, routes = _ports(state, port)
        self.servers = tuple(
            EmbeddedBroker(
                state / str(number),
                port=clients[number - 1],
                sync_interval=sync_interval,
                detached=detached,
                name=f"shoal-{number}",
                routes=Routes("shoal-embedded", routes[number - 1], routes),
            )
            for number in range(1, SERVERS + 1)
        )

    @property
    def urls(self) -> tuple[str, ...]:
        """Each server's address."""
        return tuple(server.url for server in self.servers)

    @property
    def url(self) -> str:
        """All addresses, as clients take them: separated by commas."""
        return ",".join(self.urls)

    @property
    def pids(self) -> tuple[int, ...]:
        """Each server's process id. Raises BrokerError when one does not run."""
        return tuple(server.pid for server in self.servers)

    async def start(self) -> None:
        """Start all and wait until they have found each other. Raises BrokerError."""
        starting = [asyncio.create_task(server.start(), name=f"start {server.name}") for server in self.servers]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all servers: asked first, killed after ten seconds."""
        await asyncio.gather(*(server.stop() for server in self.servers))

    async def kill(self, server: int) -> int:
        """Kill one server, counted from 0; returns what its process id was. Raises BrokerError."""
        return await self.servers[server].kill()

    async def restart(self, server: int) -> None:
        """End one server, counted from 0, if it runs, and start it again. Raises BrokerError."""
        await self.servers[server].stop()
        await self.servers[server].start()

    async def leader(self, stream: str) -> int:
        """Return which server, counted from 0, leads a stream now. Raises BrokerError; NoStreamError for no stream."""
        name = await leader_of(self.url, stream)
        return [server.name for server in self.servers].index(name)

    async def __aenter__(self) -> "EmbeddedCluster":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def leader_of(url: str, stream: str, *, within_s: float = 30.0) -> str:
    """Return the name of the server that leads a stream. Raises BrokerError when none does for so many seconds."""
    until = time.monotonic() + within_s
    async with _api(url) as api:
        while time.monotonic() < until:
            info = await api.ask(f"STREAM.INFO.{stream}")
            if leader := (info.get("cluster") or {}).get("leader"):
                return str(leader)
            await asyncio.sleep(_POLL_S)
    raise BrokerError(f"no server leads {stream}")


async def wait_until_whole(url: str, *, within_s: float = 60.0) -> None:
    """Wait until every replica of every stream is there and has everything, so that a server may be stopped.

    Raises BrokerError.
    """
    until = time.monotonic() + within_s
    behind = "nothing is known of any stream"
    while time.monotonic() < until:
        with contextlib.suppress(BusError):
            async with _api(url) as api:
                names = (await api.ask("STREAM.NAMES")).get("streams") or []
                found = [(await api.ask(f"STREAM.INFO.{name}")).get("cluster") or {} for name in names]
                late = [name for name, cluster in zip(names, found, strict=True) if not _whole(cluster)]
                if not late:
                    return
                behind = f"{', '.join(late)} not yet"
        await asyncio.sleep(_POLL_S)
    raise BrokerError(f"the brokers do not keep everything everywhere after {within_s:g} s: {behind}")


def _whole(cluster: dict[str, Any]) -> bool:
    return bool(cluster.get("leader")) and all(
        replica.get("current") and not replica.get("offline") for replica in cluster.get("replicas") or []
    )


@contextlib.asynccontextmanager
async def _api(url: str) -> AsyncIterator[Api]:
    connection = Connection(url, "shoal-brokers", None, 5.0)
    await connection.dial()
    try:
        yield Api(connection)
    finally:
        await connection.close()


def _ports(state: Path, port: int) -> tuple[list[int], list[int]]:
    """Return the servers' ports for clients and for each other: the ones of the last time, as far as they are free."""
    file = state / "ports.json"
    kept: list[int] = []
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(file.read_text())
        kept = [int(each) for each in (*known["clients"], *known["routes"])]
    fresh = free_ports(2 * SERVERS)
    ports = [_still(old, new) for old, new in zip(kept if len(kept) == 2 * SERVERS else fresh, fresh, strict=True)]
    if port:
        ports[0] = port
    if len(set(ports)) < len(ports):  # one that is asked for or fresh was kept for another purpose
        ports = [each for each in free_ports(2 * SERVERS + 1) if each != port][: 2 * SERVERS]
        ports[0] = port or ports[0]
    clients, routes = ports[:SERVERS], ports[SERVERS:]
    try:
        state.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"clients": clients, "routes": routes}))
    except OSError as error:
        raise BrokerError(f"the state directory {state} cannot be used: {error.strerror}") from error
    return clients, routes


def _still(port: int, other: int) -> int:
    try:
        check_port(port)
    except BrokerError:
        return other
    return port
