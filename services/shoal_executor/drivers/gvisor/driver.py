"""The driver `gvisor`: containers of runsc, whose memory can be kept."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Final

import structlog

from shoal import host
from shoal.wire.messages import EndReason, Isolation, Snapshot
from shoal_executor.drivers import roots
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.cgroups import Groups
from shoal_executor.drivers.disks import Mounted
from shoal_executor.drivers.gvisor import closure, runsc
from shoal_executor.drivers.gvisor.box import Box, unmount_below
from shoal_executor.drivers.gvisor.fresh import Fresh
from shoal_executor.drivers.gvisor.inflated import inflate
from shoal_executor.drivers.gvisor.memory import pack
from shoal_executor.drivers.gvisor.starting import NotRestoredError, Starts
from shoal_executor.drivers.inhabited import AgentDriver, starts_at_once
from shoal_executor.drivers.layers import make_layer
from shoal_executor.drivers.lock import hold as take_lock
from shoal_executor.drivers.protocol import (
    Captured,
    Disks,
    DriverError,
    DriverReport,
    ExitSink,
    IsolationFailedError,
    NoSuchSandboxError,
    Started,
    StartFailed,
    StartSpec,
    UnsupportedError,
)
from shoal_executor.drivers.threads import to_its_end
from shoal_executor.drivers.walls import try_walls

_CAREFULLY: Final = ("setpriv", "--bounding-set=-all,+dac_read_search", "--inh-caps=-all", "--no-new-privs")
_STARTS_A_CORE: Final = 4
"""A bare loop over this driver has most sandboxes a second with 8 to 16 at a time on two cores."""
_A_CORE_S: Final = 5.0
"""Starts a second: of 10 to 12 on two cores, by such a loop, from what was kept."""
_LEFT: Final = "isolation gvisor: a sandbox ends with its executor"

log = structlog.get_logger()


class GvisorDriver(AgentDriver[Box]):
    """See the package. `platform`: how runsc intercepts system calls; by default the best that works here."""

    isolation = Isolation.GVISOR.value

    def __init__(
        self,
        state: Path,
        disks: Disks | None = None,
        *,
        parallel: int | None = None,
        platform: str = "",
        template_roots: Sequence[Path] = roots.ANYWHERE,
    ) -> None:
        self.keeps_memory = False
        self._state = state
        self._place = state / "gvisor"
        self._platform = platform
        self._template_roots = template_roots
        self._lock: IO[bytes] | None = None
        name = hashlib.blake2b(str(state.resolve()).encode(), digest_size=6).hexdigest()
        super().__init__(Groups(name, state / "cgroups"), starts_at_once(parallel, a_core=_STARTS_A_CORE))
        self._mounted = Mounted(disks)
        self._fresh = Fresh(self._place / "fresh", self._keep_fresh, self._starts_at_once)
        self._opened: Starts | None = None

    @property
    def _starts(self) -> Starts:
        assert self._opened is not None, "open it first"
        return self._opened

    # --- the node

    async def open(self, on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
        """Remove what an earlier process left, find runsc, and try the walls of a sandbox from inside."""
        self._on_exit = on_exit
        self._state.mkdir(parents=True, exist_ok=True)
        self._lock = await asyncio.to_thread(take_lock, self._state / "driver.lock")
        try:
            if os.geteuid() != 0:
                raise DriverError("isolation gvisor needs an executor that runs as root")
            program = await runsc.find()
            python = await asyncio.to_thread(self._make_ready)
            program.root = self._place / "runsc"
            self._opened = Starts(self._state, self._groups, self._mounted, program, python, self._template_roots)
            await self._choose_platform(program)
            await self._try_memory()
        except (DriverError, OSError) as error:
            await self.close()
            raise IsolationFailedError(f"sandboxes cannot be isolated here: {error}") from error
        for name in keep:
            on_exit(name, EndReason.NODE_LOST, _LEFT)
        unenforced = (*self._groups.unenforced, *program.lacks)
        return DriverReport(unenforced, _A_CORE_S * host.cores(), self._starts_at_once)

    def _make_ready(self) -> Path:
        """Leave nothing of an earlier process; return the agent's Python."""
        roots.clear(self._state)
        self._groups.look()
        self._groups.open()
        self._sweep()
        for name in ("boxes", "runsc"):
            (self._place / name).mkdir(parents=True, mode=0o700)
        return closure.gather(self._place / "python")

    def _sweep(self) -> None:
        """Unmount and remove what sandboxes of an earlier process, or ours, had."""
        unmount_below(self._place)
        for name in ("boxes", "runsc", "fresh"):
            shutil.rmtree(self._place / name, ignore_errors=True)

    async def _choose_platform(self, program: runsc.Runsc) -> None:
        failed = []
        for platform in (self._platform,) if self._platform else program.platforms:
            program.platform = platform
            try:
                await try_walls(self, own_kernel=True)
            except DriverError as error:
                log.warning("runsc does not work on this platform here", platform=platform, error=str(error))
                failed.append(f"{platform}: {error}")
            else:
                log.info("runsc", release=program.release, platform=platform)
                return
        raise DriverError(
            f"runsc {program.release} does not work here ({'; '.join(failed)});"
            " another release of it may: see https://gvisor.dev/docs/user_guide/install"
        )

    async def _try_memory(self) -> None:
        """Find out whether checkpoints work here; without them the driver serves all the same."""
        missing = [tool for tool in ("mkfs.erofs", "setpriv") if shutil.which(tool) is None]
        if missing:
            log.warning("no snapshots: install erofs-utils and util-linux", missing=missing)
            return
        self.keeps_memory = True

    async def close(self) -> None:
        """End every sandbox, and remove all but the templates' roots."""
        try:
            await self._fresh.close()
            with contextlib.suppress(DriverError):
                await self.destroy(list(self._live))
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._mounted.close()
            if self._lock is not None:  # else it is another's
                await asyncio.to_thread(self._groups.clear)
                await asyncio.to_thread(self._sweep)
                self._lock.close()
                self._lock = None

    # --- starts

    async def prepare(self, snapshot: Snapshot) -> None:
        """Have its root, its disks and its memory on this node."""
        await self._starts.prepare(snapshot)

    def warming(self, snapshot: Snapshot) -> bool:
        """No interpreter is kept warm."""
        return False

    def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
        """Start all of them, so many at a time; of a kind that is asked for often, from one that was kept."""
        self._fresh.asked(spec, len(names))
        return super().start(names, spec)

    async def _start(self, name: str, spec: StartSpec) -> None:
        try:
            image = await self._fresh.awaited(spec)
            box = await self._starts.start(name, spec, self._box_over, image)
        except NotRestoredError as error:
            log.warning("what was kept of a fresh sandbox cannot be restored", error=str(error))
            box = await self._starts.start(name, spec, self._box_over)
            self._fresh.useless(spec)  # not where it does not start without it either
        self._live[name] = box
        if box.ended.is_set():
            self._gone(box)

    async def _keep_fresh(self, spec: StartSpec, image: Path) -> None:
        """Start one that nobody is given, and keep its checkpoint. Raises DriverError, OSError, TimeoutError."""
        box = await self._starts.start(f"fresh-{secrets.token_hex(6)}", _nobodys(spec), self._box_over)
        try:
            frozen = await box.link.ask(lambda id: frames.Freeze(id, False, True))
            if not isinstance(frozen, frames.Frozen):
                raise DriverError(frozen.detail if isinstance(frozen, frames.Failed) else "it ended")
            await to_its_end(image.mkdir, parents=True)
            with box.unhurried():
                await box.checkpoint(image)
            await to_its_end(inflate, image)
        finally:
            await self._starts.clear_away(box)

    def _box_over(self, box: Box) -> None:
        """Its channel is closed: it has ended, or ends now that nobody can speak with it."""
        box.ended.set()
        if box.name in self._live and box.wanted is None:
            log.warning("a sandbox has ended by itself", sandbox=box.name, said=box.said)
        self._gone(box)

    # --- ends

    async def _end(self, sandbox: Box) -> None:
        await sandbox.killed()
        async with sandbox.alone:  # what is being captured fails now, and must be done with it
            await self._starts.clear_away(sandbox)
        del self._ending[sandbox.name]

    # --- snapshots

    async def capture(self, name: str, directory: Path, *, memory: bool, hold: bool = False) -> Captured:
        """Keep its disk, and with `memory` a checkpoint of all of it, which it goes on from."""
        box = self._get(name)
        if not self.keeps_memory:
            raise UnsupportedError("snapshots need mkfs.erofs and setpriv on the node: install erofs-utils, util-linux")
        # To its end in any case: in between the sandbox has no container.
        work = asyncio.create_task(self._captured(box, directory, memory=memory, hold=hold))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            with contextlib.suppress(DriverError, OSError):
                captured = await work
                for path in (captured.layer, captured.memory):
                    if path is not None:
                        path.unlink(missing_ok=True)
                if hold:
                    await self.go_on(name)
            raise

    async def _captured(self, box: Box, directory: Path, *, memory: bool, hold: bool) -> Captured:
        async with box.alone:
            if self._live.get(box.name) is not box or box.held is not None:
                raise NoSuchSandboxError(box.name, box.wanted)
            return await self._capture(box, directory, memory=memory, hold=hold)

    async def _capture(self, box: Box, directory: Path, *, memory: bool, hold: bool) -> Captured:
        layer, kept, image = directory / "layer", directory / "memory", directory / "image"
        began = time.monotonic_ns()
        box.channel.hold_after_one()
        try:
            frozen = await box.link.ask(lambda id: frames.Freeze(id, not memory, memory))
            if isinstance(frozen, frames.Failed):
                raise UnsupportedError(frozen.detail)
            if not isinstance(frozen, frames.Frozen):
                raise NoSuchSandboxError(box.name, box.wanted)
            if hold and not memory and frozen.holding:
                raise UnsupportedError(f"this sandbox has {frozen.holding}: end or remove them first, or keep memory")
            if memory:
                image.mkdir()
                await self._checkpoint(box, image)
            await self._keep(box, layer, image if memory else None, hold=hold)
            stood_us = (time.monotonic_ns() - began) // 1000
            if not hold or not memory:
                self._thaw(box)
            if memory:
                await asyncio.to_thread(pack, box.held or image, self._starts.about(box.shm), kept)
        except BaseException as error:
            for path in (layer, kept):
                path.unlink(missing_ok=True)
            if box.held is not None:
                await self._go_on(box)
            else:
                self._thaw(box)
            if isinstance(error, OSError):
                raise DriverError(f"the sandbox could not be kept: {error.strerror or error}") from error
            raise
        finally:
            shutil.rmtree(image, ignore_errors=True)
        return Captured(layer, kept if memory else None, stood_us, frozen.finished)

    @staticmethod
    def _thaw(box: Box) -> None:
        box.channel.pass_by(frames.pack(frames.Thaw(0)))
        box.channel.flow()

    async def _checkpoint(self, box: Box, image: Path) -> None:
        room = os.statvfs(image)
        needed = self._groups.memory_used(box.group)
        if room.f_bavail * room.f_frsize < needed:
            raise DriverError(f"its memory could not be kept: it may take {needed} bytes, and the node has less room")
        try:
            with box.unhurried():
                await box.checkpoint(image)
        except DriverError as error:
            if not box.lives():  # runsc ends what it cannot keep
                self._lose(box, str(error))
            raise

    async def _keep(self, box: Box, layer: Path, image: Path | None, *, hold: bool) -> None:
        """Write what it wrote, while it stands still; after a checkpoint it comes back meanwhile, or is held."""
        halt = threading.Event()
        make = partial(make_layer, str(box.upper), layer, within=_CAREFULLY, halt=halt)
        writing = asyncio.create_task(asyncio.to_thread(make))
        ends = asyncio.create_task(box.ended.wait())
        ends.add_done_callback(lambda _: halt.set())  # by the sandbox's end, or below when it is written
        try:
            if image is not None and hold:
                held = box.place / "held"
                await asyncio.to_thread(shutil.move, image, held)
                box.held = held
            elif image is not None:
                await self._restore(box, image)
        finally:
            await asyncio.wait([writing])
            ends.cancel()
        writing.result()

    async def _restore(self, box: Box, image: Path) -> None:
        try:
            with box.unhurried():
                await box.launch(image)
        except DriverError as error:
            self._lose(box, str(error))
            raise

    def _lose(self, box: Box, why: str) -> None:
        """Tell that one is lost which could not be brought back."""
        if box.name in self._live and box.wanted is None:
            box.wanted = EndReason.NODE_LOST
            self._on_exit(box.name, box.wanted, why)
        box.channel.abort()

    async def go_on(self, name: str) -> None:
        """Restore one that is held."""
        await self._go_on(self._get(name))

    async def _go_on(self, box: Box) -> None:
        held, box.held = box.held, None
        if held is not None:
            await self._restore(box, held)
            shutil.rmtree(held, ignore_errors=True)
            self._thaw(box)


def _nobodys(spec: StartSpec) -> StartSpec:
    """Return what one starts with that nobody is given: nothing of anybody, and nothing to look up in its image."""
    return StartSpec(spec.snapshot, spec.resources, env=(("HOME", "/"),))
