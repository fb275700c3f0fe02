"""A cell as its scheduler sees it: tenants that ask, room that is given, and the laws of giving it.

The world is a model: what the scheduler gives out runs until a rule says otherwise, and what the scheduler says is read
back by itself and by trainers when a rule lets it. `core` is what is tried; bugs are planted by another.
"""

import random
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.machine import ranges
from shoal.machine.core import Cause, LawBrokenError, Publish
from shoal.machine.ledger import HEDGE, Ledger
from shoal.wire import messages as m
from shoal_scheduler.core.order import SLACK
from shoal_scheduler.core.scheduler import SchedulerCore

GIB = 2**30
TENANTS = ("ann", "bob", "cid")
Sandbox = tuple[str, int, int]
"""rollout, attempt, index"""

HOST = m.Snapshot("host", "host")


class Rollout:
    """One rollout as its trainer and the law see it."""

    def __init__(self, tenant: str, spec: m.RolloutSpec, now: int) -> None:
        self.tenant = tenant
        self.spec = spec
        self.ledger = Ledger(spec)
        self.submitted_ms = now
        self.begun = spec.min_ready <= 1
        self.concluded: m.RolloutConcluded | None = None
        self.reasons: dict[int, m.EndReason] = {}


class Scheduling(RuleBasedStateMachine):
    """See the module."""

    core_type: ClassVar[Callable[[int], SchedulerCore]] = SchedulerCore

    def __init__(self) -> None:
        super().__init__()
        self.core = type(self).core_type(0)
        self.now = 1
        self.sequence = 0
        self.slots, self.memory = 8, 8 * GIB
        self.rollouts: dict[str, Rollout] = {}
        self.running: dict[Sandbox, bool] = {}  # whether it is ready
        self.leaving: list[m.PreemptRequested] = []
        self.unread: list[Any] = []
        self.limits: dict[str, m.Limits] = {}
        self.placed: dict[Sandbox, None] = {}
        self.starts: dict[str, tuple[int, int]] = {}  # of tenants whose rate is limited: since when, and how many

    # --- the world

    def fold(self, message: Any, passes_ms: int = 1) -> None:
        self.now += passes_ms
        self.sequence += 1
        self.told(message)
        try:
            effects = self.core.handle(message, Cause("S", self.sequence, self.now))
        except LawBrokenError as error:
            raise AssertionError(f"{message} breaks a law: {error}") from error
        for effect in effects:
            assert isinstance(effect, Publish)
            self.said(effect.message, message)
        self.core.check()

    def told(self, message: Any) -> None:
        """Fold as the rollout's trainer does."""
        name = getattr(message, "rollout", "")
        known = self.rollouts.get(name)
        if known is None or self.now >= known.submitted_ms + known.spec.timeout_ms:
            return
        ledger, before = known.ledger, known.ledger.open()
        match message:
            case m.SandboxesReady(attempt=attempt, indices=part):
                ledger.ready(attempt, part)
            case m.SandboxesEnded(attempt=attempt, indices=part, reason=reason):
                ledger.end(attempt, part, reason)
            case m.SandboxesFinished(attempt=attempt, results=results):
                ledger.finish(attempt, results)
            case m.SandboxSlept(attempt=attempt, index=index):
                ledger.sleep(attempt, index)
            case m.SandboxesWanted(indices=part):
                ledger.wake(part)
            case m.SandboxesHedged(attempt=attempt, indices=part):
                ledger.hedge(attempt, part)
            case m.SandboxesClosed(indices=part, reason=reason):
                given = [index for index in ranges.indices(part) if self.held(name, index)]
                assert reason is not m.EndReason.NOT_STARTED or not given, f"{given} were given out after all"
                ledger.close(part, reason)
            case m.RolloutReleased(indices=part):
                ledger.close(part or ranges.whole(ledger.n), m.EndReason.RELEASED)
        for index in ranges.indices(ranges.without(before, ledger.open())):
            reason_ = ledger.reason(index)
            assert reason_ is not None
            known.reasons[index] = reason_

    def said(self, message: Any, cause: Any) -> None:
        match message:
            case m.PlaceRequested():
                self.check_given(message, cause)
                for index in ranges.indices(message.indices):
                    sandbox = (message.rollout, message.attempt, index)
                    assert sandbox not in self.placed, f"{sandbox} is given out twice"
                    self.placed[sandbox] = None
                    self.running[sandbox] = False
            case m.ReleaseRequested(rollout=name, indices=part, attempt=attempt):
                for sandbox in list(self.running):
                    mine = sandbox[0] == name and attempt in (-1, sandbox[1])
                    if mine and (not part or ranges.intersect(((sandbox[2], 1),), part)):
                        del self.running[sandbox]
            case m.PreemptRequested():
                victim = self.rollouts[message.rollout]
                assert victim.spec.on_preempted is not m.OnPreempted.NEVER, "it was not to be preempted"
                assert message.how is victim.spec.on_preempted
                self.leaving.append(message)
            case m.SandboxesHedged(rollout=name, indices=part):
                assert self.rollouts[name].begun, "a start is called slow before any of its rollout is known"
                self.unread.append(message)
                self.check_hedged(self.rollouts[name], ranges.count(part))
            case m.SandboxesClosed() | m.SandboxesWanted():
                self.unread.append(message)
            case m.RolloutRejected(rollout=name, code=code):
                known = self.rollouts.pop(name)
                quota = self.limits[known.tenant].sandboxes
                assert code == "quota"
                assert 0 < quota < known.spec.min_ready, "it was rejected for no reason"
            case m.RolloutConcluded(rollout=name, counts=counts, reason=reason):
                known = self.rollouts[name]
                assert known.concluded is None, f"{name} is concluded twice"
                known.concluded = message
                held = [index for index in ranges.indices(message.not_started) if self.held(name, index)]
                assert not held, f"{held} of {name} were given out after all"
                if reason == "timed_out":
                    known.ledger.close(message.not_started, m.EndReason.NOT_STARTED)
                    known.ledger.close(message.deadline, m.EndReason.DEADLINE)
                    known.ledger.close(ranges.whole(known.ledger.n), m.EndReason.TIMED_OUT)
                assert counts == known.ledger.counts(), "the scheduler and the trainer count otherwise"

    # --- what is given out

    def used(self, *, tenant: str | None = None) -> tuple[int, int]:
        """Count what runs, and what is kept for hedges that were not read back."""
        taken = [self.rollouts[r] for r in (*(r for r, _, _ in self.running), *self.kept())]
        taken = [each for each in taken if tenant in (None, each.tenant)]
        return len(taken), sum(each.spec.resources.memory for each in taken)

    def kept(self) -> list[str]:
        """Return the rollouts of hedges that were not read back, each as often as it has some."""
        hedged = [each for each in self.unread if isinstance(each, m.SandboxesHedged)]
        open_ = [each for each in hedged if self.rollouts[each.rollout].concluded is None]
        return [each.rollout for each in open_ for _ in ranges.indices(each.indices)]

    def check_hedged(self, rollout: Rollout, count: int) -> None:
        slots, memory = self.used()
        assert slots <= self.slots, "more sandboxes with their hedges than slots"
        assert memory <= self.memory, "more memory with their hedges than there is"
        quota, (mine, _) = self.limits.get(rollout.tenant, m.Limits()).sandboxes, self.used(tenant=rollout.tenant)
        assert not quota or mine <= quota, "more with their hedges than the tenant's quota"
        self.check_rate(rollout.tenant, count, at_least=count)

    def check_rate(self, tenant: str, count: int, *, at_least: int) -> None:
        """Note that so many start. Of those, all but `at_least` may be what a gang takes in advance."""
        if (rate := self.limits.get(tenant, m.Limits()).starts_per_s) and tenant in self.starts:
            since, before = self.starts[tenant]
            most = max(rate, 1.0) + rate * (self.now - since) / 1000
            assert before + at_least <= most + 1e-6, f"{before + at_least} starts of {tenant}, of {most:g} by its rate"
            self.starts[tenant] = since, before + count

    def share(self, tenant: str) -> float:
        slots, memory = self.used(tenant=tenant)
        return max(slots / self.slots, memory / self.memory) / self.limits.get(tenant, m.Limits()).weight

    def check_given(self, place: m.PlaceRequested, cause: Any) -> None:
        rollout, count = self.rollouts[place.rollout], ranges.count(place.indices)
        if place.attempt >= HEDGE:
            return  # see `check_hedged`: what was kept for it then is so still
        slots, memory = self.used()
        each = rollout.spec.resources.memory
        assert slots + count <= self.slots, "more sandboxes than slots"
        assert memory + count * each <= self.memory, "more memory than there is"
        self.check_rate(rollout.tenant, count, at_least=1)
        limits = self.limits.get(rollout.tenant, m.Limits())
        mine, mine_memory = self.used(tenant=rollout.tenant)
        assert not limits.sandboxes or mine + count <= limits.sandboxes, "more than the tenant's quota"
        assert not limits.memory or mine_memory + count * each <= limits.memory, "more than its quota of memory"
        unsent = [i for i in ranges.indices(rollout.ledger.open()) if not self.held(place.rollout, i)]
        if not rollout.begun and rollout.ledger.live == rollout.spec.n:
            unit = min(rollout.spec.min_ready, len(unsent))
            assert place.together or unit == 1, "a gang is not placed together"
            assert count >= min(unit, rollout.spec.min_ready), f"{count} of a gang of {unit}"
        self.check_fair(rollout, count, each)

    def held(self, name: str, index: int) -> bool:
        return any(r == name and i == index for r, _, i in self.running)

    def check_fair(self, rollout: Rollout, count: int, memory: int) -> None:
        """Nobody is served while somebody has less who waits, could be served and may have more."""
        mine = self.share(rollout.tenant)
        slack = SLACK / self.limits.get(rollout.tenant, m.Limits()).weight
        books = self.core.books
        for line in books.waiting.each():
            first = self.rollouts[line.first]
            if first.tenant == rollout.tenant or self.share(first.tenant) >= mine - slack - 1e-9:
                continue
            slots, taken = self.used()
            waiting = books.rollouts[line.first]
            fits = slots + waiting.unit <= self.slots and (
                taken + waiting.unit * first.spec.resources.memory <= self.memory
            )
            allowed = books.tenants[line.tenant].may_have(line.want)[0] >= waiting.unit
            allowed = allowed and not self.limits.get(first.tenant, m.Limits()).starts_per_s  # see `check_rate`
            free = books.shut.get(line.want, 0) <= self.now and not self.backfills(line.want.memory)
            assert not (fits and allowed and free), f"{rollout.tenant} goes before {first.tenant}, who has less"

    def backfills(self, memory: int) -> bool:
        """Return whether room is kept for what needs more than one sandbox of this size."""
        kept = self.core.books.rollouts.get(self.core.books.gang[0])
        return kept is not None and (kept.unit > 1 or kept.want.memory > memory)

    # --- rules

    @initialize(slots=st.integers(2, 8), gib=st.integers(2, 16))
    def begin(self, slots: int, gib: int) -> None:
        """Say what there is."""
        self.slots, self.memory = slots, gib * GIB
        self.capacity()
        self.submit("ann", "u1", 6, 1, 0, 0, 0, m.OnPreempted.RESTART, False)

    def capacity(self) -> None:
        room = m.Room(self.slots, self.memory)
        self.fold(m.CellCapacity(self.slots, 2, ("zygote",), (m.Pool("zygote", (), 2, room, room),)))

    @rule(
        tenant=st.sampled_from(TENANTS),
        run=st.sampled_from(("u1", "u2")),
        n=st.integers(1, 6),
        gib=st.sampled_from((1, 1, 2)),
        priority=st.sampled_from((0, 0, 5)),
        gang=st.sampled_from((0, 0, 2, 6)),
        within_ms=st.sampled_from((0, 0, 500)),
        how=st.sampled_from(m.OnPreempted),
        job=st.booleans(),
    )
    def submit(
        self, tenant: str, run: str, n: int, gib: int, priority: int, gang: int, within_ms: int, how: m.OnPreempted,
        job: bool,
    ) -> None:  # fmt: skip
        name = f"r{self.sequence}"
        spec = m.RolloutSpec(
            "host", n, (m.Command(("true",)),) if job else (), m.Resources(memory=gib * GIB), timeout_ms=10**8,
            priority=priority, min_ready=min(gang, n), start_within_ms=within_ms, on_preempted=how, max_attempts=3,
        )  # fmt: skip
        self.rollouts[name] = Rollout(tenant, spec, self.now + 1)
        self.fold(m.RolloutSubmitted(name, tenant, run, spec))
        if any(name in askers for askers in self.core.unresolved.values()):
            self.fold(m.TemplateResolved(tenant, "host", HOST))

    def pick(self, data: st.DataObject, *, ready: bool | None = None) -> tuple[str, int, m.Ranges] | None:
        """Draw some of what runs, of one rollout in one attempt."""
        groups: dict[tuple[str, int], list[int]] = {}
        for (name, attempt, index), up in self.running.items():
            if ready in (None, up):
                groups.setdefault((name, attempt), []).append(index)
        if not groups:
            return None
        name, attempt = data.draw(st.sampled_from(sorted(groups)))
        some = data.draw(st.sets(st.sampled_from(groups[name, attempt]), min_size=1))
        return name, attempt, ranges.collect(some)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), passes_ms=st.sampled_from((1, 100, 3000)))
    def ready(self, data: st.DataObject, passes_ms: int) -> None:
        if (found := self.pick(data, ready=False)) is None:
            return
        name, attempt, part = found
        for index in ranges.indices(part):
            self.running[name, attempt, index] = True
        self.rollouts[name].begun = True
        self.fold(m.SandboxesReady(name, attempt, part, "n", "e", "zygote"), passes_ms)
        for index in ranges.indices(part):
            others = [a for r, a, i in self.running if (r, i) == (name, index) and a != attempt]
            assert not others, f"{name}-{index} goes on in attempts {others}, and {attempt} has won"

    @precondition(lambda self: self.running)
    @rule(data=st.data(), code=st.integers(0, 1))
    def finish(self, data: st.DataObject, code: int) -> None:
        if (found := self.pick(data)) is None or not self.rollouts[found[0]].spec.commands:
            return
        name, attempt, part = found
        for index in ranges.indices(part):
            del self.running[name, attempt, index]
        self.rollouts[name].begun = True
        results = tuple(m.SandboxResult(index, m.CommandResult(code), 1000) for index in ranges.indices(part))
        self.fold(m.SandboxesFinished(name, attempt, "n", "e", "zygote", results))
        expected = m.EndReason.COMMAND_FAILED if code else m.EndReason.SUCCEEDED
        for index in ranges.indices(part):
            assert self.rollouts[name].reasons.get(index) is expected

    @precondition(lambda self: self.running)
    @rule(data=st.data(), reason=st.sampled_from((m.EndReason.START_FAILED, m.EndReason.NODE_LOST)))
    def fail(self, data: st.DataObject, reason: m.EndReason) -> None:
        found = self.pick(data, ready=None if reason is m.EndReason.NODE_LOST else False)
        if found is None:
            return
        name, attempt, part = found
        for index in ranges.indices(part):
            del self.running[name, attempt, index]
        self.rollouts[name].begun = True
        self.fold(m.SandboxesEnded(name, attempt, part, f"n{self.sequence % 5}", reason))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def decline(self, data: st.DataObject) -> None:
        """Placement finds no room after all; what is to be together comes back together."""
        if (found := self.pick(data, ready=False)) is None:
            return
        name, attempt, part = found
        if not self.rollouts[name].begun:
            part = ranges.collect(i for r, a, i in self.running if (r, a) == (name, attempt))
        for index in ranges.indices(part):
            del self.running[name, attempt, index]
        self.fold(m.SandboxesEnded(name, attempt, part, "", m.EndReason.PREEMPTED))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def hedge(self, data: st.DataObject) -> None:
        """The scheduler has found, a moment ago, that these take longer than those of their rollout that are there."""
        if (found := self.pick(data, ready=False)) is None:
            return
        name, attempt, part = found
        books = self.core.books
        if attempt >= HEDGE or not self.rollouts[name].begun or (known := books.rollouts.get(name)) is None:
            return
        tenant = books.tenants[self.rollouts[name].tenant]
        most = min(books.rooms.fits(known.want), tenant.may_have(known.want)[0], max(tenant.may_start(self.now), 0))
        part = ranges.without(known.ledger.pending(attempt, part), known.hedging.get(attempt, ()))
        part, _ = ranges.take(part, most)
        if part:
            books.hedge(known, attempt, part)
            self.said(m.SandboxesHedged(name, attempt, attempt + HEDGE, part), None)

    @precondition(lambda self: self.leaving)
    @rule()
    def make_room(self) -> None:
        """Those that were asked to make room do, where they can."""
        asked = self.leaving.pop(0)
        for index in ranges.indices(asked.indices):
            sandbox = (asked.rollout, asked.attempt, index)
            up = self.running.get(sandbox)
            job = bool(self.rollouts[asked.rollout].spec.commands)
            if up is None or (up and job and asked.how is m.OnPreempted.HIBERNATE):
                continue
            del self.running[sandbox]
            one: m.Ranges = ((index, 1),)
            if up and asked.how is m.OnPreempted.HIBERNATE:
                kept = m.Snapshot(f"kept-{index}", "host")
                self.fold(m.SandboxSlept(asked.rollout, asked.attempt, index, "n", kept, True))
                mine = [each.indices for each in self.unread if isinstance(each, m.SandboxesWanted)]
                asleep = self.rollouts[asked.rollout].ledger.asleep(one)
                assert not asleep or one in mine, "it sleeps, and nobody will wake it"
            else:
                self.rollouts[asked.rollout].begun = True
                self.fold(m.SandboxesEnded(asked.rollout, asked.attempt, one, "n", m.EndReason.PREEMPTED))

    @precondition(lambda self: self.unread)
    @rule()
    def read_back(self) -> None:
        self.fold(self.unread.pop(0))

    @precondition(lambda self: self.rollouts)
    @rule(data=st.data(), whole=st.booleans())
    def release(self, data: st.DataObject, whole: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.rollouts)))
        known = self.rollouts[name]
        part = () if whole else ((data.draw(st.integers(0, known.spec.n - 1)), 1),)
        self.fold(m.RolloutReleased(name, part))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        """A trainer has no use for some of what was given out, ready or not."""
        if (found := self.pick(data)) is not None:
            self.fold(m.RolloutReleased(found[0], found[2]))

    @rule(
        tenant=st.sampled_from(TENANTS), weight=st.sampled_from((1.0, 2.0, 64.0)), sandboxes=st.sampled_from((0, 2, 4))
    )
    def limit(self, tenant: str, weight: float, sandboxes: int) -> None:
        self.allow(tenant, m.Limits(weight, sandboxes, starts_per_s=self.limits.get(tenant, m.Limits()).starts_per_s))

    @rule(tenant=st.sampled_from(TENANTS), rate=st.sampled_from((0.0, 0.5, 2.0)))
    def limit_rate(self, tenant: str, rate: float) -> None:
        self.allow(tenant, msgspec.structs.replace(self.limits.get(tenant, m.Limits()), starts_per_s=rate))

    def allow(self, tenant: str, limits: m.Limits) -> None:
        self.limits[tenant] = limits
        self.starts[tenant] = self.now + 1, 0  # when it is folded
        self.fold(m.TenantSet(tenant, limits))

    @rule(passes_ms=st.sampled_from((1, 400, 2000, 40_000)))
    def tick(self, passes_ms: int) -> None:
        self.fold(m.Tick(self.now), passes_ms)

    @invariant()
    def a_copy_is_the_same(self) -> None:
        copy = SchedulerCore(0)
        copy.load(self.core.dump())
        assert copy.dump() == self.core.dump()
        assert self.core.books.rooms.given == self.used()[0], "what is in flight is not what runs"

    def teardown(self) -> None:
        """Whoever waits gets a turn: let everything end, and all is concluded in the end."""
        if not self.rollouts:
            return
        for tenant in list(self.limits):
            self.limits[tenant] = m.Limits()
            self.fold(m.TenantSet(tenant, m.Limits()))
        self.slots, self.memory = 8, 16 * GIB
        self.capacity()
        for _ in range(400):
            self.leaving.clear()
            while self.unread:
                self.fold(self.unread.pop(0))
            self._end_all()
            self.fold(m.Tick(self.now), 2000)
            if all(each.concluded for each in self.rollouts.values()):
                return
        waiting = [name for name, each in self.rollouts.items() if not each.concluded]
        books = self.core.books
        queue = [
            (name, books.rollouts[name].unsent, name in books.waiting) for name in waiting if name in books.rollouts
        ]
        raise AssertionError(f"these never get their turn: {waiting}; unsent, in the queue: {queue}; {books.gang}")

    def _end_all(self) -> None:
        for name, attempt, index in list(self.running):
            if (name, attempt, index) not in self.running:
                continue
            known, one = self.rollouts[name], ((index, 1),)
            known.begun = True
            if not self.running[name, attempt, index]:
                self.running[name, attempt, index] = True
                self.fold(m.SandboxesReady(name, attempt, one, "n", "e", "zygote"))
            if (name, attempt, index) in self.running:
                self.fold(m.RolloutReleased(name, one))


