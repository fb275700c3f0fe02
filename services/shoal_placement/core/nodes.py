"""Nodes and the executors that serve them: what is reserved on each, exactly, and which of them has room for what."""

import heapq
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from shoal.machine import ranges
from shoal.wire import messages as m

CHUNK: Final = 128
"""Sandboxes in a start order, where one executor serves several nodes and there is room for as many. See ADR 0029."""

FETCHED_PER_MS: Final = 100_000.0
"""Bytes that an executor is taken to fetch from the blob store in a millisecond."""

_DEMANDS: Final = 16
"""Kinds of sandboxes for which an executor remembers which of its nodes have room."""
_LEARNED: Final = 0.3
"""Weight of what an executor reports in what is known of how fast it starts sandboxes."""

Group = tuple[str, int]
"""rollout and attempt"""


class Demand(NamedTuple):
    """What one sandbox takes of which nodes; it takes one slot."""

    isolation: str
    labels: tuple[tuple[str, str], ...]
    memory: int
    cpu_milli: int
    disk: int


def demand_of(spec: m.RolloutSpec) -> Demand:
    """Return what a rollout's sandboxes take."""
    limits = spec.resources
    return Demand(spec.isolation, spec.labels, limits.memory, limits.cpu_milli, limits.disk)


def could_hold(spec: m.NodeSpec, demand: Demand) -> bool:
    """Return whether a node would hold one, were it empty."""
    return (
        spec.slots > 0 and demand.memory <= spec.memory
        and (not spec.cpu_milli or demand.cpu_milli <= spec.cpu_milli)
        and (not spec.disk or demand.disk <= spec.disk)
        and all(label in spec.labels for label in demand.labels)
    )  # fmt: skip


class Held(NamedTuple):
    """What is reserved on a node for a group: the sandboxes, and what each takes."""

    indices: m.Ranges
    memory: int
    cpu_milli: int
    disk: int


