"""The snapshot catalogue's core: who waits for which template, what is made, listed, kept and let go.

Looking at a source, making a template and removing blobs happen at the edge; the snapshots of live sandboxes come from
the executors that took them, when all their bytes are stored. Each belongs to a tenant, and no other finds it.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from shoal.machine.core import Cause, Collect, Effect, Inspect, LawBrokenError, Publish, Seal
from shoal.wire import messages as m, subjects
from shoal.wire.quantities import BadValueError
from shoal_snapshot.core import builds as building, catalogue as cataloguing
from shoal_snapshot.core.builds import Builds, told
from shoal_snapshot.core.catalogue import Catalogue
from shoal_snapshot.core.upgrades import UPGRADES

_PAGE: Final = 200  # entries in one message
_PAGE_BYTES: Final = 256 * 1024
"""Of entries in one message, if it is more than one of them: some carry code, or stand on many layers."""


class State(msgspec.Struct, frozen=True, array_like=True):
    """The whole state. Orders are kept, so that equal states are equal bytes."""

    askers: list[tuple[str, list[tuple[int, str]]]]
    catalogue: cataloguing.Dumped
    builds: building.Dumped


class SnapshotCore:
    """See the module. Asks the edge once for each thing however many wait, and answers every asker."""

    state_version = 4
    upgrades = UPGRADES

    def __init__(self) -> None:
        self._askers: dict[str, dict[tuple[int, str], None]] = {}  # in the order they asked
        self._catalogue = Catalogue()
        self._builds = Builds(self._catalogue.find, self._catalogue.has)

    @property
    def settings(self) -> Mapping[str, str]:
        """Return nothing: there is nothing to choose."""
        return {}

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        """Fold one message. Raises LawBrokenError, having changed nothing."""
        now = cause.time_ms
        _lawful(message)
        effects = self._handle(message, now)
        if self._catalogue.due_ms is not None and now >= self._catalogue.due_ms:
            self._catalogue.sweep(now)
        unneeded = self._catalogue.collect(now)
        return [*effects, Collect(unneeded)] if unneeded else effects

    def _handle(self, message: m.AnyMessage, now: int) -> list[Effect]:
        match message:
            case m.ResolveTemplate(cell=cell, tenant=tenant, template=template):
                return self._resolve(cell, tenant, template, now)
            case m.TemplateInspected(template=template, snapshot=snapshot, error=error):
                answers: list[Effect] = [
                    Publish(subjects.rollout_system(cell), m.TemplateResolved(tenant, template, snapshot, error))
                    for cell, tenant in self._askers.pop(template, {})
                ]
                more, cached = self._builds.looked(template, snapshot, error)
                assert snapshot is not None or not cached
                for asked in cached:
                    digest = self._builds.made_of(asked, snapshot or m.Snapshot("", ""))
                    more.append(self._cached(asked, digest, now))
                return [*answers, *more]
            case m.SnapshotAdded(tenant=tenant, snapshot=snapshot, name=name):
                if not snapshot.digest or not all(blob.size >= 0 for blob in snapshot.blobs):
                    raise LawBrokenError("a snapshot has a digest, and blobs of 0 bytes or more")
                self._catalogue.add(
                    tenant, snapshot, now, name=name, origin=message.origin, until_ms=message.until_ms,
                    automatic=message.automatic,
                )  # fmt: skip
                if not snapshot.seal:  # an executor of before took it
                    return [Seal(((tenant, snapshot.digest, ""),))]
            case m.SnapshotsSealed(seals=seals):
                for tenant, digest, seal in seals:
                    self._catalogue.seal(tenant, digest, seal)
            case m.BlobKept(blob=blob, until_ms=until_ms):
                if not blob.digest or blob.size < 0:
                    raise LawBrokenError("an output has a digest, and 0 bytes or more")
                self._catalogue.keep(blob.digest, until_ms)
            case m.SnapshotHeld(tenant=tenant, digest=digest, rollout=rollout, until_ms=until_ms):
                self._catalogue.hold(tenant, digest, rollout, until_ms, now)
            case m.SnapshotLetGo(tenant=tenant, rollout=rollout):
                self._catalogue.let_go(tenant, rollout, now)
            case m.BuildTemplate():
                effects, found = self._builds.ask(message)
                return [self._cached(message, found.digest, now)] if found is not None else effects
            case m.TemplateMade(key=key, snapshot=snapshot, error=error):
                return self._made(key, snapshot, error, now)
            case m.ListSnapshots(id=id, tenant=tenant):
                return self._list(id, tenant)
            case m.PinSnapshot() | m.RemoveSnapshot():
                return [Publish(subjects.snapshot(message.tenant, "answer"), self._change(message, now))]
            case m.BlobsCollected(digests=digests):
                for digest in digests:
                    self._catalogue.collecting.pop(digest, None)
            case m.Tick() | m.BuildBegun() | m.BuildProgress() | m.TemplateBuilt() | m.SnapshotsListed():
                pass
            case m.SnapshotChanged():
                pass  # its own words, read back
            case _:
                raise LawBrokenError(f"the snapshot catalogue has no use for {type(message).__name__}")
        return []

    def collects(self, digest: str) -> bool:
        """Return whether a blob is still needed by nothing."""
        return digest in self._catalogue.collecting

    def _resolve(self, cell: int, tenant: str, template: str, now: int) -> list[Effect]:
        if not 0 <= cell < 10_000:
            raise LawBrokenError(f"{cell} is not a cell number from 0 to 9999")
        if template == "host" or template.startswith(("dir:", "tar:")):
            known = template in self._askers
            self._askers.setdefault(template, {})[(cell, tenant)] = None
            return [] if known else [Inspect(template)]
        snapshot, error = self._catalogue.find(tenant, template)
        if snapshot is not None:
            self._catalogue.use(tenant, snapshot.digest, now)
        return [Publish(subjects.rollout_system(cell), m.TemplateResolved(tenant, template, snapshot, error))]

    def _cached(self, asked: m.BuildTemplate, digest: str, now: int) -> Publish:
        snapshot, _ = self._catalogue.find(asked.tenant, f"snapshot:{digest}")
        assert snapshot is not None
        self._catalogue.add(asked.tenant, snapshot, now, name=asked.name)
        return told(asked.tenant, asked.id, asked.name, snapshot, cached=True)

    def _made(self, key: str, snapshot: m.Snapshot | None, error: str, now: int) -> list[Effect]:
        build = self._builds.finish(key, snapshot)
        if build is None:
            return []
        for name in build.askers.values() if snapshot is not None else ():
            self._catalogue.add(build.tenant, snapshot or m.Snapshot("", ""), now, name=name)
        return [told(build.tenant, id, name, snapshot, error) for id, name in build.askers.items()]

    def _list(self, id: str, tenant: str) -> list[Effect]:
        subject = subjects.snapshot(tenant, "answer")
        pages: list[tuple[m.SnapshotEntry, ...]] = [()]
        size = 0
        for entry in self._catalogue.listed(tenant):
            size += (takes := len(msgspec.msgpack.encode(entry)))
            if pages[-1] and (size > _PAGE_BYTES or len(pages[-1]) == _PAGE):
                pages.append(())
                size = takes
            pages[-1] += (entry,)
        return [
            Publish(subject, m.SnapshotsListed(id, page, number < len(pages)))
            for number, page in enumerate(pages, 1)
        ]  # fmt: skip

    def _change(self, wish: m.PinSnapshot | m.RemoveSnapshot, now: int) -> m.SnapshotChanged:
        snapshot, error = self._catalogue.find(wish.tenant, wish.snapshot)
        if snapshot is None:
            return m.SnapshotChanged(wish.id, "", error)
        if isinstance(wish, m.PinSnapshot):
            self._catalogue.pin(wish.tenant, snapshot.digest, wish.pinned, now)
            return m.SnapshotChanged(wish.id, snapshot.digest)
        needed = self._catalogue.remove(wish.tenant, snapshot.digest, now)
        return m.SnapshotChanged(wish.id, snapshot.digest, needed=needed)

    def wake_at_ms(self) -> int | None:
        """Return when something may be needed no longer (broker's time, ms)."""
        return self._catalogue.due_ms

    def outstanding(self) -> Sequence[Effect]:
        """Return what is looked at, made and removed at the edge; the seals of all are looked at again."""
        collect = [Collect(tuple(self._catalogue.collecting))] if self._catalogue.collecting else []
        sealed = self._catalogue.sealed()
        seal = [Seal(sealed)] if sealed else []
        return [*map(Inspect, self._askers), *self._builds.outstanding(), *collect, *seal]

    def dump(self) -> bytes:
        """Return the whole state; equal states give equal bytes."""
        askers = [(template, list(waiting)) for template, waiting in self._askers.items()]
        return msgspec.msgpack.encode(State(askers, self._catalogue.dump(), self._builds.dump()))

    def load(self, state: bytes) -> None:
        """Take over a dumped state. Raises ValueError."""
        found = msgspec.msgpack.decode(state, type=State)
        self._askers = {template: dict.fromkeys(waiting) for template, waiting in found.askers}
        self._catalogue.load(found.catalogue)
        self._builds.load(found.builds)

    def check(self) -> None:
        """Assert that somebody waits for whatever is looked at or made, and that the catalogue is sound."""
        assert all(self._askers.values())
        self._catalogue.check()
        self._builds.check()


def _lawful(message: m.AnyMessage) -> None:
    """Raise LawBrokenError for a tenant or a name that cannot be one."""
    named = {field: getattr(message, field, "") for field in ("tenant", "name")}
    try:
        for field, value in named.items():
            if value:
                subjects.token(value, field)
        if isinstance(message, m.BuildTemplate | m.ListSnapshots | m.PinSnapshot | m.RemoveSnapshot):
            subjects.token(message.tenant, "tenant")
        if isinstance(message, m.BuildTemplate):
            subjects.token(message.name, "name")
    except BadValueError as error:
        raise LawBrokenError(str(error)) from error
