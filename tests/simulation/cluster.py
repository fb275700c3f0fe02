"""A whole cluster of the real cores on simulated time, its trainers, and the laws it has to keep."""

import dataclasses
import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from shoal.machine import ranges
from shoal.machine.core import Cause, Core, Effect, Inspect, Publish, Task
from shoal.machine.ledger import HEDGE, Ledger, next_attempt
from shoal.testing.faults import Faults
from shoal.testing.log import Broker
from shoal.testing.replica import Partition, Replica
from shoal.testing.world import LawViolatedError, World
from shoal.wire import messages as m, subjects
from shoal_placement.core.nodes import Demand
from shoal_placement.core.placement import PlacementCore
from shoal_scheduler.core.books import Books
from shoal_scheduler.core.order import SLACK
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_scheduler.core.waiting import Line
from shoal_snapshot.core.snapshot import SnapshotCore
from simulation.fleet import SimExecutor, Truth

HOST = m.Snapshot("host", "host")
SETTLING_MS = 60_000
AUDIT_MS = 1_000
ORPHANED_MS = 6_000
"""How long something may run that nobody owns, where messages and services are prompt."""
FORGOTTEN_MS = 26_000
"""How long a trainer may wait for a sandbox that is gone, there: twice the silence that loses a node, and some."""
LONGEST_MS = 600_000


