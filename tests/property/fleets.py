"""A cell's nodes as placement sees them: requests, joins, losses, drains and returns in any order, and the laws of it.

What placement orders is done by nodes that are a model; `core` is what is tried, bugs are planted by another.
"""

import random
from collections.abc import Callable
from typing import Any

from shoal.machine import ranges
from shoal.machine.core import Cause, Publish
from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m
from shoal_placement.core.placement import PARKED_MS, PlacementCore
from shoal_placement.core.policies import THROTTLE_MS
from shoal_placement.core.roster import SILENCE_MS

GIB = 2**30
HOST = m.Snapshot("host", "host")
DISK = m.Snapshot("disk", "disk", disks=(m.Blob("aa", 50_000_000),))
ISOLATIONS = ("zygote", "gvisor")
ZONES = ("a", "b")
Sandbox = tuple[str, int, int]
"""rollout, attempt, index"""


class Machine:
    """One executor with its one node, as it is."""

    def __init__(self, name: str, source: random.Random) -> None:
        self.name = name
        self.boot = 0
        self.alive = True
        self.isolation = source.choice(ISOLATIONS)
        self.rate = source.choice((0.5, 5.0, 100.0))
        self.spec = m.NodeSpec(
            f"n-{name}", source.choice((1, 2, 4, 8)), source.choice((2, 4, 8)) * GIB,
            (("zone", source.choice(ZONES)),), source.choice((0, 2000, 4000)), source.choice((0, GIB)),
        )  # fmt: skip
        self.holds: dict[Sandbox, m.Resources] = {}
        self.queued_until = 0.0
        """When what it was given will have been started, by the pace it joined with."""

    def check(self) -> None:
        spec, held = self.spec, self.holds.values()
        assert len(held) <= spec.slots, f"{len(held)} sandboxes on {spec.slots} slots"
        assert sum(each.memory for each in held) <= spec.memory, "more memory than there is"
        assert not spec.cpu_milli or sum(each.cpu_milli for each in held) <= spec.cpu_milli, "more cpu than there is"
        assert not spec.disk or sum(each.disk for each in held) <= spec.disk, "more disk than there is"