def drive(seed: int, core: Callable[[int], SchedulerCore] = SchedulerCore, often: tuple[str, ...] = ()) -> None:
    """Go through one seed's events with a core. Raises AssertionError where a law is broken.

    `often`: what happens more often than else.
    """
    source = random.Random(seed)
    world: Any = type("Driven", (_Driven,), {"core_type": core})(source)
    world.begin(source.randint(2, 8), source.randint(2, 16))
    steps: dict[str, Callable[[], Any]] = {
        "submit": lambda: world.submit(
            source.choice(TENANTS), source.choice(("u1", "u2")), source.randint(1, 6), source.choice((1, 1, 2)),
            source.choice((0, 0, 5)), source.choice((0, 0, 2, 6)), source.choice((0, 0, 500)),
            source.choice(list(m.OnPreempted)), source.random() < 0.5,
        ),
        "ready": lambda: world.ready(None, source.choice((1, 100, 3000))),
        "finish": lambda: world.finish(None, source.randint(0, 1)),
        "fail": lambda: world.fail(None, source.choice((m.EndReason.START_FAILED, m.EndReason.NODE_LOST))),
        "decline": lambda: world.decline(None),
        "hedge": lambda: world.hedge(None),
        "let_go": lambda: world.let_go(None),
        "make_room": lambda: world.make_room() if world.leaving else None,
        "read_back": lambda: world.read_back() if world.unread else None,
        "limit": lambda: world.limit(source.choice(TENANTS), source.choice((1.0, 2.0, 64.0)), source.choice((0, 2, 4))),
        "limit_rate": lambda: world.limit_rate(source.choice(TENANTS), source.choice((0.0, 0.5, 2.0))),
        "tick": lambda: world.tick(source.choice((1, 400, 2000, 40_000))),
    }  # fmt: skip
    names = [*steps, "submit", "ready", "ready", "finish", *often]
    for _ in range(source.randint(1, 40)):
        steps[source.choice(names)]()
        world.a_copy_is_the_same()
    world.teardown()


class _Driven(Scheduling):
    def __init__(self, source: random.Random) -> None:
        super().__init__()
        self.source = source

    def pick(self, data: Any, *, ready: bool | None = None) -> tuple[str, int, m.Ranges] | None:
        groups: dict[tuple[str, int], list[int]] = {}
        for (name, attempt, index), up in self.running.items():
            if ready in (None, up):
                groups.setdefault((name, attempt), []).append(index)
        if not groups:
            return None
        name, attempt = self.source.choice(sorted(groups))
        group = groups[name, attempt]
        return name, attempt, ranges.collect(self.source.sample(group, self.source.randint(1, len(group))))