@dataclass(frozen=True, slots=True)
class Shape:
    """What kind of cluster, and what is asked of it."""

    cells: int
    executors: int
    nodes: int
    slots: int
    replicas: int
    rollouts: int
    largest: int
    tenants: int
    window_ms: int
    quota: int

    @classmethod
    def draw(cls, source: random.Random) -> "Shape":
        return cls(
            cells=source.choice((1, 1, 2, 3)),
            executors=source.randint(1, 3),
            nodes=source.randint(1, 3),
            slots=source.choice((1, 3, 8, 40)),
            replicas=source.choice((1, 1, 2, 3)),
            rollouts=source.randint(1, 6),
            largest=source.choice((1, 4, 12, 60)),
            tenants=source.randint(1, 3),
            window_ms=source.choice((500, 5_000, 120_000)),
            quota=source.choice((100_000, 100_000, 10)),
        )

    def smaller(self) -> "list[Shape]":
        least = {"cells": 1, "executors": 1, "nodes": 1, "slots": 1, "replicas": 1, "rollouts": 1, "largest": 1,
                 "tenants": 1}  # fmt: skip
        found = []
        for name, low in least.items():
            value = getattr(self, name)
            for less in sorted({low, value // 2, value - 1}):
                if low <= less < value:
                    changed: dict[str, Any] = {name: less}
                    found.append(dataclasses.replace(self, **changed))
        return found


class Watched(SchedulerCore):
    """The scheduler under watch: it dispatches each attempt once, never beyond the room there is, nor past a tenant

    that has less.
    """

    def __init__(self, cell: int, quota: int, cells: int, order: str = "fair") -> None:
        super().__init__(cell, quota, order, cells)
        self._placed: set[tuple[str, int, int]] = set()
        self._policy, self._order = self._order, self._checked

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        before = self.books.rooms.given
        owned = {name: tenant.owned[0] for name, tenant in self.books.tenants.items()}
        effects = super().handle(message, cause)
        sent = 0
        for each in effects:
            if isinstance(each, Publish) and isinstance(hedged := each.message, m.SandboxesHedged):
                sent += ranges.count(hedged.indices)  # they count from now on
            if isinstance(each, Publish) and isinstance(place := each.message, m.PlaceRequested):
                sent += ranges.count(place.indices)
                asked = {(place.rollout, place.attempt, index) for index in ranges.indices(place.indices)}
                if asked & self._placed:
                    raise LawViolatedError(f"{sorted(asked & self._placed)} are to be placed twice")
                self._placed |= asked
        given, slots = self.books.rooms.given, self.books.rooms.capacity.slots
        if sent and given > max(slots, before):
            raise LawViolatedError(f"{given} sandboxes in flight, and room for {slots}")
        for name, tenant in self.books.tenants.items():
            most = tenant.limits.sandboxes
            mine = tenant.owned[0]
            if sent and most and mine > max(tenant.part[0], owned.get(name, 0)):
                raise LawViolatedError(f"tenant {name} has {mine} in flight, and {tenant.part[0]} of {most} here")
        return effects

    def _checked(self, books: Books, shut: Callable[[Line], bool]) -> Line | None:
        line = self._policy(books, shut)
        if line is not None:
            tenant = books.tenants[line.tenant]
            mine = tenant.share(books.total)
            least = mine - SLACK / tenant.limits.weight - 1e-9
            for other in books.waiting.each():
                if not shut(other) and books.tenants[other.tenant].share(books.total) < least:
                    raise LawViolatedError(f"{line.tenant} with a share of {mine} goes before {other.tenant}")
        return line


class WatchedPlacement(PlacementCore):
    """Placement under watch: what has to be together starts together, and a hedge goes to another node."""

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        together = {
            (w.rollout, w.attempt): ranges.count(w.indices)
            for w in (*(w for w, _ in self._waiting), *((message,) if isinstance(message, m.PlaceRequested) else ()))
            if w.together
        }
        effects = super().handle(message, cause)
        begun: Counter[tuple[str, int]] = Counter()
        for each in effects:
            if isinstance(each, Publish) and isinstance(start := each.message, m.StartSandboxes):
                begun[start.rollout, start.attempt] += ranges.count(start.indices)
                group = (start.rollout, start.attempt - HEDGE)
                for executor in self._executors.values() if start.attempt >= HEDGE else ():
                    node = executor.nodes.get(start.node)
                    others = [n for e in self._executors.values() if e.alive for n in e.by_number if n.fits(_ONE)]
                    held = node.held.get(group) if node else None
                    if held and ranges.intersect(held.indices, start.indices) and others:
                        raise LawViolatedError(f"the hedge of {group} goes to the same node, {start.node}")
        for group, count in begun.items():
            if group in together and count < together[group]:
                raise LawViolatedError(f"{count} of {group} start, which has {together[group]} to start together")
        return effects


_ONE = Demand("", (), 2**28, 1000, 2**27)


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores: the real ones, or ones with a planted bug."""

    scheduler: Callable[[int, int, int], Core] = Watched
    placement: Callable[[int], Core] = WatchedPlacement
    snapshot: Callable[[], Core] = SnapshotCore
    replica: type[Replica] = Replica
    executor: type[SimExecutor] = SimExecutor


def ledger_attempts(ledger: Ledger, index: int) -> tuple[int, ...]:
    """Return the attempts in which a sandbox may run now."""
    present = ledger.attempt(index)
    return (present, present + HEDGE) if ledger.hedged(((index, 1),)) else (present,)


class Trainer:
    """Asks for one rollout and follows it, as the client does."""

    def __init__(self, cluster: "Cluster", name: str, cell: int, tenant: str, spec: m.RolloutSpec) -> None:
        self.cluster = cluster
        self.name = name
        self.cell = cell
        self.tenant = tenant
        self.spec = spec
        self.ledger = Ledger(spec)
        self.rejected = False
        self._deadline_ms = 0
        self._missed: dict[int, int] = {}  # how long each was not there though it was wanted, in ms
        self._awaited: dict[int, int] = {}  # since when those that slept are waited for
        self.concluded: list[m.RolloutConcluded] = []
        self._position = 0
        self._sent = 0
        self._log = cluster.broker.log(f"SHOAL_ROLLOUT_{cell}")
        self._log.readers.append(self._woken)
        self._reading = False
        self._say(m.RolloutSubmitted(name, tenant, "run", spec))
        world = cluster.world
        if world.random.random() < 0.15:
            world.after(world.random.randint(1, 8000), self._say, m.RolloutCancelled(name))
        if not spec.commands:
            world.after(world.random.randint(2000, 20_000), self._say, m.RolloutReleased(name))

    def _say(self, message: m.AnyMessage) -> None:
        self._sent += 1
        subject = subjects.rollout_request(self.cell, self.tenant, "run")
        self.cluster.broker.publish(self.name, subject, message, f"{self.name}:{self._sent}")
        if self.cluster.world.random.random() < 0.1:  # a trainer that is not sure asks again, under another id
            self.cluster.broker.publish(self.name, subject, message, f"{self.name}:{self._sent}:again")

    def _woken(self) -> None:
        if not self._reading:
            self._reading = True
            self.cluster.world.after(self.cluster.world.random.randint(1, 20), self._read)

    def _read(self) -> None:
        self._reading = False
        entries = self._log.entries
        while self._position < len(entries):
            entry = entries[self._position]
            self._position += 1
            if getattr(entry.message, "rollout", None) == self.name:
                self._handle(entry.message, entry.time_ms)

    def _handle(self, message: m.AnyMessage, time_ms: int) -> None:
        ledger, random_ = self.ledger, self.cluster.world.random
        if isinstance(message, m.RolloutSubmitted):
            self._deadline_ms = self._deadline_ms or time_ms + self.spec.timeout_ms
        late = time_ms >= (self._deadline_ms or time_ms + 1)
        if late and not isinstance(message, m.RolloutConcluded | m.RolloutRejected):
            return
        match message:
            case m.SandboxesReady(attempt=attempt, indices=indices, executor=executor):
                for index in ranges.indices(ledger.ready(attempt, indices)):
                    self._came(index, time_ms)
                    asked = m.RunCommand(
                        f"{self.name}-{index}-{attempt}", self.tenant, "run", self.cell, self.name, index, attempt,
                        m.Command(("true",)),
                    )  # fmt: skip
                    subject = subjects.executor_command(executor, self.tenant)
                    self.cluster.broker.publish(self.name, subject, asked, asked.id)
                    if random_.random() < 0.3:
                        self.cluster.world.after(random_.randint(1, 3000), self._release, index)
            case m.SandboxesFinished(attempt=attempt, results=results):
                for each in results:
                    if ledger.finish(attempt, (each,)):
                        self._check_result(each.index, attempt, each.result.exit_code)
            case m.SandboxesEnded(attempt=attempt, indices=indices, reason=reason):
                ledger.end(attempt, indices, reason)
            case m.SandboxSlept(attempt=attempt, index=index, snapshot=snapshot):
                was_there = ledger.is_ready(index)
                if ledger.sleep(attempt, index):
                    if not was_there:
                        self._came(index, time_ms)
                    self.cluster.truth.kept[self.name, index, next_attempt(attempt)] = snapshot.digest
                    if random_.random() < 0.7:
                        wish = m.SandboxesWanted(self.name, ((index, 1),))
                        self.cluster.world.after(random_.randint(1, 3000), self._say, wish)
            case m.SandboxesWanted(indices=indices):
                self._awaited.update(dict.fromkeys(ranges.indices(ledger.wake(indices)), time_ms))
            case m.SandboxesHedged(attempt=attempt, indices=indices):
                ledger.hedge(attempt, indices)
            case m.SandboxesClosed(indices=indices, reason=reason):
                ledger.close(indices, reason)
            case m.RolloutReleased(indices=indices):
                ledger.close(indices or ranges.whole(ledger.n), m.EndReason.RELEASED)
            case m.RolloutCancelled():
                ledger.close(ranges.whole(ledger.n), m.EndReason.CANCELLED)
            case m.RolloutRejected():
                self.rejected = True
            case m.RolloutConcluded(reason=reason):
                if reason == "timed_out":
                    if not self.concluded:  # a service that has taken over may say it once more
                        self._check_late(ranges.without(ledger.open(), message.not_started), message.deadline)
                    ledger.close(message.not_started, m.EndReason.NOT_STARTED)
                    ledger.close(message.deadline, m.EndReason.DEADLINE)
                    ledger.close(ranges.whole(ledger.n), m.EndReason.TIMED_OUT)
                self.concluded.append(message)

    def _release(self, index: int) -> None:
        self._say(m.RolloutReleased(self.name, ((index, 1),)))

    def _came(self, index: int, time_ms: int) -> None:
        woken = self._awaited.pop(index, None)
        if woken is None:
            self._missed[index] = time_ms - (self._deadline_ms - self.spec.timeout_ms)
        else:
            self._missed[index] += time_ms - woken

    def _check_late(self, open_: m.Ranges, told: m.Ranges) -> None:
        """What was there for half of the rollout's time has its verdict, and nothing else has."""
        late = []
        for index in ranges.indices(open_):
            missed = self._missed.get(index, 0)
            if not (self.ledger.is_ready(index) or self.ledger.asleep(((index, 1),))):
                woken = self._awaited.get(index)
                missed = self.spec.timeout_ms if woken is None else missed + self._deadline_ms - woken
            if 2 * missed > self.spec.timeout_ms:
                late.append(index)
        if ranges.collect(late) != told:
            raise LawViolatedError(f"{told} of {self.name} end as late for their deadline, and {late} are")

    def _check_result(self, index: int, attempt: int, code: int) -> None:
        if self.cluster.truth.results.get((self.name, index, attempt)) != code:
            raise LawViolatedError(f"{self.name}-{index} got exit code {code}, which no sandbox of it returned")

    @property
    def over(self) -> bool:
        return self.rejected or bool(self.concluded)


class Cluster:
    """See the module. `run` goes through all of it and raises LawViolatedError."""

    def __init__(
        self, seed: int, cores: Cores | None = None, shape: Shape | None = None, faults: Faults | None = None
    ) -> None:
        self.seed = seed
        self.cores = cores or Cores()
        source = random.Random(zlib.crc32(b"%d" % seed) ^ 0x5104)
        drawn_shape, drawn_faults = Shape.draw(source), Faults.draw(source)
        self.shape = shape or drawn_shape
        self.faults = faults or drawn_faults
        # Drawn by themselves, so that older seeds stay what they were.
        source = random.Random(zlib.crc32(b"%d cells" % seed))
        self.bare = source.choice((-1, 0, 1)) if self.shape.cells > 1 else -1
        """A cell without nodes: its rollouts run in others."""
        self.limit = source.choice((0, 0, 1, 3, 10))
        """How many sandboxes the first tenant may have at once in all cells; 0: any number."""
        self.world = World(seed)
        self.broker = Broker(self.world, self.faults, self.shape.window_ms)
        self.truth = Truth({}, Counter(), {}, {})
        self.trainers: list[Trainer] = []
        self.executors: list[SimExecutor] = []
        self.partitions: list[Partition] = []
        self._orphans: dict[tuple[str, int, int], int] = {}
        self._forgotten: dict[tuple[str, int, int], int] = {}

    def run(self) -> None:
        """Run rollouts under faults until all are over, then without faults until it is quiet, and check."""
        self._set_up()
        self.world.run(self._all_over, LONGEST_MS)
        self.broker.faults = Faults(delay_ms=self.faults.delay_ms)  # the storm is over
        self.world.rest(SETTLING_MS)
        for executor in self.executors:
            executor.beating = False
        for _ in range(100):
            self.world.rest(100)
            if all(r.position == len(p.log.entries) for p in self.partitions for r in p.replicas):
                break
        self._check_end()

    def _set_up(self) -> None:
        world, shape = self.world, self.shape
        for cell in range(shape.cells):
            place = partial(self.cores.placement, cell)
            schedule = partial(self.cores.scheduler, cell, shape.quota, shape.cells)
            self._partition(f"placement.{cell}", f"SHOAL_PLACEMENT_{cell}", place, subjects.placement_tick(cell))
            self._partition(f"scheduler.{cell}", f"SHOAL_ROLLOUT_{cell}", schedule, subjects.rollout_system(cell))
        self._partition("snapshot", "SHOAL_SNAPSHOT", self.cores.snapshot, None)
        for cell in range(shape.cells):
            for number in range(shape.executors if cell != self.bare else 0):
                name = f"e{cell}{number}"
                memory = 2**28 * world.random.choice((shape.slots, max(shape.slots // 2, 1)))
                nodes = tuple(
                    m.NodeSpec(f"{name}n{node}", shape.slots, memory, (("zone", f"z{node % 2}"),))
                    for node in range(shape.nodes)
                )
                world.after(world.random.randint(1, 3000), self._join, name, cell, nodes)
        if self.faults.prompt:
            world.after(AUDIT_MS, self._audit)
        for number in range(shape.rollouts):
            world.after(world.random.randint(1, 10_000), self._submit, f"r{number}")
        if self.limit:
            for cell in range(shape.cells):
                limited = m.TenantLimited("t0", m.Limits(sandboxes=self.limit), 1)
                self.broker.publish("operator", subjects.rollout_system(cell), limited, f"limit:{cell}")

    def _join(self, name: str, cell: int, nodes: tuple[m.NodeSpec, ...]) -> None:
        self.executors.append(self.cores.executor(self.world, self.broker, name, cell, nodes, self.truth))

    def _partition(self, name: str, stream: str, make: Callable[[], Core], tick_subject: str | None) -> None:
        partition = Partition(
            self.world, self.broker, name, stream, make, replicas=self.shape.replicas, tick_subject=tick_subject,
            answer=self._look_at, replica=self.cores.replica,
        )  # fmt: skip
        self.partitions.append(partition)

    def _look_at(self, effect: Task) -> Sequence[Publish]:
        assert isinstance(effect, Inspect)  # nothing is built here, and nothing is to be collected
        found = HOST if effect.template == "host" else None
        told = m.TemplateInspected(effect.template, found, "" if found else "there is no such directory")
        return [Publish(subjects.snapshot(subjects.SYSTEM, "inspected"), told)]

    def _submit(self, name: str) -> None:
        draw = self.world.random
        n = draw.randint(1, self.shape.largest)
        kind = draw.choice(("one", "one", "each", "none"))
        commands = {
            "none": (),
            "one": (m.Command((draw.choice(("true", "false")),)),),
            "each": tuple(m.Command((draw.choice(("true", "false")),)) for _ in range(n)),
        }[kind]
        spec = m.RolloutSpec(
            draw.choice(("host", "host", "host", "host", "dir:/absent")), n, commands,
            resources=m.Resources(memory=draw.choice((2**24, 2**28, 2**28))),
            timeout_ms=draw.choice((5_000, 30_000, 60_000)), on_lost=draw.choice(list(m.OnLost)),
            max_attempts=draw.randint(1, 4), priority=draw.choice((0, 0, 1)),
            idle_after_ms=(0, 300, 3_000)[zlib.crc32(f"{self.seed}{name}".encode()) % 3] if kind == "none" else 0,
            **self._extras(name, n),
        )  # fmt: skip
        cell = subjects.cell_of(name, self.shape.cells)
        tenant = f"t{draw.randrange(self.shape.tenants)}"
        self.trainers.append(Trainer(self, name, cell, tenant, spec))

    def _extras(self, name: str, n: int) -> dict[str, Any]:
        """Return what some rollouts ask for; drawn by themselves, so that older seeds stay what they were."""
        draw = random.Random(zlib.crc32(f"{self.seed}{name}extras".encode()))
        return {
            "min_ready": draw.choice((0, 0, 1, n, (n + 1) // 2)),
            "start_within_ms": draw.choice((0, 0, 0, 2_000, 20_000)),
            "on_preempted": draw.choice(list(m.OnPreempted)),
            "spread_over": draw.choice(("", "", "zone")),
        }

    def _audit(self) -> None:
        """Look for sandboxes whose rollout, or attempt, is over, and that go on."""
        owners = {trainer.name: trainer.ledger for trainer in self.trainers}
        for executor in self.executors:
            for sandbox in executor.sandboxes:
                rollout, index, attempt = sandbox
                ledger, mine = owners[rollout], ledger_attempts(owners[rollout], index)
                owned = ledger.reason(index) is None and attempt in mine
                if owned or executor.was_away(ORPHANED_MS):
                    self._orphans.pop(sandbox, None)
                elif self.world.now_ms - self._orphans.setdefault(sandbox, self.world.now_ms) > ORPHANED_MS:
                    raise LawViolatedError(f"{sandbox} goes on though it is over")
        for trainer in self.trainers:
            if not trainer.over:
                self._look_for_forgotten(trainer)
        self.world.after(AUDIT_MS, self._audit)

    def _look_for_forgotten(self, trainer: Trainer) -> None:
        """Look for sandboxes that were started, are gone, and that the trainer still waits for."""
        for index in ranges.indices(trainer.ledger.open()):
            sandbox = (trainer.name, index, trainer.ledger.attempt(index))
            if self.truth.started[sandbox] and sandbox not in self.truth.running:
                gone = self._forgotten.setdefault(sandbox, self.world.now_ms)
                if self.world.now_ms - gone > FORGOTTEN_MS:
                    raise LawViolatedError(f"{sandbox} is gone, and its trainer is not told")
            else:
                self._forgotten.pop(sandbox, None)

    def _all_over(self) -> bool:
        return len(self.trainers) == self.shape.rollouts and all(trainer.over for trainer in self.trainers)

    # --- the laws

    def _check_parts(self, cores: list[SchedulerCore]) -> None:
        """Together the cells' parts of a limit are the whole: nothing of it is lost, or there twice."""
        parts = [core.books.tenants["t0"].part[0] for core in cores if "t0" in core.books.tenants]
        if self.limit and sum(parts) != self.limit:
            raise LawViolatedError(f"the cells have {parts} of a limit of {self.limit}")

    def _check_end(self) -> None:
        schedulers: list[SchedulerCore] = []
        for trainer in self.trainers:
            self._check_trainer(trainer)
        if self.truth.running:
            raise LawViolatedError(f"these run, and nobody owns them: {sorted(self.truth.running)}")
        for partition in self.partitions:
            core = partition.replay()
            partition.check_stored()
            for replica in partition.replicas:
                if replica.position != len(partition.log.entries):
                    raise LawViolatedError(f"{replica.name} does not go on: it is at {replica.position}")
                partition.dumped(replica.position, replica.core.dump())
            copy = partition.make()
            copy.load(core.dump())
            partition.dumped(len(partition.log.entries), copy.dump())
            if isinstance(core, PlacementCore):
                self._check_books(core)
            if isinstance(core, SchedulerCore) and (core.books.rooms.given or core.books.rollouts):
                raise LawViolatedError(f"{partition.name} still counts {core.books.rooms.given} sandboxes in flight")
            if isinstance(core, SchedulerCore):
                schedulers.append(core)
        self._check_parts(schedulers)

    def _check_trainer(self, trainer: Trainer) -> None:
        name = trainer.name
        above = trainer.spec.n > self.shape.quota
        if trainer.rejected:
            gang = trainer.tenant == "t0" and 0 < self.limit < trainer.spec.min_ready
            if trainer.spec.template == "host" and not above and not gang:
                raise LawViolatedError(f"{name} was rejected for no reason")
            return
        if above:
            raise LawViolatedError(f"{name} of {trainer.spec.n} was admitted beyond the quota of {self.shape.quota}")
        if not trainer.ledger.concluded:
            raise LawViolatedError(f"{name} is concluded, and its trainer still waits for {trainer.ledger.open()}")
        told = {(each.counts, each.reason) for each in trainer.concluded}
        if told != {(trainer.ledger.counts(), trainer.concluded[0].reason)}:
            raise LawViolatedError(f"{name}: the scheduler counts {told}, its trainer {trainer.ledger.counts()}")
        if sum(count for _, count in trainer.ledger.counts()) != trainer.spec.n:
            raise LawViolatedError(f"{name}: {trainer.ledger.counts()} of {trainer.spec.n}")
        entries = self.broker.log(f"SHOAL_ROLLOUT_{trainer.cell}").entries
        ids = {e.id for e in entries if isinstance(e.message, m.RolloutConcluded) and e.message.rollout == name}
        if len(ids) != 1:
            raise LawViolatedError(f"{name} was concluded {len(ids)} times")

    def _check_books(self, core: PlacementCore) -> None:
        for executor in core._executors.values():
            for node in executor.by_number:
                if node.held:
                    raise LawViolatedError(f"placement still holds {node.held} on {node.spec.node}")
        if core._waiting:
            raise LawViolatedError(f"placement still wants to place {core._waiting}")
