"""Templates made and snapshots listed, kept and removed: wishes to the snapshot catalogue, and its answers."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.bus.protocol import BusError
from shoal.client.belonging import Live
from shoal.client.building import recipe
from shoal.client.errors import BuildFailed, NoSuchSnapshot, PlatformTimeout
from shoal.client.feed import decoded, following
from shoal.client.link import Link
from shoal.client.requests import Resources, sendable, token, truth
from shoal.client.snapshots import Snapshot
from shoal.wire import messages as m, streams, subjects

Progress = Callable[[str, str], None]
"""Called with what a build does, and the last line of what that had to say."""
_ANSWER_S: Final = 30.0
_Wish = m.BuildTemplate | m.ListSnapshots | m.PinSnapshot | m.RemoveSnapshot
_Answer = m.TemplateBuilt | m.SnapshotsListed | m.SnapshotChanged | m.BuildBegun | m.BuildProgress


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A template or snapshot of this tenant's. Times in ms since the epoch, by the broker's clock.

    `size`: bytes of all its disks; `held`: how many rollouts run from it now; `origin`: the sandbox it was taken of.
    """

    snapshot: Snapshot
    names: tuple[str, ...]
    pinned: bool
    origin: str
    added_ms: int
    used_ms: int
    held: int

    @property
    def digest(self) -> str:
        """What it is, whatever it is called."""
        return self.snapshot.digest

    @property
    def parent(self) -> str:
        """The digest of what it grew from; empty for a template."""
        return self.snapshot.parent

    @property
    def template(self) -> bool:
        """Whether it was made by `shoal template build`, and not taken of a live sandbox."""
        return not self.snapshot.wire.layers and not self.snapshot.wire.memory

    @property
    def size(self) -> int:
        """Bytes of all its disks, and of its memory."""
        return sum(blob.size for blob in self.snapshot.wire.blobs)


async def build(link: Link, name: str, recipe: m.Recipe, progress: Progress | None) -> tuple[Snapshot, bool]:
    """Have a template made and called so; returns it, and whether it was there already. Raises BuildFailed."""
    id = secrets.token_hex(8)
    key = ""
    async with _answers(link) as answers:
        await _wish(link, m.BuildTemplate(id, link.tenant, name, recipe), id)
        async for answer in answers:
            match answer:
                case m.BuildBegun() if answer.id == id:
                    key = answer.key
                case m.BuildProgress() if answer.key == key and progress is not None:
                    progress(answer.step, answer.line)
                case m.TemplateBuilt() if answer.id == id:
                    if answer.snapshot is None:
                        raise BuildFailed(name, answer.error)
                    return Snapshot(answer.snapshot, name), answer.cached
    raise AssertionError("answers never end")


async def listed(link: Link) -> list[SnapshotInfo]:
    """Return this tenant's templates and snapshots, in the order they were made."""
    id = secrets.token_hex(8)
    found: list[SnapshotInfo] = []
    async with _answers(link) as answers:
        await _wish(link, m.ListSnapshots(id, link.tenant), id)
        async with _within("its snapshots to be listed"):
            async for answer in answers:
                if isinstance(answer, m.SnapshotsListed) and answer.id == id:
                    for e in answer.entries:
                        snapshot = Snapshot(e.snapshot, e.names[0] if e.names else "")
                        found.append(SnapshotInfo(snapshot, e.names, e.pinned, e.origin, e.added_ms, e.used_ms, e.held))
                    if not answer.more:
                        break
    return found


async def sealed(link: Link, snapshot: m.Snapshot) -> m.Snapshot:
    """Return a snapshot with its seal: one that was told before there were seals, as the catalogue has it now.

    One that the catalogue does not have stays as it is. Raises Timeout.
    """
    if snapshot.seal or snapshot.digest == "host":
        return snapshot
    found = (each.snapshot.wire for each in await listed(link) if each.digest == snapshot.digest)
    return next(found, snapshot)


async def changed(link: Link, wish: "Callable[[str], m.PinSnapshot | m.RemoveSnapshot]") -> m.SnapshotChanged:
    """Have something done about a snapshot. Raises NoSuchSnapshot."""
    id = secrets.token_hex(8)
    async with _answers(link) as answers:
        await _wish(link, wish(id), id)
        async with _within("the snapshot catalogue"):
            async for answer in answers:
                if isinstance(answer, m.SnapshotChanged) and answer.id == id:
                    if answer.error:
                        raise NoSuchSnapshot(answer.error)
                    return answer
    raise AssertionError("answers end only with an error")


