"""The nodes of a cell, what is reserved on each, and which of them take the next sandboxes.

A start order goes to one node, so choosing has two steps. Over executors, sandboxes go where they would be started
soonest (water-filling over the start queues: each executor starts so many a second). Within an executor, whose nodes
share its queue, they go to the nodes with most room, `CHUNK` at a time: spreading them further would start none sooner.
"""

import heapq
from dataclasses import dataclass, field
from typing import Final

import msgspec

from shoal.machine import ranges
from shoal.wire import messages as m

CHUNK: Final = 32
"""Sandboxes in a start order, where there is room for as many."""

FETCHED_PER_MS: Final = 100_000.0
"""Bytes that an executor is taken to fetch from the blob store in a millisecond."""

Group = tuple[str, int]
"""rollout and attempt"""


@dataclass(slots=True)
class Node:
    """One node's account."""

    spec: m.NodeSpec
    number: int
    slots: int
    memory: int
    held: dict[Group, tuple[m.Ranges, int]] = field(default_factory=dict)  # and the memory of each sandbox

    def fits(self, memory: int) -> int:
        """Return how many sandboxes of this much memory there is room for."""
        return max(min(self.slots, self.memory // memory), 0) if memory else self.slots

    def reserve(self, group: Group, indices: m.Ranges, memory: int) -> None:
        """Take room for these sandboxes."""
        count = ranges.count(indices)
        self.slots -= count
        self.memory -= count * memory
        known = self.held.get(group)
        self.held[group] = (ranges.union(known[0], indices) if known else indices, memory)

    def free(self, group: Group, indices: m.Ranges) -> int:
        """Give room back; returns for how many of these sandboxes there was any."""
        if group not in self.held:
            return 0
        held, memory = self.held[group]
        left = ranges.without(held, indices)
        freed = ranges.count(held) - ranges.count(left)
        self.slots += freed
        self.memory += freed * memory
        if left:
            self.held[group] = (left, memory)
        else:
            del self.held[group]
        return freed


@dataclass(slots=True)
class Executor:
    """One executor, in one boot of it. `roomiest` is a heap of (-slots, number), corrected when it is read."""

    name: str
    boot: str
    isolation: str
    start_ms: float
    heard_ms: int
    nodes: dict[str, Node]
    alive: bool = True
    excused: bool = False
    """Whether it was waited for longer since it was heard, because the log took nothing for a while."""
    busy_until_ms: float = 0.0
    free: int = 0
    held: dict[str, int] = field(default_factory=dict)  # sandboxes by rollout
    by_number: list[Node] = field(default_factory=list)
    roomiest: list[tuple[int, int]] = field(default_factory=list)
    blobs: dict[str, None] = field(default_factory=dict)  # those it has at hand

    def __post_init__(self) -> None:
        self.by_number = list(self.nodes.values())
        self.free = sum(node.slots for node in self.by_number)
        self.roomiest = [(-node.slots, node.number) for node in self.by_number]
        heapq.heapify(self.roomiest)

    def heard(self, now_ms: int) -> None:
        """Note that it lives."""
        self.heard_ms = max(self.heard_ms, now_ms)
        self.excused = False

    def fetch_ms(self, snapshot: m.Snapshot) -> float:
        """Return how long it would take to have all bytes of a snapshot at hand."""
        return sum(blob.size for blob in snapshot.blobs if blob.digest not in self.blobs) / FETCHED_PER_MS

    def will_have(self, snapshot: m.Snapshot) -> None:
        """Note that it fetches what it lacks of a snapshot."""
        for blob in snapshot.blobs:
            self.blobs[blob.digest] = None

    def take(self, count: int, memory: int, avoid: tuple[str, ...]) -> list[tuple[Node, int]]:
        """Choose nodes for up to `count` sandboxes, most room first; returns how many for each. Reserves nothing."""
        chosen: dict[int, int] = {}
        aside: list[tuple[int, int]] = []
        while count and self.roomiest:
            room, number = heapq.heappop(self.roomiest)
            node = self.by_number[number]
            if -room != node.slots:  # the entry is of an earlier account
                heapq.heappush(self.roomiest, (-node.slots, number))
                continue
            aside.append((room, number))
            if not node.slots:
                break  # and so has every other
            part = 0 if node.spec.node in avoid else min(count, CHUNK, node.fits(memory))
            if part:
                chosen[number] = part
                count -= part
        for entry in aside:
            heapq.heappush(self.roomiest, entry)
        for number, part in chosen.items():  # every node has its part, and there is more: fill them up
            more = min(count, self.by_number[number].fits(memory) - part)
            chosen[number] += more
            count -= more
        return [(self.by_number[number], part) for number, part in chosen.items()]

    def reserve(self, node: Node, group: Group, indices: m.Ranges, memory: int) -> None:
        """Take room on one of its nodes."""
        node.reserve(group, indices, memory)
        count = ranges.count(indices)
        self.free -= count
        self.held[group[0]] = self.held.get(group[0], 0) + count

    def release(self, node: Node, group: Group, indices: m.Ranges) -> None:
        """Give room back on one of its nodes."""
        freed = node.free(group, indices)
        if freed:
            self.free += freed
            self.held[group[0]] -= freed
            if not self.held[group[0]]:
                del self.held[group[0]]

    def dump(self) -> "DumpedExecutor":
        """Return it as data; what follows from the reservations is left out."""
        nodes = [(node.spec, [(*group, *held) for group, held in node.held.items()]) for node in self.by_number]
        return DumpedExecutor(
            self.name, self.boot, self.isolation, self.start_ms, self.heard_ms, nodes, self.alive, self.busy_until_ms,
            sorted(self.roomiest), self.excused, list(self.blobs),
        )  # fmt: skip

    def check(self) -> None:
        """Assert that no node is over-committed and that every account balances."""
        by_rollout: dict[str, int] = {}
        for node in self.by_number:
            counts = [(ranges.count(held), memory) for held, memory in node.held.values()]
            assert node.slots == node.spec.slots - sum(count for count, _ in counts) >= 0
            assert node.memory == node.spec.memory - sum(count * memory for count, memory in counts) >= 0
            for (rollout, _), (held, _) in node.held.items():
                by_rollout[rollout] = by_rollout.get(rollout, 0) + ranges.count(held)
        assert self.held == by_rollout
        assert self.free == sum(node.slots for node in self.by_number)
        assert sorted(number for _, number in self.roomiest) == list(range(len(self.by_number)))


class DumpedExecutor(msgspec.Struct, frozen=True, array_like=True):
    """An executor in a checkpoint: of each node what it is, and what is held there (rollout, attempt, indices, memory).

    `roomiest` is kept as it is: which of its entries are of an earlier account decides what is chosen next.
    """

    name: str
    boot: str
    isolation: str
    start_ms: float
    heard_ms: int
    nodes: list[tuple[m.NodeSpec, list[tuple[str, int, m.Ranges, int]]]]
    alive: bool
    busy_until_ms: float
    roomiest: list[tuple[int, int]]
    excused: bool
    blobs: list[str]

    def load(self) -> Executor:
        """Return the executor."""
        nodes = {spec.node: Node(spec, number, spec.slots, spec.memory) for number, (spec, _) in enumerate(self.nodes)}
        executor = Executor(self.name, self.boot, self.isolation, self.start_ms, self.heard_ms, nodes)
        for node, (_, held) in zip(executor.by_number, self.nodes, strict=True):
            for rollout, attempt, indices, memory in held:
                executor.reserve(node, (rollout, attempt), indices, memory)
        executor.alive = self.alive
        executor.excused = self.excused
        executor.blobs = dict.fromkeys(self.blobs)
        executor.busy_until_ms = self.busy_until_ms
        executor.roomiest = list(self.roomiest)  # sorted, and so a heap
        return executor


def shares(
    executors: list[Executor], count: int, now_ms: int, snapshot: m.Snapshot | None = None
) -> list[tuple[Executor, int]]:
    """Divide sandboxes over executors with room so that the last is started soonest; advances their start queues.

    Who lacks bytes of the snapshot can begin only when they are fetched, which holds up nobody else there. Cost: count
    times the logarithm of how many executors there are. Ties go to the one with most room, then by order.
    """
    fetch = [executor.fetch_ms(snapshot) if snapshot is not None else 0.0 for executor in executors]
    heap = [
        (max(executor.busy_until_ms, now_ms) + executor.start_ms + fetch[number], -executor.free, number)
        for number, executor in enumerate(executors)
        if executor.free > 0
    ]
    heapq.heapify(heap)
    given: dict[int, int] = {}
    while count and heap:
        start, room, number = heap[0]
        executor = executors[number]
        part = count if len(heap) == 1 else 1
        part = min(part, executor.free - given.get(number, 0))
        given[number] = given.get(number, 0) + part
        count -= part
        last = start + (part - 1) * executor.start_ms
        executor.busy_until_ms = last - fetch[number]
        if executor.free > given[number]:
            heapq.heapreplace(heap, (last + executor.start_ms, room + part, number))
        else:
            heapq.heappop(heap)
    return [(executors[number], part) for number, part in given.items()]
