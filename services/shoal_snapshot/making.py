"""Making templates: a source becomes a disk, and what its set-up writes in a sandbox becomes another on top of it."""

import asyncio
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from shoal.blobs.leftovers import clear, held
from shoal.blobs.protocol import BlobError, BlobStore
from shoal.bus.protocol import BusError, Stored
from shoal.client.cluster import connect
from shoal.client.errors import ShoalError
from shoal.client.requests import Resources
from shoal.client.results import CommandResult
from shoal.client.sandbox import Sandbox
from shoal.machine.core import Make, Publish
from shoal.machine.lineage import identified, warmed
from shoal.runtime.sealing import Seals
from shoal.runtime.steady import SteadyPublisher
from shoal.wire import messages as m, subjects
from shoal.wire.codec import encode
from shoal.wire.messages import Isolation
from shoal_snapshot.core.catalogue import GRACE_MS
from shoal_snapshot.images.allowed import ANYWHERE, read_from
from shoal_snapshot.images.disk import make_disk
from shoal_snapshot.images.errors import ImageError

_SAID_EVERY_S: Final = 0.5
_OUTPUT: Final = 2000
"""Bytes of a failed command's output that are told."""
_RUN: Final = "template-build"
_BUILD: Final = "build-"

log = structlog.get_logger()


class BuildError(Exception):
    """A template could not be made; the text says which step failed, and what it had to say."""


