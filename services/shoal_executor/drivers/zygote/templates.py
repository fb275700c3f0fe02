"""The fork servers of one node, one for each template; and those that an earlier process of the node left."""

import asyncio
import itertools
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from shoal.wire.messages import Resources, Snapshot
from shoal_executor.drivers import roots
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.cgroups import Group, Groups
from shoal_executor.drivers.disks import Mounted
from shoal_executor.drivers.ground import Ground
from shoal_executor.drivers.protocol import BadInputError, DriverError
from shoal_executor.drivers.zygote.filter import compile_filter
from shoal_executor.drivers.zygote.forkserver import ForkServer, entries, sweep

_FIRST_UID: Final = 1_879_048_192
_RANGE: Final = 65_536
WARM_LIMITS: Final = Resources(memory=4 * 1024**3, cpu_milli=4000, pids=1024)
"""Of a template's warm interpreter; what its copies share with it is counted here and not to them."""

_LAYERS: Final = frames.DESCRIPTORS - 4
"""A sandbox's layers come as descriptors, with that of its link and of three control groups."""

log = structlog.get_logger()


class Templates:
    """Starts fork servers where they are wanted, finds them again, and ends those that are not wanted any more.

    `keep` is how many stay that have no sandbox; `busy` says which have; `patience_s`: see `forkserver.PATIENCE_S`.
    """

    def __init__(
        self,
        state: Path,
        keep: int,
        patience_s: float,
        mounted: Mounted,
        groups: Groups,
        allowed: Sequence[Path],
        *,
        heard: Callable[[ForkServer, frames.Event, socket.socket | None], None],
        gone: Callable[[ForkServer], None],
        busy: Callable[[], set[int]],
    ) -> None:
        self._state = state
        self._forks = state / "forks"
        self._keep = keep
        self._patience_s = patience_s
        self._mounted = mounted
        self._groups = groups
        self._allowed = allowed
        self._heard = heard
        self._gone = gone
        self._busy = busy
        self._servers: dict[str, asyncio.Future[ForkServer]] = {}
        self._warming: set[str] = set()
        self._ranges = itertools.count(_FIRST_UID, _RANGE)  # never shared, never used again: templates stay strangers
        self._ending: set[asyncio.Task[None]] = set()

    async def find(self) -> None:
        """Take over the fork servers of an earlier process; what they tell of sandboxes, `heard` gets."""
        self._make_place()
        sweep(self._forks)
        bases = [_FIRST_UID - _RANGE]
        for place, entry in entries(self._forks):
            server = ForkServer(self._heard, self._gone)
            bases.append(entry.base)
            try:
                await server.adopt(place, entry)
            except DriverError as error:
                log.warning("a fork server of an earlier process is not used", pid=entry.pid, error=str(error))
                continue
            if entry.group:
                server.group = self._groups.find(entry.group)
            known: asyncio.Future[ForkServer] = asyncio.get_running_loop().create_future()
            known.set_result(server)
            spare = entry.digest in self._servers  # one that was being ended: only its sandboxes matter
            self._servers[f"{entry.digest} {entry.pid}" if spare else entry.digest] = known
        self._ranges = itertools.count(max(bases) + _RANGE, _RANGE)

    def _make_place(self) -> None:
        self._forks.mkdir(exist_ok=True)
        self._forks.chmod(0o700)

    @property
    def kept_groups(self) -> list[str]:
        """The control groups of the warm interpreters that were found."""
        found = [known.result().group for known in self._servers.values() if known.done()]
        return [group.directories[0].name for group in found if group is not None and group.directories]

    async def server_of(self, snapshot: Snapshot) -> ForkServer:
        """Return the fork server of a snapshot's template, started once however many ask. Raises DriverError.

        So it does where the snapshot is too deep for any sandbox to start from it.
        """
        if (layers := len(snapshot.layers)) > _LAYERS:
            raise DriverError(f"the snapshot has {layers} layers; isolation zygote stacks {_LAYERS} at most")
        key = roots.key_of(snapshot)
        known = self._servers.pop(key, None)  # and back at the end: the order is that of their use
        if known is not None and known.done() and (known.cancelled() or known.exception() or not known.result().alive):
            known = None
        anew = known is not None and known.done() and not _stands(known.result())
        if known is not None and anew:
            log.warning("a template's files are gone or were replaced: they are made anew", template=key)
            self._set_aside(key, known)
            known = None
        if known is None:
            known = asyncio.create_task(self._start(snapshot, key, anew=anew))
        self._servers[key] = known
        self._retire()
        return await asyncio.shield(known)

    def warming(self, snapshot: Snapshot) -> bool:
        """Return whether its fork server is there but for the end of its `warm` code."""
        return bool(snapshot.warm) and roots.key_of(snapshot) in self._warming

    def _set_aside(self, key: str, known: "asyncio.Future[ForkServer]") -> None:
        """Fork nothing out of it any more; it lives for as long as its sandboxes do."""
        server = known.result()
        if id(server) in self._busy():
            self._servers[f"{key} {server.pid}"] = known
        else:
            self._end_soon(server)

    def _retire(self) -> None:
        """End the fork servers used longest ago that have no sandbox, beyond those that are kept."""
        busy = self._busy()
        for digest, known in list(self._servers.items())[: -self._keep]:
            if known.done() and not known.cancelled() and known.exception() is None and id(known.result()) not in busy:
                del self._servers[digest]
                self._end_soon(known.result())

    async def _start(self, snapshot: Snapshot, key: str, *, anew: bool) -> ForkServer:
        if snapshot.kind == "disk":
            root, usr = "", ""
        else:
            path, usr = await asyncio.to_thread(roots.root_of, snapshot, self._state, self._allowed, anew=anew)
            root = str(path)
        scratch = self._state / "scratch"
        scratch.mkdir(exist_ok=True)
        self._make_place()  # somebody may have deleted it
        base = next(self._ranges) if os.geteuid() == 0 else -1
        diary = self._state / f"zygote-{key}.log"
        place = self._forks / secrets.token_hex(6)
        server = ForkServer(self._heard, self._gone)
        lent: list[int] = []
        entrances: list[int] = []
        group: Group | None = None
        try:
            lent = await self._mounted.lend_all(snapshot.disks, None)
            if snapshot.warm:
                group = self._groups.make(f"warm-{place.name}", WARM_LIMITS)
                entrances = self._groups.entrances(group)
            own = await asyncio.to_thread(compile_filter)
            warm = await asyncio.to_thread(compile_filter, ("setns",)) if snapshot.warm else b""
            template = frames.Template(
                root, usr, str(scratch), base, -1, -1, self._patience_s, own, tuple(lent), snapshot.warm, snapshot.env,
                warm, tuple(entrances),
            )  # fmt: skip
            server.ground = await asyncio.to_thread(Ground.of, Path(root)) if root else None
            if snapshot.warm:
                self._warming.add(key)
            await server.launch(template, diary, place, key, group)
        except (DriverError, OSError, ImportError, RuntimeError) as error:
            if group is not None:
                await self._groups.remove(group)
            name = f"{snapshot.kind}:{snapshot.path}" if snapshot.path else f"{snapshot.kind} {snapshot.digest[:12]}"
            kind = BadInputError if isinstance(error, BadInputError) else DriverError
            raise kind(f"the fork server of template {name} failed: {error}") from None
        finally:
            self._warming.discard(key)
            for fd in (*lent, *entrances):
                os.close(fd)
        return server

    def drop(self, server: ForkServer) -> None:
        """Forget a fork server that has ended."""
        for digest, known in list(self._servers.items()):
            if known.done() and not known.cancelled() and not known.exception() and known.result() is server:
                del self._servers[digest]
                self._end_soon(server)

    async def _end(self, server: ForkServer) -> None:
        await server.end()
        if server.group is not None:
            group, server.group = server.group, None
            await self._groups.remove(group)

    def _end_soon(self, server: ForkServer) -> None:
        task = asyncio.create_task(self._end(server))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def give_up(self) -> "list[asyncio.Future[ForkServer]]":
        """Stop starting; returns all there are, for `end`."""
        servers, self._servers = list(self._servers.values()), {}
        for known in servers:
            known.cancel()
        return servers

    async def end(self, servers: "list[asyncio.Future[ForkServer]]") -> None:
        """End fork servers, and with them whatever sandboxes they have."""
        for server in await asyncio.gather(*servers, return_exceptions=True):
            if isinstance(server, ForkServer):
                await self._end(server)
        await asyncio.gather(*self._ending, return_exceptions=True)


def _stands(server: ForkServer) -> bool:
    return server.ground is None or server.ground.stands()
