"""The driver `gvisor`: containers of runsc, whose memory can be kept."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import IO, Final

import msgspec
import structlog

from shoal.wire.messages import EndReason, Isolation, Resources, Snapshot
from shoal_executor.drivers import roots
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.link import Link
from shoal_executor.drivers.cgroups import Groups
from shoal_executor.drivers.disks import Mounted
from shoal_executor.drivers.gvisor import closure, runsc
from shoal_executor.drivers.gvisor.box import Box, Root, make_points, unmount_below
from shoal_executor.drivers.gvisor.memory import About, about, pack
from shoal_executor.drivers.inhabited import UP_S, AgentDriver, put, sizes, starts_at_once
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
    StartSpec,
    UnsupportedError,
)
from shoal_executor.drivers.walls import try_walls

KERNEL_MEMORY: Final = 96 * 1024**2
"""What a sandbox's kernel and its helpers may need beside what was asked for."""
_KERNEL_PIDS: Final = 96
_CAREFULLY: Final = ("setpriv", "--bounding-set=-all,+dac_read_search", "--inh-caps=-all", "--no-new-privs")
_STARTS_A_CORE: Final = 4
"""A bare loop over this driver has most sandboxes a second with 8 to 16 at a time on two cores."""
_LEFT: Final = "isolation gvisor: a sandbox ends with its executor"

log = structlog.get_logger()


