"""The driver `zygote`: sandboxes forked out of one warmed process for each template."""

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Final

import structlog

from shoal import host
from shoal.wire.messages import Isolation, Snapshot
from shoal_executor.drivers import rootless, roots
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.link import Link
from shoal_executor.drivers.cgroups import Groups
from shoal_executor.drivers.disks import Mounted
from shoal_executor.drivers.inhabited import UP_S, AgentDriver, put, sizes, starts_at_once
from shoal_executor.drivers.lock import hold
from shoal_executor.drivers.protocol import (
    Captured,
    Disks,
    DriverError,
    DriverReport,
    ExitSink,
    IsolationFailedError,
    StartSpec,
    UnsupportedError,
)
from shoal_executor.drivers.walls import try_walls
from shoal_executor.drivers.zygote.capture import capture
from shoal_executor.drivers.zygote.forkserver import PATIENCE_S, ForkServer
from shoal_executor.drivers.zygote.sandbox import Sandbox, why
from shoal_executor.drivers.zygote.templates import Templates

_STARTS_A_CORE: Final = 2
"""Of 2, 4 and 8, bursts of 32 through the whole system had their middle result soonest with 2 (125, 143 and 137 ms),
and as many sandboxes a second: what is half started delays what could be ready."""
_ENDED: Final = "its first process ended while its executor was away"

log = structlog.get_logger()