class Maker:
    """Makes templates on this machine, and in sandboxes of the cluster at `url`. `allowed`: see `Inspector`."""

    def __init__(
        self,
        publisher: SteadyPublisher,
        store: BlobStore,
        url: str,
        scratch: Path,
        seals: Seals,
        allowed: Sequence[Path] = ANYWHERE,
    ) -> None:
        self._allowed = allowed
        self._publisher = publisher
        self._store = store
        self._url = url
        self._scratch = scratch
        self._seals = seals
        self._disks: dict[str, m.Snapshot] = {}  # by the digest of what they were made of
        self._used: dict[str, float] = {}  # blobs of disks that are used again, and since when

    async def perform(self, make: Make) -> Sequence[Publish]:
        """Make it, saying how far it is; return the message that says what came of it."""
        began = time.monotonic()
        try:
            snapshot = self._seals.sealed(make.tenant, await self._made(make))
            told = m.TemplateMade(make.key, snapshot)
            log.info("template made", key=make.key[:12], seconds=round(time.monotonic() - began, 1))
        except (BuildError, ImageError, BlobError, ShoalError, BusError, OSError) as error:
            told = m.TemplateMade(make.key, None, str(error))
            log.warning("a template could not be made", key=make.key[:12], error=str(error))
        except Exception as error:
            log.exception("a build broke", key=make.key[:12])
            told = m.TemplateMade(make.key, None, f"the snapshot service failed: {error!r}")
        return [Publish(subjects.snapshot(subjects.SYSTEM, "made"), told)]

    async def _made(self, make: Make) -> m.Snapshot:
        say = self._saying(make)
        recipe = make.recipe
        base = await self._base(make, say)
        if recipe.env:
            base = identified(msgspec.structs.replace(base, env=tuple({**dict(base.env), **dict(recipe.env)}.items())))
        whole = recipe.isolation == Isolation.GVISOR
        if recipe.setup or recipe.warm or whole:
            base = await self._set_up(make, base, say, whole=whole)
        return base if whole else warmed(base, recipe.warm)

    def uses(self, digest: str) -> bool:
        """Return whether a blob is of a disk that was used again just now: the catalogue may not know of it yet."""
        return time.monotonic() - self._used.get(digest, float("-inf")) < GRACE_MS / 1000

    # --- the source

    async def _base(self, make: Make, say: "Callable[[str, str], None]") -> m.Snapshot:
        """Return what the set-up starts from: a template that is there already, or the source as a disk."""
        if make.base.kind in ("host", "disk"):
            return make.base if make.base.memory and make.recipe.isolation == Isolation.GVISOR else flattened(make.base)
        known = self._disks.get(make.base.digest)
        if known is not None:
            self._used.update(dict.fromkeys((blob.digest for blob in known.blobs), time.monotonic()))
            if all([await self._store.has(blob) for blob in known.blobs]):
                return known
        loop = asyncio.get_running_loop()
        # Looked at again: it was inspected a while ago, and a link may lead elsewhere by now.
        source = f"{make.base.kind}:{read_from(make.base.kind, make.base.path, self._allowed)}"

        def progress(step: str) -> None:
            loop.call_soon_threadsafe(say, step, "")

        self._scratch.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(clear, self._scratch.glob(f"{_BUILD}*"))
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix=_BUILD) as place, held(Path(place)):
            image = await asyncio.to_thread(make_disk, source, Path(place), progress)
            size = image.disk.stat().st_size
            say("storing the disk", f"{size / 1024**2:.1f} MiB")
            blob = await self._store.put(image.disk)
        made = self._disks[make.base.digest] = identified(m.Snapshot("", "disk", disks=(blob,), env=image.env))
        return made

    # --- the set-up

    async def _set_up(
        self, make: Make, base: m.Snapshot, say: "Callable[[str, str], None]", *, whole: bool
    ) -> m.Snapshot:
        """Set it up in a sandbox. `whole`: keep all of that, with what runs in it."""
        recipe = make.recipe
        template = base.kind
        if base.blobs or base.env:
            added = m.SnapshotAdded(make.tenant, self._seals.sealed(make.tenant, base))
            await self._tell(make.tenant, "added", added)
            template = f"snapshot:{base.digest}"
        limits = recipe.resources
        resources = Resources(limits.memory, limits.cpu_milli / 1000, limits.pids, limits.disk)
        seconds = recipe.timeout_ms / 1000
        longest = min(seconds * (len(recipe.setup) + 1) + 60, 7 * 86_400.0)
        async with connect(self._url, tenant=make.tenant) as cluster:
            say("starting a sandbox for the set-up", "")
            isolation = recipe.isolation or Isolation.ZYGOTE.value
            asked = cluster.rollout(template, run=_RUN, resources=resources, timeout=longest, isolation=isolation)
            async with asked as rollout:
                (sandbox,) = [each async for each in rollout.ready()]
                for number, line in enumerate(recipe.setup, 1):
                    await self._step(sandbox, f"[{number}/{len(recipe.setup)}] {line}", line, seconds, say)
                if recipe.warm:
                    say("running the warm code", "")
                    _must_succeed("the warm code", await sandbox.python(recipe.warm, timeout=seconds))
                if not recipe.setup and not whole:
                    return base
                say("keeping what was written", "and what runs" if whole else "")
                kept = await sandbox.snapshot(memory=whole)
        return kept.wire if whole else flattened(kept.wire)

    async def _step(
        self, sandbox: Sandbox, step: str, line: str, seconds: float, say: "Callable[[str, str], None]"
    ) -> None:
        say(step, "")

        def heard(_channel: str, data: bytes) -> None:
            lines = data.decode(errors="replace").strip().splitlines()
            if lines:
                say(step, lines[-1][:200])

        result = await sandbox.run(line, timeout=seconds, on_output=heard, output_limit="256KiB")
        _must_succeed(f"set-up command {shlex.quote(line)}", result)

    # --- what is said meanwhile

    def _saying(self, make: Make) -> "Callable[[str, str], None]":
        last: tuple[float, str] = (0.0, "")

        def say(step: str, line: str) -> None:
            nonlocal last
            now = time.monotonic()
            if step == last[1] and now - last[0] < _SAID_EVERY_S:
                return
            last = (now, step)
            self._tell(make.tenant, "progress", m.BuildProgress(make.key, step, line))

        return say

    def _tell(self, tenant: str, kind: str, message: m.SnapshotAdded | m.BuildProgress) -> "asyncio.Future[Stored]":
        subject = subjects.snapshot(tenant, kind)
        return self._publisher.publish(subject, encode(message), f"build:{secrets.token_hex(8)}")


def flattened(snapshot: m.Snapshot) -> m.Snapshot:
    """Return a template that starts as the snapshot does: what was written is part of its disks.

    Where an interpreter is kept warm, it runs its code anew on them.
    """
    if not snapshot.layers:
        return snapshot
    disks = (*snapshot.disks, *snapshot.layers)
    isolation = "" if snapshot.memory else snapshot.isolation
    return identified(
        msgspec.structs.replace(snapshot, disks=disks, layers=(), template="", memory=None, isolation=isolation)
    )


def _must_succeed(what: str, result: CommandResult) -> None:
    if not result.ok:
        how = "timed out" if result.timed_out else f"exited with {result.exit_code}"
        output = f"{result.stdout}{result.stderr}".strip()[-_OUTPUT:]
        raise BuildError(f"{what} {how}{':' if output else ''}\n{output}".rstrip())
