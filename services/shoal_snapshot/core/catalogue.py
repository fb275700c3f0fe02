"""What can be started from, by tenant, name and digest, and how long it is needed.

A snapshot is needed while it has a name, is pinned, a rollout runs from it, its own rollout may go on from it, or it
was used within the last hour; and while a snapshot that grew from it is needed. The others are dropped, and blobs that
none of those left refers to are collected: what a snapshot refers to is all it needs, so no descendant can lose any.
Outputs of commands that executors stored as blobs are kept for the time they ask for.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from shoal.wire.messages import Snapshot, SnapshotEntry

GRACE_MS: Final = 3_600_000
"""How long a snapshot that nobody named is kept after it was last used."""
_NEVER: Final = -GRACE_MS
_ROUND_MS: Final = 60_000  # whatever falls due within a minute is looked at together
_SHORTEST: Final = 8
"""Digits of a digest that may stand for all of it, where only one begins so."""
Owned = tuple[str, str]
"""tenant, digest"""


@dataclass(slots=True)
class Entry:
    """A snapshot of a tenant's. Times in ms of the broker's clock."""

    snapshot: Snapshot
    origin: str
    added_ms: int
    used_ms: int
    until_ms: int
    pinned: bool = False
    names: dict[str, None] = field(default_factory=dict)


class Dumped(msgspec.Struct, frozen=True, array_like=True):
    """The catalogue in a checkpoint. Orders are kept, so that equal states are equal bytes."""

    entries: list[tuple[str, Snapshot, str, int, int, int, bool, list[str]]]
    holds: list[tuple[str, str, str, int]]
    latest: list[tuple[str, str, str]]
    collecting: list[tuple[str, int]]
    due_ms: int | None
    outputs: list[tuple[str, int]] = []


class Catalogue:
    """See the module."""

    def __init__(self) -> None:
        self._entries: dict[Owned, Entry] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._holds: dict[tuple[str, str], dict[str, int]] = {}  # tenant and rollout: digests, and until when
        self._latest: dict[tuple[str, str], str] = {}  # tenant and sandbox: its last automatic snapshot
        self._outputs: dict[str, int] = {}  # blobs that are outputs, until when
        self._references: dict[str, int] = {}  # how many entries need a blob, as an output, too
        self.collecting: dict[str, int] = {}  # blobs that nobody needs, until they are gone; when that was last asked
        self.due_ms: int | None = None
        """When something may be needed no longer."""

    # --- what there is

    def find(self, tenant: str, reference: str) -> tuple[Snapshot | None, str]:
        """Return the snapshot of a name or `snapshot:DIGEST`, or why there is none, in one sentence."""
        digest = self._names.get((tenant, reference))
        if digest is not None:
            return self._entries[tenant, digest].snapshot, ""
        asked = reference.removeprefix("snapshot:")
        if (exact := self._entries.get((tenant, asked))) is not None:
            return exact.snapshot, ""
        if reference == asked and not set(asked) <= set("0123456789abcdef"):
            return None, f"no template or snapshot is called {reference!r}; `shoal template ls` lists those there are"
        found = [e.snapshot for (who, known), e in self._entries.items() if who == tenant and known.startswith(asked)]
        if len(asked) < _SHORTEST or len(found) > 1:
            return None, f"snapshot {asked!r} could be several: write all of its digest"
        return (found[0], "") if found else (None, f"there is no snapshot {asked!r} of this tenant's")

    def has(self, tenant: str, digest: str) -> bool:
        """Return whether a tenant has this snapshot."""
        return (tenant, digest) in self._entries

    def listed(self, tenant: str) -> list[SnapshotEntry]:
        """Return a tenant's snapshots in the order they were added."""
        held: dict[str, int] = {}
        for (who, _), digests in self._holds.items():
            for digest in digests if who == tenant else ():
                held[digest] = held.get(digest, 0) + 1
        return [
            SnapshotEntry(
                each.snapshot, tuple(each.names), each.pinned, each.origin, each.added_ms, each.used_ms,
                held.get(digest, 0),
            )
            for (who, digest), each in self._entries.items() if who == tenant
        ]  # fmt: skip

    # --- what happens to it

    def add(
        self, tenant: str, snapshot: Snapshot, now: int, *, name: str = "", origin: str = "", until_ms: int = 0,
        automatic: bool = False,
    ) -> None:  # fmt: skip
        """Take a snapshot in, whose bytes are stored, or note that it was made again."""
        key = (tenant, snapshot.digest)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(snapshot, origin, now, now, until_ms)
            for blob in _blobs(snapshot):
                self._refer(blob)
        else:
            entry.used_ms, entry.until_ms = now, max(entry.until_ms, until_ms)
            self.seal(tenant, snapshot.digest, snapshot.seal)
        if automatic:
            before = self._entries.get((tenant, self._latest.get((tenant, origin), "")))
            if before is not None and before is not entry:
                before.until_ms = 0
                self._plan(self._expires(before))
            self._latest[tenant, origin] = snapshot.digest
        if name:
            self.name(tenant, name, snapshot.digest)
        self._plan(self._expires(entry))

    def seal(self, tenant: str, digest: str, seal: str) -> None:
        """Note the seal of a snapshot that is still there."""
        entry = self._entries.get((tenant, digest))
        if entry is not None and seal:
            entry.snapshot = msgspec.structs.replace(entry.snapshot, seal=seal)

    def sealed(self) -> tuple[tuple[str, str, str], ...]:
        """Return tenant, digest and seal of each snapshot."""
        return tuple((tenant, digest, entry.snapshot.seal) for (tenant, digest), entry in self._entries.items())

    def keep(self, digest: str, until_ms: int) -> None:
        """Keep an output, which is stored, until that moment."""
        if digest not in self._outputs:
            self._refer(digest)
        self._outputs[digest] = max(self._outputs.get(digest, 0), until_ms)
        self._plan(until_ms)

    def name(self, tenant: str, name: str, digest: str) -> None:
        """Call a snapshot so; whatever was called so before is not any more."""
        before = self._names.get((tenant, name))
        if before is not None:
            self._entries[tenant, before].names.pop(name, None)
        self._names[tenant, name] = digest
        self._entries[tenant, digest].names[name] = None

    def use(self, tenant: str, digest: str, now: int) -> None:
        """Note that somebody is about to start from a snapshot."""
        if (entry := self._entries.get((tenant, digest))) is not None:
            entry.used_ms = now
            self._plan(self._expires(entry))

    def hold(self, tenant: str, digest: str, rollout: str, until_ms: int, now: int) -> None:
        """Note that a rollout runs from a snapshot, beside others that it holds."""
        if (tenant, digest) in self._entries:
            self._holds.setdefault((tenant, rollout), {})[digest] = until_ms
            self._plan(until_ms)
            self.use(tenant, digest, now)

    def let_go(self, tenant: str, rollout: str, now: int) -> None:
        """Note that a rollout is over."""
        for digest in self._holds.pop((tenant, rollout), {}):
            self.use(tenant, digest, now)

    def pin(self, tenant: str, digest: str, pinned: bool, now: int) -> None:
        """Keep a snapshot for good, or no longer."""
        entry = self._entries[tenant, digest]
        entry.pinned, entry.used_ms = pinned, now
        self._plan(self._expires(entry))

    def remove(self, tenant: str, digest: str, now: int) -> str:
        """Take a snapshot's names and pin; it goes at once unless it is needed. Returns why it is kept, or ""."""
        entry = self._entries[tenant, digest]
        for name in entry.names:
            del self._names[tenant, name]
        entry.names, entry.pinned, entry.used_ms = {}, False, now - GRACE_MS
        self.sweep(now)
        if (tenant, digest) not in self._entries:
            return ""
        if any(who == tenant and digest in digests for (who, _), digests in self._holds.items()):
            return "a rollout runs from it"
        if entry.until_ms > now:
            return "the sandbox it was taken of may go on from it"
        return "another snapshot grew from it"

    # --- what is needed no longer

    def sweep(self, now: int) -> None:
        """Drop what nobody needs; blobs that no entry refers to any more are in `collecting` then."""
        held: dict[Owned, None] = {}
        for (tenant, rollout), digests in list(self._holds.items()):
            left = {digest: until_ms for digest, until_ms in digests.items() if until_ms > now}
            held.update(dict.fromkeys((tenant, digest) for digest in left))
            if left:
                self._holds[tenant, rollout] = left
            else:
                del self._holds[tenant, rollout]
        needed: set[Owned] = set()
        for key, entry in self._entries.items():
            if entry.names or entry.pinned or key in held or self._expires(entry) > now:
                self._need(key, needed)
        for key in [key for key in self._entries if key not in needed]:
            for blob in _blobs(self._entries.pop(key).snapshot):
                self._unrefer(blob)
        for digest in [digest for digest, until_ms in self._outputs.items() if until_ms <= now]:
            del self._outputs[digest]
            self._unrefer(digest)
        self._latest = {key: digest for key, digest in self._latest.items() if (key[0], digest) in self._entries}
        self.due_ms = None
        for entry in self._entries.values():
            if not (entry.names or entry.pinned) and self._expires(entry) > now:
                self._plan(self._expires(entry))
        for digests in self._holds.values():
            for until_ms in digests.values():
                self._plan(until_ms)
        for until_ms in self._outputs.values():
            self._plan(until_ms)
        for asked_ms in self.collecting.values():
            self._plan((now if asked_ms == _NEVER else asked_ms) + GRACE_MS)

    def _need(self, key: Owned, needed: set[Owned]) -> None:
        open = [key]
        while open:
            key = open.pop()
            entry = self._entries.get(key)
            if entry is not None and key not in needed:
                needed.add(key)
                open += [(key[0], entry.snapshot.parent), (key[0], entry.snapshot.template)]

    def _refer(self, blob: str) -> None:
        self._references[blob] = self._references.get(blob, 0) + 1
        self.collecting.pop(blob, None)

    def _unrefer(self, blob: str) -> None:
        self._references[blob] -= 1
        if not self._references[blob]:
            del self._references[blob]
            self.collecting[blob] = _NEVER

    def collect(self, now: int) -> tuple[str, ...]:
        """Return the blobs to be removed now: what could not be an hour ago is asked for again."""
        asked = tuple(digest for digest, last in self.collecting.items() if now >= last + GRACE_MS)
        for digest in asked:
            self.collecting[digest] = now
        if asked:
            self._plan(now + GRACE_MS)
        return asked

    @staticmethod
    def _expires(entry: Entry) -> int:
        return max(entry.used_ms + GRACE_MS, entry.until_ms)

    def _plan(self, moment_ms: int) -> None:
        """Look again when this moment has passed; an earlier look does no harm."""
        due = (moment_ms // _ROUND_MS + 1) * _ROUND_MS
        self.due_ms = due if self.due_ms is None else min(self.due_ms, due)

    # --- checkpoints

    def dump(self) -> Dumped:
        """Return it as data."""
        entries = [
            (tenant, e.snapshot, e.origin, e.added_ms, e.used_ms, e.until_ms, e.pinned, list(e.names))
            for (tenant, _), e in self._entries.items()
        ]
        holds = [(*key, *held) for key, digests in self._holds.items() for held in digests.items()]
        latest = [(*key, digest) for key, digest in self._latest.items()]
        return Dumped(entries, holds, latest, list(self.collecting.items()), self.due_ms, list(self._outputs.items()))

    def load(self, dumped: Dumped) -> None:
        """Take over what was dumped."""
        for tenant, snapshot, origin, added_ms, used_ms, until_ms, pinned, names in dumped.entries:
            entry = Entry(snapshot, origin, added_ms, used_ms, until_ms, pinned, dict.fromkeys(names))
            self._entries[tenant, snapshot.digest] = entry
            for blob in _blobs(snapshot):
                self._references[blob] = self._references.get(blob, 0) + 1
            for name in names:
                self._names[tenant, name] = snapshot.digest
        for tenant, rollout, digest, until_ms in dumped.holds:
            self._holds.setdefault((tenant, rollout), {})[digest] = until_ms
        self._latest = {(tenant, origin): digest for tenant, origin, digest in dumped.latest}
        for digest, until_ms in dumped.outputs:
            self._outputs[digest] = until_ms
            self._references[digest] = self._references.get(digest, 0) + 1
        self.collecting = dict(dumped.collecting)
        self.due_ms = dumped.due_ms

    def check(self) -> None:
        """Assert that names stand for something, holds are of something, and no blob that is needed is collected."""
        references = dict.fromkeys(self._outputs, 1)
        for (tenant, digest), entry in self._entries.items():
            assert entry.snapshot.digest == digest
            assert all(self._names[tenant, name] == digest for name in entry.names)
            for blob in _blobs(entry.snapshot):
                references[blob] = references.get(blob, 0) + 1
        assert references == self._references
        assert not references.keys() & self.collecting.keys()
        assert len(self._names) == sum(len(entry.names) for entry in self._entries.values())
        assert all(
            (tenant, digest) in self._entries for (tenant, _), digests in self._holds.items() for digest in digests
        )
        assert all(self._holds.values())
        assert all((tenant, digest) in self._entries for (tenant, _), digest in self._latest.items())


def _blobs(snapshot: Snapshot) -> Iterable[str]:
    return dict.fromkeys(blob.digest for blob in snapshot.blobs)
