"""Simulated executors: they join, start one sandbox after the other, end those they are told to, give slots back."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shoal.machine import ranges
from shoal.replay.demand import Group, Machine
from shoal.wire import messages as m, streams, subjects

if TYPE_CHECKING:
    from shoal.replay.simulating import Simulation

CLEARED_MS: Final = 10
"""From a sandbox's end until its slot is free."""
SLEEP_MS: Final = 100
"""How long it takes to put a sandbox to sleep."""
BEAT_MS: Final = 5_000
_BOOT: Final = "b"
_NEAR: Final = 6
"""Among so many recorded orders of nearly the same size one is drawn."""

Sandbox = tuple[str, int, int]
"""rollout, attempt, index"""


@dataclass(slots=True)
class Place:
    """Where a sandbox is, since when it is ready (ms; -1: not yet), and which order asked for it."""

    executor: str
    node: str
    order: m.StartSandboxes
    ready_ms: int = -1


@dataclass(slots=True)
class _Executor:
    machine: Machine
    busy_until_ms: float = 0.0
    started: int = 0
    busy_ms: float = 0.0
    there: bool = True

    @property
    def joined(self) -> m.ExecutorJoined:
        machine = self.machine
        return m.ExecutorJoined(machine.executor, _BOOT, machine.isolation, machine.nodes, machine.starts_per_s)


