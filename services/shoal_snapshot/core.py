"""The snapshot catalogue's core: what can be started from, by name and digest, and who waits for which template.

Looking at a source happens at the edge (Inspect); the snapshots of live sandboxes come from the executors that took
them, when all their bytes are stored. Each belongs to a tenant, and no other finds it.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from shoal.machine.core import Cause, Effect, Inspect, LawBrokenError, Publish
from shoal.wire import subjects
from shoal.wire.messages import (
    AnyMessage,
    ResolveTemplate,
    Snapshot,
    SnapshotAdded,
    TemplateInspected,
    TemplateResolved,
    Tick,
)

_BY_DIGEST: Final = "snapshot:"
_SHORTEST: Final = 8
"""Digits of a digest that may stand for all of it, where only one begins so."""


class _State(msgspec.Struct, frozen=True, array_like=True):
    """The whole state. Orders are kept, so that equal states are equal bytes."""

    askers: list[tuple[str, list[tuple[int, str]]]]
    snapshots: list[tuple[str, Snapshot]]
    names: list[tuple[str, str, str]]


class SnapshotCore:
    """Asks the edge once for each template however many wait, and answers every asker."""

    state_version = 2

    def __init__(self) -> None:
        self._askers: dict[str, dict[tuple[int, str], None]] = {}  # in the order they asked
        self._snapshots: dict[tuple[str, str], Snapshot] = {}  # by tenant and digest
        self._names: dict[tuple[str, str], str] = {}

    def handle(self, message: AnyMessage, cause: Cause) -> Sequence[Effect]:
        """Fold one message. Raises LawBrokenError, having changed nothing."""
        match message:
            case ResolveTemplate(cell=cell, tenant=tenant, template=template):
                if not 0 <= cell < 10_000:
                    raise LawBrokenError(f"{cell} is not a cell number from 0 to 9999")
                if template != "host" and not template.startswith(("dir:", "tar:")):
                    return [self._found(cell, tenant, template)]
                known = template in self._askers
                self._askers.setdefault(template, {})[(cell, tenant)] = None
                return () if known else (Inspect(template),)
            case TemplateInspected(template=template, snapshot=snapshot, error=error):
                return [
                    Publish(subjects.rollout_system(cell), TemplateResolved(tenant, template, snapshot, error))
                    for cell, tenant in self._askers.pop(template, {})
                ]
            case SnapshotAdded(tenant=tenant, snapshot=snapshot, name=name):
                if not snapshot.digest or not all(blob.size >= 0 for blob in snapshot.blobs):
                    raise LawBrokenError("a snapshot has a digest, and blobs of 0 bytes or more")
                self._snapshots[tenant, snapshot.digest] = snapshot
                if name:
                    self._names[tenant, name] = snapshot.digest
                return ()
            case Tick():
                return ()
        raise LawBrokenError(f"the snapshot catalogue has no use for {type(message).__name__}")

    def _found(self, cell: int, tenant: str, template: str) -> Publish:
        error, snapshot = "", None
        if template.startswith(_BY_DIGEST):
            snapshot, error = self._by_digest(tenant, template.removeprefix(_BY_DIGEST))
        elif (tenant, template) in self._names:
            snapshot = self._snapshots[tenant, self._names[tenant, template]]
        else:
            error = (
                f"unknown template {template!r}: use host, dir:/path, tar:/path, snapshot:DIGEST or the name of one of"
                " your snapshots"
            )
        return Publish(subjects.rollout_system(cell), TemplateResolved(tenant, template, snapshot, error))

    def _by_digest(self, tenant: str, digest: str) -> tuple[Snapshot | None, str]:
        exact = self._snapshots.get((tenant, digest))
        if exact is not None:
            return exact, ""
        found = [s for (owner, known), s in self._snapshots.items() if owner == tenant and known.startswith(digest)]
        if len(digest) < _SHORTEST or len(found) > 1:
            return None, f"snapshot {digest!r} could be several: write all of its digest"
        return (found[0], "") if found else (None, f"there is no snapshot {digest!r} of this tenant's")

    def wake_at_ms(self) -> int | None:
        """Return None: nothing here waits for time to pass."""
        return None

    def outstanding(self) -> Sequence[Effect]:
        """Return the templates asked about and not yet looked at."""
        return [Inspect(template) for template in self._askers]

    def dump(self) -> bytes:
        """Return the whole state; equal states give equal bytes."""
        askers = [(template, list(waiting)) for template, waiting in self._askers.items()]
        snapshots = [(tenant, snapshot) for (tenant, _), snapshot in self._snapshots.items()]
        names = [(tenant, name, digest) for (tenant, name), digest in self._names.items()]
        return msgspec.msgpack.encode(_State(askers, snapshots, names))

    def load(self, state: bytes) -> None:
        """Take over a dumped state. Raises ValueError."""
        found = msgspec.msgpack.decode(state, type=_State)
        self._askers = {template: dict.fromkeys(waiting) for template, waiting in found.askers}
        self._snapshots = {(tenant, snapshot.digest): snapshot for tenant, snapshot in found.snapshots}
        self._names = {(tenant, name): digest for tenant, name, digest in found.names}

    def check(self) -> None:
        """Assert that somebody waits for each template being looked at, and that every name stands for something."""
        assert all(self._askers.values())
        assert all((tenant, digest) in self._snapshots for (tenant, _), digest in self._names.items())
