"""Several cells as their schedulers see each other: what one says to another takes its time, and may come twice.

It may come after what was said next, too: a full stream refuses a large message and takes a small one behind it.

Nodes are a model: what is placed runs until it is ended. `core` is what is tried; bugs are planted by another.
"""

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from shoal.machine import ranges
from shoal.machine.core import Cause, Publish
from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m, subjects
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_scheduler.core.tenants import amounts_of

GIB = 2**30
HOST = m.Snapshot("host", "host")
TENANTS = ("ann", "bob")
AHEAD = 4
"""How many messages of a cell to another are under way at a time: they may be stored in any order."""
Make = Callable[[int, int], SchedulerCore]


def real(cell: int, cells: int) -> SchedulerCore:
    """Return what is tried."""
    return SchedulerCore(cell, cells=cells)


class Cells:
    """The cells, and all that is on its way between them."""

    def __init__(self, source: random.Random, make: Make = real) -> None:
        self.random = source
        self.slots = [source.choice((0, 1, 2, 3, 6)) for _ in range(source.choice((2, 2, 3)))]
        self.slots[0] = self.slots[0] or 2
        self.make = make
        self.cores = [make(cell, len(self.slots)) for cell in range(len(self.slots))]
        self.now = 1_000_000
        self.sequence = 0
        self.versions = dict.fromkeys(TENANTS, 0)
        self.limits = {tenant: m.Limits() for tenant in TENANTS}
        self.allowed: dict[str, int | None] = dict.fromkeys(TENANTS)
        """How many of a tenant's may run: its limit, or what ran when that was lowered; None while a limit travels."""
        self.ways: dict[tuple[int, int], deque[Any]] = {}
        """What a cell has said to a cell, in order."""
        self.running: dict[tuple[str, int, int], tuple[int, bool]] = {}
        """rollout, attempt, index: on which cell's nodes, and whether it is ready"""
        self.home: dict[str, tuple[int, str, m.RolloutSpec]] = {}
        self.placed: set[tuple[str, int, int]] = set()
        self.concluded: set[str] = set()
        for cell, count in enumerate(self.slots):
            self.capacity(cell, count)

    def capacity(self, cell: int, slots: int) -> None:
        room = m.Room(slots, slots * GIB)
        pools = (m.Pool("zygote", (), 1, room, room),) if slots else ()
        self.hear(cell, m.CellCapacity(slots, len(pools), ("zygote",) if slots else (), pools))

    def hear(self, cell: int, message: Any) -> None:
        self.sequence += 1
        core = self.cores[cell]
        for effect in core.handle(message, Cause(f"S{cell}", self.sequence, self.now)):
            assert isinstance(effect, Publish)
            self.said(cell, effect)
        core.check()
        self.check()

    def said(self, cell: int, effect: Publish) -> None:
        message = effect.message
        for other in range(len(self.cores)):
            if effect.subject == subjects.rollout_system(other) and other != cell:
                self.ways.setdefault((cell, other), deque()).append(message)
        match message:
            case m.PlaceRequested(rollout=name, attempt=attempt):
                (to,) = [c for c in range(len(self.cores)) if effect.subject == subjects.placement_request(c)]
                for index in ranges.indices(message.indices):
                    assert (name, attempt, index) not in self.placed, f"{name}-{index} is placed twice"
                    self.placed.add((name, attempt, index))
                    self.running[name, attempt, index] = (to, False)
                assert attempt < HEDGE
                wanted = self.home[name][2].min_ready
                assert not message.together or ranges.count(message.indices) in (wanted, 1) or attempt
            case m.ReleaseRequested(rollout=name, indices=indices, attempt=attempt):
                (to,) = [c for c in range(len(self.cores)) if effect.subject == subjects.placement_request(c)]
                for sandbox, (where, _) in list(self.running.items()):
                    mine = sandbox[0] == name and where == to and attempt in (-1, sandbox[1])
                    if mine and (not indices or ranges.intersect(((sandbox[2], 1),), indices)):
                        del self.running[sandbox]
            case m.SandboxesClosed():
                self.ways.setdefault((cell, cell), deque()).append(message)  # it counts when it is read back
            case m.RolloutConcluded(rollout=name):
                assert name not in self.concluded, f"{name} is concluded twice"
                self.concluded.add(name)
                left = [sandbox for sandbox in self.running if sandbox[0] == name]
                assert not left, f"{left} go on, and their rollout is over"

    def check(self) -> None:
        """Assert that no cell has more than its room, no tenant more than its limits, and no part is there twice."""
        there = Counter(cell for cell, _ in self.running.values())
        for cell, count in there.items():
            assert count <= self.slots[cell], f"{count} sandboxes on {self.slots[cell]} slots of cell {cell}"
        for tenant, limits in self.limits.items():
            if not limits.sandboxes:
                continue
            mine = max(self.mine(tenant), limits.sandboxes)
            if self.allowed[tenant] is None and not any(self.ways.values()):
                self.allowed[tenant] = mine
            if (allowed := self.allowed[tenant]) is not None:
                assert mine <= allowed, f"{tenant} has {mine} sandboxes, and may have {limits.sandboxes}"
                self.allowed[tenant] = mine
            parts = [core.books.tenants[tenant].part for core in self.cores]
            lent = [
                said.amounts
                for way in self.ways.values()
                for said in way
                if isinstance(said, m.QuotaLent) and said.tenant == tenant
            ]
            whole = amounts_of(limits)
            assert [sum(column) for column in zip(*parts, *lent, strict=True)] == list(whole), "parts are not the whole"

    # --- what may happen

    def submit(self) -> None:
        draw = self.random
        n = draw.randint(1, 6)
        spec = m.RolloutSpec(
            "host", n, resources=m.Resources(memory=GIB), timeout_ms=6 * 10**8,
            min_ready=draw.choice((0, 0, 0, min(n, 2))), priority=draw.choice((0, 0, 1)), max_attempts=3, hedge=False,
            on_preempted=m.OnPreempted.NEVER,
        )  # fmt: skip
        name, cell, tenant = f"r{self.sequence}", draw.randrange(len(self.cores)), draw.choice(TENANTS)
        self.home[name] = (cell, tenant, spec)
        self.hear(cell, m.RolloutSubmitted(name, tenant, draw.choice(("u", "v")), spec))
        if any(name in askers for askers in self.cores[cell].unresolved.values()):
            self.hear(cell, m.TemplateResolved(tenant, "host", HOST))
        if name not in self.cores[cell].books.rollouts:
            self.concluded.add(name)  # a gang beyond its tenant's quota

    def pick(self, *, ready: bool | None = None) -> tuple[str, int, m.Ranges] | None:
        """Draw some of what runs, of one rollout in one attempt, on one cell's nodes."""
        groups: dict[tuple[str, int, int], list[int]] = {}
        for (name, attempt, index), (cell, up) in self.running.items():
            if ready in (None, up):
                groups.setdefault((name, attempt, cell), []).append(index)
        if not groups:
            return None
        name, attempt, cell = self.random.choice(sorted(groups))
        group = groups[name, attempt, cell]
        return name, attempt, ranges.collect(self.random.sample(group, self.random.randint(1, len(group))))

    def ready(self) -> None:
        if (found := self.pick(ready=False)) is not None:
            name, attempt, part = found
            for index in ranges.indices(part):
                self.running[name, attempt, index] = (self.running[name, attempt, index][0], True)
            self.hear(self.home[name][0], m.SandboxesReady(name, attempt, part, "n", "e", "zygote"))

    def end(self, reason: m.EndReason, node: str = "n") -> None:
        never = reason in (m.EndReason.PREEMPTED, m.EndReason.START_FAILED)
        if (found := self.pick(ready=False if never else None)) is None:
            return
        name, attempt, part = found
        if reason is m.EndReason.PREEMPTED:  # all that was to be placed together comes back together
            part = ranges.collect(i for r, a, i in self.running if (r, a) == (name, attempt))
            (where, *_) = {self.running[name, attempt, i][0] for i in ranges.indices(part)}
            part = ranges.collect(i for i in ranges.indices(part) if self.running[name, attempt, i] == (where, False))
        for index in ranges.indices(part):
            del self.running[name, attempt, index]
        self.hear(self.home[name][0], m.SandboxesEnded(name, attempt, part, node, reason))

    def release(self) -> None:
        if self.home:
            name = self.random.choice(sorted(self.home))
            cell, _, spec = self.home[name]
            part = self.random.choice(((), ((self.random.randrange(spec.n), 1),)))
            self.hear(cell, m.RolloutReleased(name, part))

    def mine(self, tenant: str) -> int:
        return sum(self.home[name][1] == tenant for name, _, _ in self.running)

    def limit(self) -> None:
        """Limits are changed while all runs."""
        self.say_limits(self.random.choice(TENANTS), m.Limits(sandboxes=self.random.choice((0, 1, 2, 3, 5, 8))))

    def say_limits(self, tenant: str, limits: m.Limits) -> None:
        self.versions[tenant] += 1
        raised = 0 < self.limits[tenant].sandboxes <= limits.sandboxes and self.allowed[tenant] is not None
        self.limits[tenant] = m.Limits()  # while it is told to one cell after the other
        for cell in range(len(self.cores)):
            self.hear(cell, m.TenantLimited(tenant, limits, self.versions[tenant]))
        self.limits[tenant] = limits
        self.allowed[tenant] = max(self.mine(tenant), limits.sandboxes) if raised else None

    def arrive(self) -> None:
        """Something said by one cell is heard by another; some of it late, and some once more, a little later."""
        ways = sorted(way for way, said in self.ways.items() if said)
        if not ways:
            return
        way = self.random.choice(ways)
        said = self.ways[way]
        early = self.random.randrange(min(len(said), AHEAD)) if self.random.random() < 0.4 else 0
        message = said[early]
        del said[early]
        self.hear(way[1], message)
        if self.random.random() < 0.2:
            self.hear(way[1], message)

    def settle(self) -> None:
        """Let all that is on its way arrive."""
        for _ in range(2_000):
            if not any(self.ways.values()):
                return
            self.arrive()
        raise AssertionError("they never stop talking")

    def tick(self) -> None:
        self.now += self.random.choice((1, 100, 300, 1_000, 40_000))
        self.hear(self.random.randrange(len(self.cores)), m.Tick(self.now))

    def restart(self) -> None:
        """A cell goes on from a checkpoint."""
        cell = self.random.randrange(len(self.cores))
        copy = self.make(cell, len(self.cores))
        copy.load(self.cores[cell].dump())
        assert copy.dump() == self.cores[cell].dump()
        self.cores[cell] = copy

    def finish(self) -> None:
        """Let everything end: everybody has a turn, and nothing is left of anything."""
        for cell, count in enumerate(self.slots):
            self.slots[cell] = max(count, 6 if not cell else count)
            self.capacity(cell, self.slots[cell])
        for tenant in TENANTS:  # a gang that was admitted before is larger than some of them
            if 0 < self.limits[tenant].sandboxes < 2:
                self.say_limits(tenant, m.Limits(sandboxes=2))
        for _ in range(600):
            self.settle()
            if self.running:
                self.end(m.EndReason.OUT_OF_MEMORY)
            self.now += 700
            for cell in range(len(self.cores)):
                self.hear(cell, m.Tick(self.now))
            if not self.running and not any(self.ways.values()) and self.concluded >= set(self.home):
                break
        waiting = sorted(set(self.home) - self.concluded)
        assert not waiting, f"these never get their turn: {waiting}"
        for core in self.cores:
            assert not core.books.rollouts, f"{list(core.books.rollouts)} is left"
            assert not core.books.borrowing.asks
            assert not core.books.rooms.given


def drive(source: random.Random, make: Make = real) -> None:
    """Go through one course of events. Raises AssertionError where a law is broken."""
    cells = Cells(source, make)
    cells.limit()
    cells.submit()
    steps: list[Callable[[], None]] = [
        cells.submit, cells.submit, cells.ready, cells.ready, cells.arrive, cells.arrive, cells.arrive, cells.arrive,
        lambda: cells.end(m.EndReason.OUT_OF_MEMORY), lambda: cells.end(m.EndReason.OUT_OF_MEMORY),
        lambda: cells.end(m.EndReason.START_FAILED), lambda: cells.end(m.EndReason.PREEMPTED, ""), cells.release,
        cells.tick, cells.tick, cells.restart, cells.limit,
    ]  # fmt: skip
    for _ in range(source.randint(5, 60)):
        source.choice(steps)()
    cells.finish()
