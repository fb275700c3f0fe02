"""The snapshot service: one core over the catalogue's log, and what is done for it at the edge."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from shoal.blobs.protocol import BlobError, BlobStore
from shoal.machine.core import Collect, Inspect, Make, Publish, Seal, Task
from shoal.runtime.lease import Owner
from shoal.runtime.performer import Perform
from shoal.runtime.process import Context
from shoal.runtime.sealing import Seals, seals_of
from shoal.runtime.shell import Shell
from shoal.runtime.spread import Spread, run_together
from shoal.runtime.steady import SteadyPublisher
from shoal.wire import streams, subjects
from shoal.wire.messages import BlobsCollected, SnapshotsSealed
from shoal_snapshot.core.catalogue import GRACE_MS
from shoal_snapshot.core.snapshot import SnapshotCore
from shoal_snapshot.images.allowed import ANYWHERE
from shoal_snapshot.inspecting import Inspector
from shoal_snapshot.making import Maker

_AT_ONCE: Final = 1000

log = structlog.get_logger()


class Collector:
    """Removes blobs that no snapshot needs, but none that somebody has stored within the last hour.

    `needed` says whether one is needed again by now, or about to be: with many to remove it may be a while until its
    turn comes.
    """

    def __init__(self, store: BlobStore, needed: Callable[[str], bool]) -> None:
        self._store = store
        self._needed = needed

    async def perform(self, effect: Collect) -> Sequence[Publish]:
        """Remove them; return the messages that say which are gone. The core asks again for those that are not."""
        gone = [digest for digest in effect.digests if await self._removed(digest)]
        parts = [tuple(gone[at : at + _AT_ONCE]) for at in range(0, len(gone), _AT_ONCE)]
        subject = subjects.snapshot(subjects.SYSTEM, "collected")
        return [Publish(subject, BlobsCollected(part)) for part in parts]

    async def _removed(self, digest: str) -> bool:
        if self._needed(digest):
            return False
        try:
            gone = await self._store.delete(digest, unused_for_s=GRACE_MS / 1000)
        except BlobError as error:
            log.warning("a blob is not removed", digest=digest, error=str(error))
            return False
        log.info("blob removed" if gone else "blob kept for now: it was just stored", digest=digest)
        return gone


class Sealer:
    """Looks whether snapshots have the seals of this cluster: those of before have none, or the key was lost."""

    def __init__(self, seals: Seals) -> None:
        self._seals = seals

    async def perform(self, effect: Seal) -> Sequence[Publish]:
        """Return the messages with the right seals, of those that have others."""
        right = [(tenant, digest, self._seals.of(tenant, digest)) for tenant, digest, _ in effect.sealed]
        wrong = [found for found, had in zip(right, effect.sealed, strict=True) if found != had]
        parts = [tuple(wrong[at : at + _AT_ONCE]) for at in range(0, len(wrong), _AT_ONCE)]
        subject = subjects.snapshot(subjects.SYSTEM, "sealed")
        return [Publish(subject, SnapshotsSealed(part)) for part in parts]


def performing(inspector: Inspector, maker: Maker, collector: Collector, sealer: Sealer) -> Perform:
    """Return what carries out each kind of task."""

    async def perform(task: Task) -> Sequence[Publish]:
        match task:
            case Inspect():
                return await inspector.perform(task)
            case Make():
                return await maker.perform(task)
            case Collect():
                return await collector.perform(task)
            case Seal():
                return await sealer.perform(task)

    return perform


async def run(
    context: Context,
    store: BlobStore,
    scratch: Path,
    what_is_left: bool = False,
    template_roots: Sequence[Path] = ANYWHERE,
) -> None:
    """Serve, or stand by, until told to stop. Blobs go into `store`; disks are made in `scratch`.

    `template_roots`: below which directories of this machine sources of templates may be.
    """
    owner = Owner.local()
    spread = Spread(context.bus, "snapshot", owner, 1)
    core = SnapshotCore()
    seals = await seals_of(context.bus)
    maker = Maker(SteadyPublisher(context.bus, "snapshot"), store, context.settings.url, scratch, seals, template_roots)
    shell = Shell(
        context.bus,
        core,
        name="snapshot",
        stream=streams.snapshot().name,
        tick_subject=subjects.snapshot(subjects.SYSTEM, "tick"),
        perform=performing(
            Inspector(template_roots),
            maker,
            Collector(store, lambda digest: maker.uses(digest) or not core.collects(digest)),
            Sealer(seals),
        ),
        owner=owner,
        turns=spread,
        what_is_left=what_is_left,
    )
    await run_together([shell], spread, context.stop)