async def _wish(
    link: Link, wish: m.BuildTemplate | m.ListSnapshots | m.PinSnapshot | m.RemoveSnapshot, id: str
) -> None:
    await link.publish(subjects.snapshot(link.tenant, "request"), wish, f"{id}:asked")


@contextlib.asynccontextmanager
async def _answers(link: Link) -> AsyncIterator[AsyncIterator[_Answer]]:
    """Hear what the catalogue says to this tenant from now on."""
    kinds = [subjects.snapshot(link.tenant, kind) for kind in ("answer", "progress")]
    try:
        reader = await link.bus.reader(streams.snapshot().name, filters=kinds)
    except BusError as error:
        raise link.explained(error) from error

    async def heard() -> AsyncIterator[_Answer]:
        while True:
            try:
                batch = await following(reader)
            except BusError as error:
                raise link.explained(error) from error
            for delivery in batch:
                message = decoded(delivery)
                if isinstance(message, _Answer):
                    yield message

    found = heard()
    try:
        yield found
    finally:
        await reader.close()


@contextlib.asynccontextmanager
async def _within(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_ANSWER_S):
            yield
    except TimeoutError as error:
        text = f"no word within {_ANSWER_S:g} s while waiting for {what}: is a snapshot service running?"
        raise PlatformTimeout(text) from error


class Catalogued(Live):
    """What a cluster's connection can ask of the snapshot catalogue."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def build_template(
        self,
        name: str,
        source: str,
        *,
        setup: Sequence[str] = (),
        warm: str = "",
        env: Mapping[str, str] | None = None,
        resources: Resources | None = None,
        timeout: float | str = "30m",  # noqa: ASYNC109 - each command's, kept by the cluster
        isolation: str = "",
        on_progress: Progress | None = None,
    ) -> Snapshot:
        """Have a template made and called so: a source, what set-up commands write into it, an interpreter kept warm.

        source: host, dir:/path, tar:/path, docker-archive:/path, oci:/path[:TAG], docker://REFERENCE (paths are on the
        snapshot service's machine) or template:NAME. setup: lines for a shell, run one after the other in a sandbox
        with these resources, each for at most timeout; sandboxes have no network. warm: Python. env: every command's
        default. isolation: with gvisor the template is the whole sandbox as the set-up left it, and what runs in it
        then goes on in every sandbox that starts from it; such sandboxes are gvisor's. It is made once, whoever asks;
        what is there already is only named. on_progress: called with each step.

        Raises BadRequest, BuildFailed with the failing command's output.
        """
        how = recipe(source, setup, warm, env, resources, timeout, isolation)
        made, _ = await build(self._link, token(name, "name"), how, on_progress)
        return made

    async def snapshots(self) -> list[SnapshotInfo]:
        """Return this tenant's templates and snapshots, in the order they were made."""
        return await listed(self._link)

    async def pin_snapshot(self, snapshot: str | Snapshot, *, pinned: bool = True) -> None:
        """Keep a snapshot, given by itself, its name or digest, for good; or no longer. Raises NoSuchSnapshot."""
        wanted, which = truth(pinned, "pinned"), sendable(str(snapshot), "snapshot")
        await changed(self._link, lambda id: m.PinSnapshot(id, self._link.tenant, which, wanted))

    async def prefetch(self, snapshot: str | Snapshot) -> None:
        """Have all nodes fetch a template or snapshot, mount it and warm its interpreter, ahead of the first start.

        Returns when it is asked for; nodes do it when they hear of it. Raises NoSuchSnapshot.
        """
        given = snapshot.wire if isinstance(snapshot, Snapshot) else await self._found(snapshot)
        wire = await sealed(self._link, given)
        for cell in range(self._link.cells):
            id = f"prefetch:{secrets.token_hex(8)}"
            subject = subjects.placement_prefetch(cell, self._link.tenant)
            await self._link.publish(subject, m.PrefetchSnapshot(wire, self._link.tenant), id)

    async def _found(self, reference: str) -> m.Snapshot:
        digest = reference.removeprefix("snapshot:")
        found = [i for i in await self.snapshots() if reference in i.names or i.digest.startswith(digest)]
        if len(found) != 1:
            raise NoSuchSnapshot(f"{reference!r} is no template or snapshot of this tenant's, or could be several")
        return found[0].snapshot.wire

    async def remove_snapshot(self, snapshot: str | Snapshot) -> str:
        """Take a snapshot's names; it goes when nothing needs it. Returns why it is kept meanwhile, or "".

        Raises NoSuchSnapshot.
        """
        which = sendable(str(snapshot), "snapshot")
        done = await changed(self._link, lambda id: m.RemoveSnapshot(id, self._link.tenant, which))
        return done.needed
