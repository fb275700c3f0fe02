"""How a sandbox comes up: its disk, its limits, its container, and the agent's word that it serves."""

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from shoal.wire.messages import Resources, Snapshot
from shoal_executor.drivers import roots
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.link import Link
from shoal_executor.drivers.cgroups import Groups
from shoal_executor.drivers.disks import Mounted
from shoal_executor.drivers.ground import Ground
from shoal_executor.drivers.gvisor.box import Box, Root, make_points
from shoal_executor.drivers.gvisor.memory import About, about
from shoal_executor.drivers.gvisor.runsc import Runsc
from shoal_executor.drivers.inhabited import UP_S, put, sizes
from shoal_executor.drivers.protocol import DriverError, StartSpec

_KERNEL_MEMORY: Final = 96 * 1024**2
"""What a sandbox's kernel and its helpers may need beside what was asked for."""
_THREADS: Final = 24
"""Threads of the host that one process of a sandbox may take: with ptrace there were up to 19 with 60 busy ones."""
_KERNEL_THREADS: Final = 1024

log = structlog.get_logger()


class NotRestoredError(DriverError):
    """A sandbox did not come up from the checkpoint of another that was fresh; without it, it may."""


class Starts:
    """Starts sandboxes in a directory of the node. `python`: the agent's, see `closure`; `allowed`: `roots.root_of`."""

    def __init__(
        self, state: Path, groups: Groups, mounted: Mounted, program: Runsc, python: Path, allowed: Sequence[Path]
    ) -> None:
        self._state = state
        self._allowed = allowed
        self._place = state / "gvisor"
        self._groups = groups
        self._mounted = mounted
        self._program = program
        self._python = python
        self._roots: dict[str, asyncio.Task[Root]] = {}

    async def prepare(self, snapshot: Snapshot) -> None:
        """Have its root, its disks and its memory on this node. Raises DriverError."""
        await self._root_of(snapshot)
        _close(await self._mounted.lend_all(snapshot.blobs, None))

    async def _root_of(self, snapshot: Snapshot) -> Root:
        if snapshot.warm:
            raise DriverError("a warm interpreter is isolation zygote's: keep a running sandbox as a template instead")
        key = roots.key_of(snapshot)
        known = self._roots.get(key)
        if known is None or (known.done() and (known.cancelled() or known.exception())):
            known = self._roots[key] = asyncio.create_task(asyncio.to_thread(self._make_root, snapshot))
        elif known.done() and (ground := known.result().ground) is not None and not ground.stands():
            log.warning("a template's files are gone or were replaced: they are made anew", template=key)
            known = self._roots[key] = asyncio.create_task(asyncio.to_thread(self._make_root, snapshot, anew=True))
        return await asyncio.shield(known)

    def _make_root(self, snapshot: Snapshot, *, anew: bool = False) -> Root:
        if snapshot.kind == "disk":
            return Root(None, "")
        base, usr = roots.root_of(snapshot, self._state, self._allowed, anew=anew)
        return Root(base, usr, Ground.of(base))

    def about(self, shm: int) -> About:
        """Return what a checkpoint of a sandbox with this /dev/shm is made with here."""
        return About(self._program.release, self._program.platform, self._python.name, shm)

    def _must_fit(self, kept: About) -> None:
        """Raise DriverError where a checkpoint was made with what is not here."""
        ours = self.about(kept.shm)
        for what, theirs, mine in (
            ("runsc", kept.runsc, ours.runsc),
            ("runsc's platform", kept.platform, ours.platform),
            ("the executor's Python and Shoal", kept.python, ours.python),
        ):
            if theirs != mine:
                raise DriverError(f"this memory was kept with another {what}: {theirs}; this node has {mine}")

    async def start(self, name: str, spec: StartSpec, over: Callable[[Box], None], fresh: Path | None = None) -> Box:
        """Start one from its snapshot's memory, else from `fresh`, a checkpoint of one like it, where there is either.

        Raises DriverError, OSError, TimeoutError, having left nothing.
        """
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
            name, Link(), group, place=place, runsc=self._program, over=over, shm=shm,
            cpu_milli=spec.resources.cpu_milli, ground=root.ground,
        )  # fmt: skip
        try:
            try:
                points = make_points(self._place, usr=bool(root.usr))
                await box.mount(root, points, lent[: -1 if memory else None], disk)
                image = fresh
                if memory is not None:
                    image = box.show(lent[-1])
                    kept = about(image)
                    self._must_fit(kept)
                    box.shm = kept.shm
            finally:
                _close(lent)
            box.configure(self._python, root.usr)
            try:
                await self._up(box, spec, image)
            except DriverError as error:
                if fresh is None:
                    raise
                raise NotRestoredError(str(error)) from error
            box.hide()
            for file in spec.files:
                await put(box.link, file)
        except BaseException:
            await self.clear_away(box)
            raise
        return box

    @staticmethod
    async def _up(box: Box, spec: StartSpec, image: Path | None) -> None:
        env = tuple({**dict(spec.snapshot.env), **dict(spec.env)}.items())
        with box.unhurried():
            await box.launch(image)
            box.link.say(frames.Begin(0, env, spec.user, len(spec.files), spec.resources.pids))
            done, _ = await asyncio.wait([box.link.up], timeout=UP_S)
        if not done or not isinstance(box.link.up.result(), frames.Up):
            raise DriverError(f"the sandbox could not be made: {box.said}")

    async def clear_away(self, box: Box) -> None:
        """End it, and leave nothing of it. Raises OSError, TimeoutError."""
        await box.killed()
        await self._groups.remove(box.group)
        await asyncio.to_thread(box.removed)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _beside_kernel(limits: Resources) -> Resources:
    """Return what the container's group may use, so that its processes may use what was asked for.

    Its own kernel limits processes, for each user. A limit of the host's is the kernel's end: it is for who has many
    users, and far off for all others.
    """
    threads = _THREADS * limits.pids + _KERNEL_THREADS
    return msgspec.structs.replace(limits, memory=limits.memory + _KERNEL_MEMORY, pids=threads)
