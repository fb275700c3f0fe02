"""The snapshot catalogue under any order of messages: each question is answered once, each template made once, and no

blob is collected that something needs; also by a copy that goes on from a checkpoint.
"""

from typing import Any

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.machine.core import Cause, Collect, Inspect, Make, Publish
from shoal.wire import messages as m
from shoal_snapshot.core.catalogue import GRACE_MS
from shoal_snapshot.core.snapshot import SnapshotCore

templates = st.sampled_from(["host", "dir:/a", "tar:/b"])
tenants = st.sampled_from(["t", "u"])
letters = st.sampled_from("abcdef")
PARENTS = {"a": "", "b": "a", "c": "b", "d": "", "e": "d", "f": ""}


def snapshot(letter: str) -> m.Snapshot:
    """A snapshot that has its parent's blobs, and one of its own."""
    parent = PARENTS[letter]
    above = snapshot(parent).layers if parent else ()
    return m.Snapshot(letter * 64, "disk", layers=(*above, m.Blob(letter * 64, 1)), parent=parent * 64)


def ancestors(letter: str) -> list[str]:
    """What it grew from."""
    return [PARENTS[letter], *ancestors(PARENTS[letter])] if PARENTS[letter] else []


class Catalogue(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.twin = SnapshotCore(), SnapshotCore()
        self.sequence = self.now = 0
        self.waiting: set[tuple[int, str, str]] = set()
        self.building: dict[str, str] = {}  # request: source
        self.making: dict[str, str] = {}  # key: tenant
        self.collected: set[str] = set()
        self.pinned: dict[tuple[str, str], set[tuple[str, str]]] = {}  # and which of its ancestors were there then
        self.held: dict[tuple[str, str], tuple[str, int]] = {}
        self.outputs: dict[str, int] = {}

    def fold(self, message: Any, passes_ms: int = 1) -> list[Any]:
        self.sequence += 1
        self.now += passes_ms
        cause = Cause("S", self.sequence, self.now)
        effects = list(self.core.handle(message, cause))
        assert list(self.twin.handle(message, cause)) == effects
        for effect in effects:
            if isinstance(effect, Collect):
                self.collected |= set(effect.digests)
            if isinstance(effect, Make):
                assert effect.key not in self.making  # once at a time, however many ask
                self.making[effect.key] = effect.tenant
            if isinstance(effect, Publish) and isinstance(effect.message, m.TemplateBuilt):
                del self.building[effect.message.id]  # each is answered once
        return [e for e in effects if not isinstance(e, Collect)]

    @rule(cell=st.integers(0, 1), tenant=tenants, template=templates)
    def ask(self, cell: int, tenant: str, template: str) -> None:
        asked_before = any(each[2] == template for each in self.waiting)
        assert self.fold(m.ResolveTemplate(cell, tenant, template)) == ([] if asked_before else [Inspect(template)])
        self.waiting.add((cell, tenant, template))

    @rule(template=templates, found=st.booleans())
    def look(self, template: str, found: bool) -> None:
        told = m.TemplateInspected(template, m.Snapshot("d", "host") if found else None, "" if found else "no")
        answers = [e.message for e in self.fold(told) if isinstance(e, Publish)]
        asked = {each for each in self.waiting if each[2] == template}
        resolved = [each for each in answers if isinstance(each, m.TemplateResolved)]
        assert sorted((each.tenant, each.template) for each in resolved) == sorted((t, name) for _, t, name in asked)
        self.waiting -= asked

    @rule(tenant=tenants, source=templates, setup=st.sampled_from(["", "make"]), name=st.sampled_from(["x", "y"]))
    def build(self, tenant: str, source: str, setup: str, name: str) -> None:
        id = f"q{self.sequence}"
        self.building[id] = source
        self.fold(m.BuildTemplate(id, tenant, name, m.Recipe(source, (setup,) if setup else ())))

    @rule(found=st.booleans(), letter=letters)
    def make(self, found: bool, letter: str) -> None:
        for key in list(self.making)[:1]:
            del self.making[key]
            self.fold(m.TemplateMade(key, snapshot(letter) if found else None, "" if found else "failed"))

    @initialize()
    def begin(self) -> None:
        for letter in "abc":
            self.fold(m.SnapshotAdded("t", snapshot(letter)))

    @rule(tenant=tenants, letter=letters, name=st.sampled_from(["", "", "x"]), automatic=st.booleans())
    def add(self, tenant: str, letter: str, name: str, automatic: bool) -> None:
        until = self.now + 3 * GRACE_MS if automatic else 0
        self.fold(m.SnapshotAdded(tenant, snapshot(letter), name, "r-0", until, automatic))

    @rule(tenant=tenants, letter=letters, rollout=st.sampled_from(["r1", "r2"]))
    def hold(self, tenant: str, letter: str, rollout: str) -> None:
        there = (tenant, letter) in self.there()
        until = self.now + 5 * GRACE_MS
        self.fold(m.SnapshotHeld(tenant, letter * 64, rollout, until))
        if there:
            self.held[tenant, rollout] = (letter, until)

    @rule(tenant=tenants, rollout=st.sampled_from(["r1", "r2"]))
    def let_go(self, tenant: str, rollout: str) -> None:
        self.held.pop((tenant, rollout), None)
        self.fold(m.SnapshotLetGo(tenant, rollout))

    @rule(tenant=tenants, letter=letters, pinned=st.booleans())
    def pin(self, tenant: str, letter: str, pinned: bool) -> None:
        (told,) = self.fold(m.PinSnapshot("q", tenant, f"snapshot:{letter * 64}", pinned))
        if not told.message.error:
            self.pinned.pop((tenant, letter), None)
            if pinned:
                self.pinned[tenant, letter] = {(tenant, each) for each in ancestors(letter)} & self.there()

    @rule(tenant=tenants, letter=letters)
    def remove(self, tenant: str, letter: str) -> None:
        (told,) = self.fold(m.RemoveSnapshot("q", tenant, f"snapshot:{letter * 64}"))
        if not told.message.error:
            self.pinned.pop((tenant, letter), None)

    @rule(letter=st.sampled_from("fgh"), hours=st.integers(1, 4))
    def keep(self, letter: str, hours: int) -> None:
        until = self.now + hours * GRACE_MS
        self.fold(m.BlobKept("t", m.Blob(letter * 64, 1), until))
        self.outputs[letter * 64] = max(until, self.outputs.get(letter * 64, 0))

    @rule(passes_ms=st.sampled_from([1, 60_000, GRACE_MS, 4 * GRACE_MS]))
    def tick(self, passes_ms: int) -> None:
        self.fold(m.Tick(self.now), passes_ms)
        self.held = {key: (letter, until) for key, (letter, until) in self.held.items() if until > self.now}
        self.outputs = {digest: until for digest, until in self.outputs.items() if until > self.now}

    @rule()
    def collected_all(self) -> None:
        self.fold(m.BlobsCollected(tuple(sorted(self.collected))))
        self.collected.clear()

    @rule()
    def restart(self) -> None:
        self.twin = SnapshotCore()
        self.twin.load(self.core.dump())

    def there(self) -> set[tuple[str, str]]:
        """Which snapshots each tenant has: listing them changes nothing."""
        found = set()
        for tenant in ("t", "u"):
            (told,) = self.fold(m.ListSnapshots("q", tenant), 0)
            found |= {(tenant, entry.snapshot.digest[0]) for entry in told.message.entries}
        return found

    @invariant()
    def lawful(self) -> None:
        self.core.check()
        assert self.core.dump() == self.twin.dump()
        assert list(self.core.outstanding()) == list(self.twin.outstanding())
        there = self.there()
        assert {(tenant, letter) for (tenant, _), (letter, _) in self.held.items()} <= there
        for pinned, grew_from in self.pinned.items():
            assert pinned in there
            assert grew_from <= there
        needed = {blob.digest for _, letter in there for blob in snapshot(letter).blobs}
        collecting = {d for e in self.core.outstanding() if isinstance(e, Collect) for d in e.digests}
        assert not (needed | self.outputs.keys()) & collecting
        assert set(self.building.values()) <= set(templates_of(self.core)) or self.making


def templates_of(core: SnapshotCore) -> list[str]:
    """What is looked at for somebody."""
    return [effect.template for effect in core.outstanding() if isinstance(effect, Inspect)]


TestCatalogue = Catalogue.TestCase
TestCatalogue.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