class Fleet:
    """The machines, what was asked for, and what became of it."""

    def __init__(self, source: random.Random, make: Callable[[], PlacementCore]) -> None:
        self.random = source
        self.make = make
        self.core = make()
        self.now = 1_000_000
        self.sequence = 0
        self.machines: dict[str, Machine] = {}
        self.asked: dict[tuple[str, int], m.PlaceRequested] = {}
        self.open: dict[Sandbox, None] = {}
        """Asked for, and neither started nor ended nor released."""
        self.started: set[Sandbox] = set()
        self.drained: set[str] = set()
        self.released: set[tuple[str, int]] = set()
        for _ in range(source.randint(1, 4)):
            self.join()

    def hear(self, message: Any) -> None:
        self.sequence += 1
        effects = self.core.handle(message, Cause("S", self.sequence, self.now))
        placed: dict[tuple[str, int], int] = {}
        for effect in effects:
            assert isinstance(effect, Publish)
            self.said(effect.message, placed)
        for group, count in placed.items():
            request = self.asked[group]
            left = [sandbox for sandbox in self.open if sandbox[:2] == group]
            assert not request.together or not left, f"{count} of {group} start, and {len(left)} do not"
        self.core.check()
        for each in self.machines.values():
            each.check()

    def said(self, message: Any, placed: dict[tuple[str, int], int]) -> None:
        match message:
            case m.StartSandboxes():
                self.starts(message, placed)
            case m.DestroySandboxes(rollout=rollout, indices=indices, attempt=attempt):
                for each in self.machines.values():
                    if each.alive and f"{each.name}.{each.boot}" == message.boot:
                        self.ending += [
                            (each, sandbox)
                            for sandbox in each.holds
                            if sandbox[0] == rollout and attempt in (-1, sandbox[1])
                            and (not indices or ranges.intersect(((sandbox[2], 1),), indices))
                        ]  # fmt: skip
            case m.SandboxesEnded(rollout=rollout, attempt=attempt, indices=indices, reason=reason, node=node):
                for index in ranges.indices(indices):
                    sandbox = (rollout, attempt, index)
                    if reason is m.EndReason.NODE_LOST:
                        assert sandbox in self.started, f"{sandbox} is lost, and was never started"
                        assert node
                    else:
                        assert sandbox in self.open, f"{sandbox} is given back, and nobody waits for it"
                        del self.open[sandbox]

    ending: list[tuple[Machine, Sandbox]]

    def starts(self, start: m.StartSandboxes, placed: dict[tuple[str, int], int]) -> None:
        (machine,) = [each for each in self.machines.values() if each.spec.node == start.node]
        group = (start.rollout, start.attempt)
        request = self.asked[group]
        spec = request.spec
        assert start.boot == f"{machine.name}.{machine.boot}", "it is told to a life that is over"
        assert spec.isolation in ("", machine.isolation), "another isolation than was asked for"
        assert all(label in machine.spec.labels for label in spec.labels), "a node without the labels"
        assert start.node not in self.drained, "a drained node is given something"
        begins = max(machine.queued_until, self.now)
        much_later = begins > self.now + THROTTLE_MS + 2 * 1000 / machine.rate
        assert request.together or not much_later, "it could start that only much later"
        placed[group] = placed.get(group, 0) + ranges.count(start.indices)
        for index in ranges.indices(start.indices):
            sandbox = (*group, index)
            assert sandbox not in self.started, f"{sandbox} is started twice"
            assert sandbox in self.open, f"{sandbox} is started, and nobody waits for it"
            self.started.add(sandbox)
            del self.open[sandbox]
            if start.attempt >= HEDGE:
                assert (start.rollout, start.attempt - HEDGE, index) not in machine.holds, "a hedge on the same node"
            machine.holds[sandbox] = spec.resources
            begins += 1000 / machine.rate
        machine.queued_until = begins

    # --- what may happen

    def join(self) -> None:
        draw = self.random
        name = f"e{draw.randint(0, 4)}"
        machine = self.machines.get(name)
        if machine is None:
            machine = self.machines[name] = Machine(name, draw)
        elif draw.random() < 0.5:  # it starts anew: all it held is gone
            machine.boot += 1
            machine.alive = True
            machine.holds.clear()
            machine.queued_until = 0.0
        spec, unenforced = machine.spec, ()
        self.ending = []
        boot = f"{name}.{machine.boot}"
        if not machine.alive:
            machine.alive = True
        self.hear(m.ExecutorJoined(name, boot, machine.isolation, (spec,), machine.rate, unenforced))

    def beat(self) -> None:
        """Signs of life of all that live."""
        for machine in list(self.machines.values()):
            if machine.alive:
                self.hear(m.ExecutorBeat(machine.name, f"{machine.name}.{machine.boot}"))

    def ask(self) -> None:
        draw = self.random
        name, n = f"r{self.sequence}", draw.randint(1, 10)
        spec = m.RolloutSpec(
            "host", n, isolation=draw.choice(("", "", *ISOLATIONS)), spread_over=draw.choice(("", "", "zone")),
            labels=draw.choice(((), (), (("zone", "a"),))),
            resources=m.Resources(
                draw.choice((1, 1, 2, 3)) * GIB, draw.choice((500, 1000, 2000)), disk=draw.choice((2**20, GIB // 2))
            ),
        )  # fmt: skip
        snapshot = draw.choice((HOST, DISK))
        avoid = (draw.choice([each.spec.node for each in self.machines.values()]),) if draw.random() < 0.2 else ()
        self.place(
            m.PlaceRequested(
                name, "t", "u", 0, 0, ranges.whole(n), spec, snapshot, self.now + 600_000, avoid,
                draw.random() < 0.3,
            )
        )  # fmt: skip

    def place(self, request: m.PlaceRequested) -> None:
        group = (request.rollout, request.attempt)
        self.asked[group] = request
        self.open.update({(*group, index): None for index in ranges.indices(request.indices)})
        self.hear(request)
        if self.random.random() < 0.2:
            self.hear(request)  # it comes twice

    def hedge(self) -> None:
        """Something that was started takes long: elsewhere, too."""
        held = sorted({s[:2] for each in self.machines.values() if each.alive for s in each.holds if s[1] < HEDGE})
        if not held:
            return
        name, attempt = self.random.choice(held)
        if (name, attempt + HEDGE) in self.asked:
            return
        holds = [s for each in self.machines.values() for s in each.holds if s[:2] == (name, attempt)]
        indices = [index for *_, index in holds if (name, index) not in self.released]
        if not indices:
            return  # a silent machine may hold what was released, but nobody wants it elsewhere
        request = self.asked[name, attempt]
        self.place(
            m.PlaceRequested(
                name, "t", "u", 0, attempt + HEDGE, ranges.collect(indices[:2]), request.spec, request.snapshot,
                request.deadline_ms,
            )
        )  # fmt: skip

    def release(self) -> None:
        if not self.asked:
            return
        name, attempt = self.random.choice(sorted(self.asked))
        some = ranges.collect(s[2] for s in self.open if s[:2] == (name, attempt))
        indices = self.random.choice(((), ranges.whole(1), some or ranges.whole(1)))
        for sandbox in list(self.open):
            if sandbox[0] == name and (not indices or ranges.intersect(((sandbox[2], 1),), indices)):
                del self.open[sandbox]
        n = self.asked[name, attempt].spec.n
        self.released.update((name, index) for index in ranges.indices(indices or ranges.whole(n)))
        self.ending = []
        self.hear(m.ReleaseRequested(name, indices, m.EndReason.RELEASED))
        for machine, sandbox in self.ending:
            self.end(machine, sandbox)

    def end(self, machine: Machine, sandbox: Sandbox) -> None:
        """A machine has cleared a sandbox away, and says so."""
        machine.holds.pop(sandbox, None)
        released = m.SlotsReleased(
            machine.name, f"{machine.name}.{machine.boot}", machine.spec.node, sandbox[0], sandbox[1],
            ((sandbox[2], 1),),
        )  # fmt: skip
        self.ending = []
        self.hear(released)
        if self.random.random() < 0.2:
            self.hear(released)

    def finish_some(self) -> None:
        held = [(each, s) for each in self.machines.values() if each.alive for s in each.holds]
        for machine, sandbox in self.random.sample(held, min(len(held), 3)):
            self.end(machine, sandbox)

    def drain(self) -> None:
        node = self.random.choice([each.spec.node for each in self.machines.values()])
        drained = node not in self.drained
        (self.drained.add if drained else self.drained.discard)(node)
        self.hear(m.NodeDrained(node, drained, hibernate=self.random.random() < 0.5))

    def lose(self) -> None:
        """A machine falls silent; it may come back with what it holds, or anew."""
        machine = self.random.choice(list(self.machines.values()))
        machine.alive = False
        for other in self.machines.values():
            if other.alive:
                self.hear(m.ExecutorBeat(other.name, f"{other.name}.{other.boot}"))
        self.now += SILENCE_MS + 2
        self.beat()
        self.hear(m.Tick(self.now))

    def tick(self) -> None:
        self.now += self.random.choice((1, 300, 1_000, 3_000))
        self.beat()
        self.hear(m.Tick(self.now))

    def restart(self) -> None:
        copy = self.make()
        copy.load(self.core.dump())
        assert copy.dump() == self.core.dump()
        self.core = copy

    def finish(self) -> None:
        """Everybody is answered: what finds room is started, what finds none goes back to the scheduler in time."""
        for _ in range(400):
            if not self.open:
                break
            self.now += PARKED_MS // 2 + 1
            self.beat()
            self.hear(m.Tick(self.now))
            self.finish_some()
        assert not self.open, f"these hear nothing: {list(self.open)[:5]}"


def drive(source: random.Random, make: Callable[[], PlacementCore]) -> None:
    """Go through one course of events. Raises AssertionError where a law is broken."""
    fleet = Fleet(source, make)
    steps: list[Callable[[], None]] = [
        fleet.ask, fleet.ask, fleet.ask, fleet.finish_some, fleet.finish_some, fleet.tick, fleet.tick, fleet.join,
        fleet.release, fleet.drain, fleet.lose, fleet.hedge, fleet.restart,
    ]  # fmt: skip
    for _ in range(source.randint(3, 40)):
        source.choice(steps)()
    fleet.finish()