class Fleet:
    """See the module. `live` are the sandboxes that take room somewhere."""

    def __init__(self, world: "Simulation", machines: tuple[Machine, ...]) -> None:
        self._world = world
        self.live: dict[Sandbox, Place] = {}
        self._attempts: dict[str, dict[int, None]] = {}
        self._cleared: dict[tuple[str, str, str, int], list[int]] = {}
        self._executors = {machine.executor: _Executor(machine) for machine in machines}
        if len(self._executors) < len(machines):
            raise ValueError("two machines of a demand have one name: one of them would do nothing")
        self._by_stream = {streams.executor(name).name: each for name, each in self._executors.items()}
        for executor in self._executors.values():
            machine = executor.machine
            world.at(machine.from_ms, self._join, executor)
            if machine.until_ms >= 0:
                world.at(machine.until_ms, self._leave, executor)

    def hear(self, stream: str, message: m.AnyMessage) -> None:
        """Let an executor carry out an order."""
        executor = self._by_stream.get(stream)
        if executor is None or not executor.there:
            return
        match message:
            case m.StartSandboxes():
                self._start(executor, message)
            case m.DestroySandboxes(rollout=rollout, indices=indices, attempt=attempt):
                for sandbox in self._here(executor, rollout, attempt, indices):
                    self.clear(sandbox)
            case m.PreemptSandboxes(rollout=rollout, indices=indices, attempt=attempt, how=how):
                for sandbox in self._here(executor, rollout, attempt, indices):
                    self._make_room(sandbox, how)

    def _here(self, executor: _Executor, rollout: str, attempt: int, indices: m.Ranges) -> list[Sandbox]:
        group = self._world.group(rollout)
        attempts = [attempt] if attempt >= 0 else list(self._attempts.get(rollout, ()))
        found = [(rollout, a, i) for a in attempts for i in ranges.indices(indices or ranges.whole(group.spec.n))]
        name = executor.machine.executor
        return [each for each in found if each in self.live and self.live[each].executor == name]

    # --- starting

    def _start(self, executor: _Executor, order: m.StartSandboxes) -> None:
        world, machine = self._world, executor.machine
        self._attempts.setdefault(order.rollout, {})[order.attempt] = None
        begins = max(executor.busy_until_ms, world.now)
        executor.busy_until_ms = begins
        ready: dict[int, list[int]] = {}
        step = max(world.demand.hop_ms, 1)
        count = ranges.count(order.indices)
        profile = self._profile(machine, count)
        for number, index in enumerate(ranges.indices(order.indices)):
            took = machine.start_ms
            if machine.spread:
                took *= world.random.lognormvariate(0, machine.spread)
            executor.busy_until_ms += took
            soonest = world.now + profile[number * len(profile) // count]
            self.live[order.rollout, order.attempt, index] = Place(machine.executor, order.node, order)
            # As executors do: what happens while a report is on its way is said with the next one.
            ready.setdefault(int(max(executor.busy_until_ms, soonest)) // step * step, []).append(index)
        executor.started += count
        executor.busy_ms += executor.busy_until_ms - begins
        for when_ms, indices in ready.items():
            world.at(when_ms, self._ready, executor, order, indices)

    def _profile(self, machine: Machine, count: int) -> tuple[int, ...]:
        """Return how an order of about this size went before: `profiles` are sorted by their size."""
        known = machine.profiles
        if len(known) == 1:
            return known[0]
        at = bisect_left(known, count, key=len)
        return known[min(max(at + self._world.random.randint(-_NEAR, _NEAR), 0), len(known) - 1)]

    def _ready(self, executor: _Executor, order: m.StartSandboxes, indices: list[int]) -> None:
        there = []
        for index in indices:
            place = self.live.get((order.rollout, order.attempt, index))
            if place is not None and place.executor == executor.machine.executor:
                place.ready_ms = self._world.now
                there.append(index)
        if there:
            group = self._world.group(order.rollout)
            found = ranges.collect(there)
            self._world.ready(group, found, order.attempt, order.node, executor.machine.executor)

    # --- ending

    def clear(self, sandbox: Sandbox) -> None:
        """End a sandbox and give its slot back."""
        place = self.live.pop(sandbox, None)
        if place is None:
            return
        name, attempt, index = sandbox
        key = (place.executor, place.node, name, attempt)
        if key not in self._cleared:
            self._world.at(self._world.now + CLEARED_MS, self._give_back, key)
        self._cleared.setdefault(key, []).append(index)

    def _give_back(self, key: tuple[str, str, str, int]) -> None:
        executor, node, name, attempt = key
        released = m.SlotsReleased(executor, _BOOT, node, name, attempt, ranges.collect(self._cleared.pop(key)))
        self._world.publish(subjects.placement_release(self._executors[executor].machine.cell), released)

    def _make_room(self, sandbox: Sandbox, how: m.OnPreempted) -> None:
        place = self.live[sandbox]
        group = self._world.group(sandbox[0])
        if how is m.OnPreempted.RESTART or place.ready_ms < 0:
            self._end(group, sandbox, place)
        elif how is m.OnPreempted.HIBERNATE and not group.spec.commands:
            self._world.at(self._world.now + SLEEP_MS, self._sleep, group, sandbox)

    def _end(self, group: Group, sandbox: Sandbox, place: Place) -> None:
        name, attempt, index = sandbox
        ended = m.SandboxesEnded(name, attempt, ((index, 1),), place.node, m.EndReason.PREEMPTED, "it made room")
        self._world.say(subjects.rollout_sandbox(group.cell, group.tenant, group.run), ended)
        self.clear(sandbox)

    def _sleep(self, group: Group, sandbox: Sandbox) -> None:
        place = self.live.get(sandbox)
        if place is None:
            return
        name, attempt, index = sandbox
        self._world.slept(group, index, place.ready_ms)
        slept = m.SandboxSlept(name, attempt, index, place.node, place.order.snapshot, preempted=True)
        self._world.say(subjects.rollout_sandbox(group.cell, group.tenant, group.run), slept)
        self.clear(sandbox)

    # --- coming, living, leaving

    def _join(self, executor: _Executor) -> None:
        cell = executor.machine.cell
        self._world.publish(subjects.placement_node(cell), executor.joined)
        self._world.at(self._world.now + self._world.random.randint(1, BEAT_MS), self._beat, executor)

    def _beat(self, executor: _Executor) -> None:
        world, machine = self._world, executor.machine
        if not executor.there:
            return
        waiting = max(executor.busy_until_ms - world.now, 0)
        beat = m.ExecutorBeat(
            machine.executor, _BOOT, 0, int(waiting / max(machine.start_ms, 0.001)), executor.started,
            int(executor.busy_ms),
        )  # fmt: skip
        world.publish(subjects.placement_node(machine.cell), beat)
        world.at(world.now + BEAT_MS, self._beat, executor)

    def _leave(self, executor: _Executor) -> None:
        executor.there = False
        for sandbox in [each for each, place in self.live.items() if place.executor == executor.machine.executor]:
            del self.live[sandbox]
        left = m.ExecutorLeft(executor.machine.executor, _BOOT)
        self._world.publish(subjects.placement_node(executor.machine.cell), left)
