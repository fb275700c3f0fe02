"""One cell on simulated time: the real cores of scheduler and placement, and nodes that only take time."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from scheduling.workloads import Group
from shoal.machine import ranges
from shoal.machine.core import Cause, Core, Publish
from shoal.wire import messages as m
from shoal_placement.core.placement import PlacementCore
from shoal_scheduler.core.scheduler import SchedulerCore

HOP_MS: Final = 1
"""From one service to another."""
CLEARED_MS: Final = 10
"""From a sandbox's end until its slot is free."""
BEAT_MS: Final = 5_000
MEMORY: Final = 2**30
HOST: Final = m.Snapshot("host", "host")

Sandbox = tuple[str, int, int]
"""rollout, attempt, index"""


@dataclass(slots=True)
class Node:
    """One node of one executor: starts one sandbox after the other, each in about `start_ms`."""

    name: str
    start_ms: float
    busy_until_ms: float = 0.0
    started: int = 0
    busy_ms: float = 0.0


@dataclass(slots=True)
class Seen:
    """What became of one rollout (ms)."""

    group: Group
    ready: dict[int, int] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)

    @property
    def full_ms(self) -> int:
        """When the last of its sandboxes was ready."""
        return max(self.ready.values())


class Cell:
    """See the module. `run` goes on until every group is done; `seen` and `use` say how it went."""

    def __init__(self, groups: list[Group], nodes: int, slots: int, order: str, policy: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.slots = slots
        self.scheduler = SchedulerCore(0, order=order)
        self.placement = PlacementCore(0, policy)
        self.now = 0
        self.nodes: dict[str, Node] = {}
        self.seen: dict[str, Seen] = {}
        self.use: list[tuple[int, str, int]] = []
        """Changes of how many sandboxes a tenant has ready: ms, tenant, by how many."""
        self.messages = 0
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._sequence = {"scheduler": 0, "placement": 0}
        self._ticks: dict[str, int] = {}
        self._live: dict[Sandbox, str] = {}  # the node each is on, or starts on
        self._left = sum(len(group.durations_ms) for group in groups)
        for number in range(nodes):
            pace = self.random.lognormvariate(2.5, 0.4) * (20 if number % 100 == 99 else 1)  # some are slow
            node = self.nodes[f"n{number}"] = Node(f"n{number}", pace)
            spec = m.NodeSpec(node.name, slots, slots * MEMORY)
            joined = m.ExecutorJoined(f"e{number}", "b", "simulated", (spec,), 1000 / 12)
            self._at(0, self._fold, "placement", joined)
            self._at(self.random.randint(1, BEAT_MS), self._beat, node)
        for number, group in enumerate(groups):
            self._at(group.at_ms + 100, self._submit, f"r{number}", group)

    def run(self) -> None:
        """Go through all of it."""
        while self._left:
            self.now, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)

    def _at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (max(int(when), self.now), self._count, call, arguments))

    # --- the services

    def _fold(self, service: str, message: m.AnyMessage) -> None:
        core: Core = self.scheduler if service == "scheduler" else self.placement
        self._sequence[service] += 1
        self.messages += 1
        for effect in core.handle(message, Cause(service, self._sequence[service], self.now)):
            if isinstance(effect, Publish):
                self._said(effect.message)
        wake = core.wake_at_ms()
        if wake is not None and wake < self._ticks.get(service, 2**60):
            self._ticks[service] = wake
            self._at(max(wake, self.now + 1), self._tick, service, wake)

    def _tick(self, service: str, due: int) -> None:
        if self._ticks.get(service) == due:
            del self._ticks[service]
            self._fold(service, m.Tick(due))

    def _said(self, message: m.AnyMessage) -> None:
        match message:
            case m.PlaceRequested() | m.ReleaseRequested() | m.PreemptRequested():
                self._at(self.now + HOP_MS, self._fold, "placement", message)
            case m.SandboxesEnded() | m.CellCapacity() | m.SandboxesHedged() | m.SandboxesClosed():
                self._at(self.now + HOP_MS, self._fold, "scheduler", message)
            case m.ResolveTemplate(tenant=tenant, template=template):
                self._at(self.now + HOP_MS, self._fold, "scheduler", m.TemplateResolved(tenant, template, HOST))
            case m.RolloutRejected(detail=detail):
                raise SystemExit(f"a rollout was rejected: {detail}")
            case m.StartSandboxes():
                self._at(self.now + HOP_MS, self._start, message)
            case m.DestroySandboxes():
                self._at(self.now + HOP_MS, self._destroy, message)

    # --- trainers and nodes

    def _submit(self, name: str, group: Group) -> None:
        self.seen[name] = Seen(group)
        spec = m.RolloutSpec(
            "host", len(group.durations_ms), (m.Command(("true",)),), m.Resources(memory=MEMORY), timeout_ms=86_400_000
        )
        self._fold("scheduler", m.RolloutSubmitted(name, group.tenant, group.run, spec))

    def _start(self, order: m.StartSandboxes) -> None:
        node = self.nodes[order.node]
        begins = max(node.busy_until_ms, self.now)
        for index in ranges.indices(order.indices):
            took = node.start_ms * self.random.lognormvariate(0, 0.2)
            node.busy_until_ms = max(node.busy_until_ms, self.now) + took
            sandbox = (order.rollout, order.attempt, index)
            self._live[sandbox] = node.name
            self._at(node.busy_until_ms, self._ready, sandbox)
        node.started += ranges.count(order.indices)
        node.busy_ms += node.busy_until_ms - begins

    def _ready(self, sandbox: Sandbox) -> None:
        node = self._live.get(sandbox)
        if node is None:
            return
        name, attempt, index = sandbox
        seen = self.seen[name]
        report = m.SandboxesReady(name, attempt, ((index, 1),), node, f"e{node[1:]}", "simulated")
        self._at(self.now + HOP_MS, self._fold, "scheduler", report)
        if index not in seen.ready:
            seen.ready[index] = self.now
            self.use.append((self.now, seen.group.tenant, 1))
            self._at(self.now + seen.group.durations_ms[index], self._finish, sandbox)

    def _finish(self, sandbox: Sandbox) -> None:
        node = self._live.get(sandbox)
        if node is None:
            return
        name, attempt, index = sandbox
        seen = self.seen[name]
        seen.done[index] = self.now
        self.use.append((self.now, seen.group.tenant, -1))
        self._left -= 1
        result = m.SandboxResult(index, m.CommandResult(0), seen.group.durations_ms[index] * 1000)
        finished = m.SandboxesFinished(name, attempt, node, f"e{node[1:]}", "simulated", (result,))
        self._at(self.now + HOP_MS, self._fold, "scheduler", finished)
        self._free(sandbox)

    def _destroy(self, order: m.DestroySandboxes) -> None:
        for index in ranges.indices(order.indices):
            sandbox = (order.rollout, order.attempt, index)
            if sandbox in self._live:
                self._free(sandbox)

    def _free(self, sandbox: Sandbox) -> None:
        node = self._live.pop(sandbox)
        name, attempt, index = sandbox
        released = m.SlotsReleased(f"e{node[1:]}", "b", node, name, attempt, ((index, 1),))
        self._at(self.now + CLEARED_MS, self._fold, "placement", released)

    def _beat(self, node: Node) -> None:
        waiting = max(node.busy_until_ms - self.now, 0)
        beat = m.ExecutorBeat(
            f"e{node.name[1:]}", "b", 0, int(waiting / node.start_ms), node.started, int(node.busy_ms)
        )
        self._fold("placement", beat)
        self._at(self.now + BEAT_MS, self._beat, node)