class GvisorDriver(AgentDriver[Box]):
    """See the package. `platform`: how runsc intercepts system calls; by default the best that works here."""

    isolation = Isolation.GVISOR.value

    def __init__(
        self, state: Path, disks: Disks | None = None, *, parallel: int | None = None, platform: str = ""
    ) -> None:
        self.keeps_memory = False
        self._state = state
        self._place = state / "gvisor"
        self._platform = platform
        self._lock: IO[bytes] | None = None
        name = hashlib.blake2b(str(state.resolve()).encode(), digest_size=6).hexdigest()
        super().__init__(Groups(name, state / "cgroups"), starts_at_once(parallel, a_core=_STARTS_A_CORE))
        self._mounted = Mounted(disks)
        self._roots: dict[str, asyncio.Task[Root]] = {}
        self._python = Path()
        self._runsc: runsc.Runsc | None = None

    @property
    def _program(self) -> runsc.Runsc:
        assert self._runsc is not None, "open it first"
        return self._runsc

    # --- the node

    async def open(self, on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
        """Remove what an earlier process left, find runsc, and try the walls of a sandbox from inside."""
        self._on_exit = on_exit
        self._state.mkdir(parents=True, exist_ok=True)
        self._lock = await asyncio.to_thread(take_lock, self._state / "driver.lock")
        try:
            if os.geteuid() != 0:
                raise DriverError("isolation gvisor needs an executor that runs as root")
            self._runsc = await runsc.find()
            await asyncio.to_thread(self._make_ready)
            await self._choose_platform()
            await self._try_memory()
        except (DriverError, OSError) as error:
            await self.close()
            raise IsolationFailedError(f"sandboxes cannot be isolated here: {error}") from error
        for name in keep:
            on_exit(name, EndReason.NODE_LOST, _LEFT)
        unenforced = (*self._groups.unenforced, *self._program.lacks)
        return DriverReport(unenforced, 3.0 * (os.cpu_count() or 1), self._starts_at_once)

    def _make_ready(self) -> None:
        roots.clear(self._state)
        self._groups.look()
        self._groups.open()
        self._sweep()
        for name in ("boxes", "runsc"):
            (self._place / name).mkdir(parents=True, mode=0o700)
        self._program.root = self._place / "runsc"
        self._python = closure.gather(self._place / "python")

    def _sweep(self) -> None:
        """Unmount and remove what sandboxes of an earlier process, or ours, had."""
        unmount_below(self._place)
        for name in ("boxes", "runsc"):
            shutil.rmtree(self._place / name, ignore_errors=True)

    async def _choose_platform(self) -> None:
        platforms = (self._platform,) if self._platform else self._program.platforms
        for platform in platforms:
            self._program.platform = platform
            try:
                await try_walls(self, own_kernel=True)
            except DriverError as error:
                log.warning("runsc does not work on this platform here", platform=platform, error=str(error))
                if platform == platforms[-1]:
                    raise
            else:
                log.info("runsc", release=self._program.release, platform=platform)
                return

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
        await self._root_of(snapshot)
        for fd in await self._mounted.lend_all(snapshot.blobs, None):
            os.close(fd)

    async def _root_of(self, snapshot: Snapshot) -> Root:
        if snapshot.warm:
            raise DriverError("a warm interpreter is isolation zygote's: keep a running sandbox as a template instead")
        template = snapshot.template or snapshot.digest
        known = self._roots.get(template)
        if known is None or (known.done() and (known.cancelled() or known.exception())):
            known = self._roots[template] = asyncio.create_task(
                asyncio.to_thread(self._make_root, msgspec.structs.replace(snapshot, digest=template))
            )
        return await asyncio.shield(known)

    def _make_root(self, snapshot: Snapshot) -> Root:
        if snapshot.kind == "disk":
            return Root(None, "")
        return Root(*roots.root_of(snapshot, self._state))

    def _must_fit(self, kept: About) -> None:
        """Raise DriverError where a checkpoint was made with what is not here."""
        ours = self._about(kept.shm)
        for what, theirs, mine in (
            ("runsc", kept.runsc, ours.runsc),
            ("runsc's platform", kept.platform, ours.platform),
            ("the executor's Python and Shoal", kept.python, ours.python),
        ):
            if theirs != mine:
                raise DriverError(f"this memory was kept with another {what}: {theirs}; this node has {mine}")

    def _about(self, shm: int) -> About:
        return About(self._program.release, self._program.platform, self._python.name, shm)

    async def _start(self, name: str, spec: StartSpec) -> None:
        root = await self._root_of(spec.snapshot)
        memory = spec.snapshot.memory
        lent = await self._mounted.lend_all(spec.snapshot.blobs, None)
        disk, shm = sizes(spec.resources)
        place = self._place / "boxes" / hashlib.blake2b(name.encode(), digest_size=9).hexdigest()
        try:
            group = self._groups.make(name, _beside_kernel(spec.resources))
        except BaseException:
            _close(lent)
            raise
        box = Box(
            name, Link(), group, place=place, runsc=self._program, over=self._box_over, shm=shm,
            cpu_milli=spec.resources.cpu_milli,
        )  # fmt: skip
        self._starting[name] = box
        try:
            try:
                points = make_points(self._place, usr=bool(root.usr))
                await box.mount(root, points, lent[: -1 if memory else None], disk)
                image: Path | None = None
                if memory is not None:
                    image = box.show(lent[-1])
                    kept = about(image)
                    self._must_fit(kept)
                    box.shm = kept.shm
            finally:
                _close(lent)
            box.configure(self._python, root.usr)
            env = tuple({**dict(spec.snapshot.env), **dict(spec.env)}.items())
            with box.unhurried():
                await box.launch(image)
                box.link.say(frames.Begin(0, env, spec.user, len(spec.files)))
                done, _ = await asyncio.wait([box.link.up], timeout=UP_S)
            box.hide()
            if not done or not isinstance(box.link.up.result(), frames.Up):
                raise DriverError(f"the sandbox could not be made: {box.said}")
            for file in spec.files:
                await put(box.link, file)
        except BaseException:
            await self._clear_away(box)
            self._starting.pop(name, None)
            raise
        self._live[name] = self._starting.pop(name)
        if box.ended.is_set():
            self._gone(box)

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
            await self._clear_away(sandbox)
        del self._ending[sandbox.name]

    async def _clear_away(self, box: Box) -> None:
        await box.killed()
        await self._groups.remove(box.group)
        await asyncio.to_thread(box.removed)

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
                await asyncio.to_thread(pack, box.held or image, self._about(box.shm), kept)
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
        writing = asyncio.create_task(asyncio.to_thread(make_layer, str(box.upper), layer, within=_CAREFULLY))
        try:
            if image is not None and hold:
                held = box.place / "held"
                await asyncio.to_thread(shutil.move, image, held)
                box.held = held
            elif image is not None:
                await self._restore(box, image)
        finally:
            await asyncio.wait([writing])
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


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _beside_kernel(limits: Resources) -> Resources:
    """Return what the container's group may use, so that its processes may use what was asked for.

    Each of them is a process of the host, too, and its threads are threads.
    """
    return msgspec.structs.replace(limits, memory=limits.memory + KERNEL_MEMORY, pids=2 * limits.pids + _KERNEL_PIDS)