class ZygoteDriver(AgentDriver[Sandbox]):
    """See the package. `parallel` bounds the starts under way; `tune_host` allows `Groups.favour_moves`;

    `keep` is how many templates' fork servers stay when no sandbox of theirs is left; `patience_s` how long those of a
    driver that was killed wait for the next one; `template_roots`: see `roots.root_of`.
    """

    isolation = Isolation.ZYGOTE.value
    keeps_memory = False

    def __init__(
        self,
        state: Path,
        disks: Disks | None = None,
        *,
        parallel: int | None = None,
        tune_host: bool = True,
        keep: int = 16,
        patience_s: float = PATIENCE_S,
        template_roots: Sequence[Path] = roots.ANYWHERE,
    ) -> None:
        self._state = state
        self._lock: IO[bytes] | None = None
        self._tune_host = tune_host
        self._marker = state / "favordynmods"
        name = hashlib.blake2b(str(state.resolve()).encode(), digest_size=6).hexdigest()
        super().__init__(Groups(name, state / "cgroups"), starts_at_once(parallel, a_core=_STARTS_A_CORE))
        self._mounted = Mounted(disks)
        own = self._mounted, self._groups, template_roots
        self._templates = Templates(
            state, keep, patience_s, *own, heard=self._hear, gone=self._zygote_gone, busy=self._busy
        )  # fmt: skip
        self._here: dict[str, tuple[ForkServer, socket.socket]] = {}
        self._ended: dict[str, ForkServer] = {}
        self._opened = False

    async def open(self, on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
        """Find what an earlier process left, start the host template if need be, and try its walls from inside."""
        self._on_exit = on_exit
        self._state.mkdir(parents=True, exist_ok=True)
        self._lock = await asyncio.to_thread(hold, self._state / "driver.lock")
        await asyncio.to_thread(roots.clear, self._state)
        try:
            await self._adopt(dict.fromkeys(keep))
            if self._tune_host:
                await asyncio.to_thread(self._groups.favour_moves, self._marker)
            await try_walls(self)
        except (DriverError, OSError) as error:
            await self.close()
            raise IsolationFailedError(
                f"sandboxes cannot be isolated here: {error}{rootless.hint(str(error))}"
            ) from error
        a_second = 100.0 * host.cores()
        return DriverReport(self._groups.unenforced, a_second, self._starts_at_once)

    async def _adopt(self, keep: dict[str, None]) -> None:
        """Take over the fork servers of an earlier process with the sandboxes that are wanted; end everything else."""
        self._groups.look()
        await self._templates.find()
        here, self._here = self._here, {}
        kept: list[tuple[Sandbox, socket.socket]] = []
        for name, (zygote, ours) in here.items():
            group = self._groups.find(name)
            kills, commands = self._groups.told_oom_kills(group)
            sandbox = Sandbox(
                name, Link(), group, zygote=zygote, oom_kills=kills, oom_commands=commands, ground=zygote.ground
            )
            if name in keep:
                self._starting[name] = sandbox
                kept.append((sandbox, ours))
            else:
                self._ending[name] = sandbox
                ours.close()
            if self._ended.get(name) is zygote:
                sandbox.ended.set()
        # From here on the end of any of them is heard.
        lost = {name: self._groups.find(name) for name in keep if name not in here}
        ends = {name: why(self._groups, group, _ENDED if name in self._ended else "") for name, group in lost.items()}
        unwanted = list(self._ending.values())
        names = [*(sandbox.name for sandbox, _ in kept), *self._templates.kept_groups]
        await asyncio.to_thread(self._groups.open, names)
        await asyncio.gather(*(self._resume(sandbox, ours) for sandbox, ours in kept))
        await asyncio.gather(*map(self._end_left, unwanted))
        for name, (reason, detail) in ends.items():
            self._on_exit(name, reason, detail)
        self._opened = True
        self._ended.clear()

    async def _resume(self, sandbox: Sandbox, ours: socket.socket) -> None:
        """Go on with a sandbox over a new link; one that had not come up, input files and all, ends here."""
        await asyncio.get_running_loop().create_connection(lambda: sandbox.link, sock=ours)
        up: frames.Tell | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UP_S):
                up = await sandbox.link.up
        self._starting.pop(sandbox.name)
        if isinstance(up, frames.Up) and not up.error and not up.missing and not sandbox.ended.is_set():
            self._live[sandbox.name] = sandbox
            return
        self._ending[sandbox.name] = sandbox
        told = "its executor was killed before its start was complete" if isinstance(up, frames.Up) else _ENDED
        reason, detail = why(self._groups, sandbox.group, told if sandbox.zygote.alive else "")
        await self._end_left(sandbox)
        self._on_exit(sandbox.name, reason, detail)

    async def _end_left(self, sandbox: Sandbox) -> None:
        """End one of an earlier process; if it cannot be ended, the others go on all the same."""
        try:
            await self._end(sandbox)
        except OSError as error:
            log.error("a sandbox of an earlier process could not be ended", sandbox=sandbox.name, error=repr(error))

    async def prepare(self, snapshot: Snapshot) -> None:
        """Start the template's fork server, once."""
        await self._templates.server_of(snapshot)

    def warming(self, snapshot: Snapshot) -> bool:
        """Return whether the template's fork server waits for its warm interpreter."""
        return self._templates.warming(snapshot)

    async def capture(self, name: str, directory: Path, *, memory: bool, hold: bool = False) -> Captured:
        """Keep its disk; what a process has in memory stays where it is."""
        if memory:
            raise UnsupportedError("isolation zygote keeps no memory of a live sandbox: leave memory out")
        sandbox = self._get(name)
        return await capture(name, sandbox.link, sandbox.zygote, directory, sandbox.ended, idle=hold)

    async def go_on(self, name: str) -> None:
        """Nothing is to be done: one that was held has no process but its first, which does what it is asked."""

    async def close(self) -> None:
        """End everything. What cannot be ended in an orderly way ends with its fork server."""
        servers = self._templates.give_up()
        try:
            with contextlib.suppress(DriverError):
                await self.destroy(list(self._live))
        finally:
            await self._templates.end(servers)
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._mounted.close()
            await asyncio.to_thread(self._groups.clear)
            await asyncio.to_thread(self._groups.usual_moves, self._marker)
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    # ---

    async def _end(self, sandbox: Sandbox) -> None:
        await sandbox.killed()
        sandbox.link.close()
        await self._groups.remove(sandbox.group)
        del self._ending[sandbox.name]

    async def _start(self, name: str, spec: StartSpec) -> None:
        zygote = await self._templates.server_of(spec.snapshot)
        with contextlib.ExitStack() as lent:
            layers = await zygote.borrow(self._mounted, spec.snapshot.layers)
            for fd in layers:
                lent.callback(os.close, fd)
            group = self._groups.make(name, spec.resources)
            try:
                ours, theirs = socket.socketpair()
            except OSError:
                await self._groups.remove(group)
                raise
            link = Link()
            sandbox = Sandbox(name, link, group, zygote=zygote, ground=zygote.ground)
            self._starting[name] = sandbox
            ordered = False
            try:
                entrances = self._groups.entrances(group)
                for fd in entrances:
                    lent.callback(os.close, fd)
                zygote.fork(_order(name, spec, len(layers), len(entrances)), [theirs.fileno(), *layers, *entrances])
                ordered = True
                theirs.close()  # so that its end is heard of
                await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)  # while it is forked
                try:
                    async with asyncio.timeout(UP_S):
                        up = await link.up
                except TimeoutError:
                    raise TimeoutError(zygote.silent(UP_S)) from None
                if not isinstance(up, frames.Up) or up.error:
                    raise DriverError(
                        f"the sandbox could not be made: {up.error if isinstance(up, frames.Up) else 'it ended'}"
                    )
                for file in spec.files:
                    await put(link, file)
            except BaseException:
                theirs.close()
                if not link.connected:
                    ours.close()
                link.close()
                try:
                    if ordered:  # then its end is told, or that it could not be forked
                        await sandbox.killed()
                finally:
                    self._starting.pop(name, None)
                    await self._groups.remove(group)
                raise
        self._live[name] = self._starting.pop(name)
        if sandbox.ended.is_set():
            self._gone(sandbox)

    def _hear(self, zygote: ForkServer, event: frames.Event, ours: socket.socket | None) -> None:
        if event.kind == "here" and ours is not None:
            self._here[event.name] = (zygote, ours)
            return
        sandbox = self._live.get(event.name) or self._starting.get(event.name) or self._ending.get(event.name)
        if sandbox is None:
            if not self._opened:  # of an earlier process
                self._ended[event.name] = zygote
            return
        if event.kind == "failed" and not sandbox.link.up.done():
            sandbox.link.up.set_result(frames.Up(0, event.detail))
        if sandbox.link.up.done():  # else why it ended may be in there: it comes to its end by itself
            sandbox.link.close()
        sandbox.ended.set()
        self._gone(sandbox)

    def _zygote_gone(self, zygote: ForkServer) -> None:
        for sandbox in (*self._live.values(), *self._starting.values(), *self._ending.values()):
            if sandbox.zygote is zygote:
                sandbox.link.close()
                sandbox.ended.set()
                self._gone(sandbox)
        self._templates.drop(zygote)

    def _busy(self) -> set[int]:
        return {id(s.zygote) for group in (self._live, self._starting, self._ending) for s in group.values()}


def _order(name: str, spec: StartSpec, layers: int, groups: int) -> frames.Order:
    disk, shm = sizes(spec.resources)
    env = tuple({**dict(spec.snapshot.env), **dict(spec.env)}.items())
    return frames.Order(
        name, disk=disk, shm=shm, user=spec.user, env=env, inputs=len(spec.files), layers=layers, groups=groups
    )  # fmt: skip