@dataclass(slots=True)
class Node:
    """One node's account. `cpu_milli` and `disk` count only where its executor says how much there is."""

    spec: m.NodeSpec
    number: int
    slots: int = 0
    memory: int = 0
    cpu_milli: int = 0
    disk: int = 0
    drained: bool = False
    held: dict[Group, Held] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = self.spec
        self.slots, self.memory, self.cpu_milli, self.disk = spec.slots, spec.memory, spec.cpu_milli, spec.disk

    def fits(self, demand: Demand) -> int:
        """Return how many of these sandboxes there is room for."""
        spec = self.spec
        if self.drained or any(label not in spec.labels for label in demand.labels):
            return 0
        count = min(self.slots, self.memory // demand.memory) if demand.memory else self.slots
        if spec.cpu_milli and demand.cpu_milli:
            count = min(count, self.cpu_milli // demand.cpu_milli)
        if spec.disk and demand.disk:
            count = min(count, self.disk // demand.disk)
        return max(count, 0)

    def _take(self, held: Held, count: int) -> None:
        self.slots -= count
        self.memory -= count * held.memory
        self.cpu_milli -= count * held.cpu_milli
        self.disk -= count * held.disk

    def reserve(self, group: Group, indices: m.Ranges, demand: Demand) -> None:
        """Take room for these sandboxes."""
        known = self.held.get(group)
        taken = Held(indices, demand.memory, demand.cpu_milli, demand.disk)
        self._take(taken, ranges.count(indices))
        self.held[group] = known._replace(indices=ranges.union(known.indices, indices)) if known else taken

    def free(self, group: Group, indices: m.Ranges) -> int:
        """Give room back; returns for how many of these sandboxes there was any."""
        held = self.held.get(group)
        if held is None:
            return 0
        left = ranges.without(held.indices, indices)
        freed = ranges.count(held.indices) - ranges.count(left)
        self._take(held, -freed)
        if left:
            self.held[group] = held._replace(indices=left)
        else:
            del self.held[group]
        return freed

    def check(self) -> None:
        """Assert that it is not over-committed and that its account balances."""
        spec = self.spec
        counts = [(ranges.count(held.indices), held) for held in self.held.values()]
        assert self.slots == spec.slots - sum(count for count, _ in counts) >= 0
        assert self.memory == spec.memory - sum(count * held.memory for count, held in counts) >= 0
        assert self.cpu_milli == spec.cpu_milli - sum(count * held.cpu_milli for count, held in counts)
        assert self.disk == spec.disk - sum(count * held.disk for count, held in counts)
        assert self.cpu_milli >= 0 or not spec.cpu_milli
        assert self.disk >= 0 or not spec.disk


class _Roomiest:
    """Which nodes of an executor have most room for one kind of sandbox: a heap of (-room, number).

    An entry that says more room than there is now is corrected when it is read; what gained room is entered anew. So
    the first is always right, whatever was asked before.
    """

    __slots__ = ("_demand", "_heap", "_nodes")

    def __init__(self, nodes: list[Node], demand: Demand) -> None:
        self._nodes = nodes
        self._demand = demand
        self._heap: list[tuple[int, int]] = []
        self._rebuild()

    def _rebuild(self) -> None:
        """Make the heap anew, without what is out of date."""
        self._heap = [(-room, node.number) for node in self._nodes if (room := node.fits(self._demand))]
        heapq.heapify(self._heap)

    def gained(self, node: Node) -> None:
        if room := node.fits(self._demand):
            heapq.heappush(self._heap, (-room, node.number))
            if len(self._heap) > 4 * len(self._nodes) + 16:
                self._rebuild()

    def first(self) -> tuple[int, Node] | None:
        """Return the most room, and where it is."""
        while self._heap:
            room, number = self._heap[0]
            node = self._nodes[number]
            true = node.fits(self._demand)
            if true == -room:
                return true, node
            heapq.heappop(self._heap)
            if 0 < true < -room:
                heapq.heappush(self._heap, (-true, number))
        return None

    def take(self, count: int, avoid: tuple[str, ...]) -> list[tuple[Node, int]]:
        chosen: dict[int, int] = {}
        aside: list[tuple[int, int]] = []
        chunk = CHUNK if len(self._nodes) > 1 else count
        while count and (first := self.first()) is not None:
            room, node = first
            aside.append(heapq.heappop(self._heap))
            while self._heap and self._heap[0] == aside[-1]:
                heapq.heappop(self._heap)  # entered twice
            part = 0 if node.spec.node in avoid else min(count, chunk, room)
            if part:
                chosen[node.number] = part
                count -= part
        for entry in aside:
            heapq.heappush(self._heap, entry)
        for number, part in chosen.items():  # every node has its part, and there is more: fill them up
            more = min(count, self._nodes[number].fits(self._demand) - part)
            chosen[number] += more
            count -= more
        return [(self._nodes[number], part) for number, part in chosen.items()]


@dataclass(slots=True)
class Executor:
    """One executor, in one boot of it. `order` is the how-manieth it was to join."""

    name: str
    boot: str
    isolation: str
    start_ms: float
    heard_ms: int
    nodes: dict[str, Node]
    order: int = 0
    alive: bool = True
    excused: bool = False
    """Whether it was waited for longer since it was heard, because the log took nothing for a while."""
    busy_until_ms: float = 0.0
    free: int = 0
    started: int = 0  # what it last reported
    busy_ms: int = 0
    held: dict[str, int] = field(default_factory=dict)  # sandboxes by rollout
    by_number: list[Node] = field(default_factory=list)
    blobs: dict[str, None] = field(default_factory=dict)  # those it has at hand
    _roomiest: dict[Demand, _Roomiest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_number = list(self.nodes.values())
        self.free = sum(node.slots for node in self.by_number)

    def heard(self, now_ms: int) -> None:
        """Note that it lives."""
        self.heard_ms = max(self.heard_ms, now_ms)
        self.excused = False

    def learn(self, beat: m.ExecutorBeat, now_ms: int) -> None:
        """Take in how fast it starts sandboxes, and how many it has to start still."""
        started, busy_ms = beat.started - self.started, beat.busy_ms - self.busy_ms
        if started > 0 and busy_ms > 0:
            self.start_ms += _LEARNED * (min(max(busy_ms / started, 0.01), 600_000.0) - self.start_ms)
        if beat.started or beat.busy_ms:  # one that does not report it says nothing of its queue, either
            self.busy_until_ms = min(self.busy_until_ms, now_ms + beat.starting * self.start_ms)
        self.started, self.busy_ms = beat.started, beat.busy_ms

    def fetch_ms(self, snapshot: m.Snapshot) -> float:
        """Return how long it would take to have all bytes of a snapshot at hand."""
        return sum(blob.size for blob in snapshot.blobs if blob.digest not in self.blobs) / FETCHED_PER_MS

    def will_have(self, snapshot: m.Snapshot) -> None:
        """Note that it fetches what it lacks of a snapshot."""
        for blob in snapshot.blobs:
            self.blobs[blob.digest] = None

    def _nodes_for(self, demand: Demand) -> _Roomiest:
        found = self._roomiest.get(demand)
        if found is None:
            if len(self._roomiest) >= _DEMANDS:
                del self._roomiest[next(iter(self._roomiest))]
            found = self._roomiest[demand] = _Roomiest(self.by_number, demand)
        return found

    def room(self, demand: Demand) -> int:
        """Return at most how many of these sandboxes it has room for; 0 only where there is none."""
        first = self._nodes_for(demand).first()
        if first is None:
            return 0
        return first[0] if len(self.by_number) == 1 else max(self.free, 1)

    def take(self, count: int, demand: Demand, avoid: tuple[str, ...]) -> list[tuple[Node, int]]:
        """Choose nodes for up to `count` sandboxes, most room first; returns how many for each. Reserves nothing."""
        return self._nodes_for(demand).take(count, avoid)

    def reserve(self, node: Node, group: Group, indices: m.Ranges, demand: Demand) -> None:
        """Take room on one of its nodes."""
        node.reserve(group, indices, demand)
        count = ranges.count(indices)
        self.free -= count
        self.held[group[0]] = self.held.get(group[0], 0) + count

    def release(self, node: Node, group: Group, indices: m.Ranges) -> int:
        """Give room back on one of its nodes; returns for how many sandboxes."""
        freed = node.free(group, indices)
        if freed:
            self.free += freed
            self.held[group[0]] -= freed
            if not self.held[group[0]]:
                del self.held[group[0]]
            self.gained(node)
        return freed

    def holds(self, rollout: str, attempt: int) -> bool:
        """Return whether sandboxes of a rollout are here; of one attempt, unless that is -1."""
        if attempt < 0 or rollout not in self.held:
            return rollout in self.held
        return any((rollout, attempt) in node.held for node in self.by_number)

    def gained(self, node: Node) -> None:
        """Note that there is more room on a node than there was."""
        for roomiest in self._roomiest.values():
            roomiest.gained(node)

    def dump(self) -> "DumpedExecutor":
        """Return it as data; what follows from the reservations is left out."""
        nodes = [(node.spec, node.drained, list(node.held.items())) for node in self.by_number]
        return DumpedExecutor(
            self.name, self.boot, self.isolation, self.start_ms, self.heard_ms, nodes, self.order, self.alive,
            self.busy_until_ms, self.excused, list(self.blobs), self.started, self.busy_ms,
        )  # fmt: skip

    def check(self) -> None:
        """Assert that no node is over-committed and that every account balances."""
        by_rollout: dict[str, int] = {}
        for node in self.by_number:
            node.check()
            for (rollout, _), held in node.held.items():
                by_rollout[rollout] = by_rollout.get(rollout, 0) + ranges.count(held.indices)
        assert self.held == by_rollout
        assert self.free == sum(node.slots for node in self.by_number)
        for demand, roomiest in self._roomiest.items():
            first = roomiest.first()
            assert (first[0] if first else 0) == max((node.fits(demand) for node in self.by_number), default=0)


class DumpedExecutor(msgspec.Struct, frozen=True, array_like=True):
    """An executor in a checkpoint: of each node what it is, and what is held there."""

    name: str
    boot: str
    isolation: str
    start_ms: float
    heard_ms: int
    nodes: list[tuple[m.NodeSpec, bool, list[tuple[Group, Held]]]]
    order: int
    alive: bool
    busy_until_ms: float
    excused: bool
    blobs: list[str]
    started: int
    busy_ms: int

    def load(self) -> Executor:
        """Return the executor."""
        nodes = {spec.node: Node(spec, number) for number, (spec, _, _) in enumerate(self.nodes)}
        executor = Executor(
            self.name, self.boot, self.isolation, self.start_ms, self.heard_ms, nodes, self.order, self.alive,
            self.excused, self.busy_until_ms, started=self.started, busy_ms=self.busy_ms,
        )  # fmt: skip
        for node, (_, drained, groups) in zip(executor.by_number, self.nodes, strict=True):
            node.drained = drained
            for group, held in groups:
                demand = Demand("", (), held.memory, held.cpu_milli, held.disk)
                executor.reserve(node, group, held.indices, demand)
        executor.blobs = dict.fromkeys(self.blobs)
        return executor
