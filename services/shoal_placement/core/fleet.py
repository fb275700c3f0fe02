"""All executors of a cell, found by what they have room for: the cost of a choice grows with what is chosen.

For each kind of sandbox that is asked for, an index holds the executors with room for one. They are in heaps by how
long each takes for a start (in steps of a quarter), each heap by when its executors will have started what they have
been given. An executor leaves an index when it is full for that kind, and comes back when it has gained room.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Final, NamedTuple

from shoal.machine import ranges
from shoal.wire import messages as m
from shoal_placement.core.nodes import Demand, Executor, Group, could_hold

_INDEXES: Final = 64
"""Kinds of sandboxes that are kept track of; the least recently asked for are forgotten."""
_AWAY_MS: Final = 3_600_000
"""How long an executor that left may take to come back before what only its nodes could hold is called impossible."""


def pace_class(start_ms: float) -> int:
    """Return the step of a quarter of a power of two in which a duration is."""
    number = max(int(start_ms * 1024), 1)
    bits = number.bit_length()
    return bits * 4 + ((number << 2 >> (bits - 1)) & 3)


class Index:
    """Executors with room for one kind of sandbox; with a snapshot, those that have all its bytes at hand."""

    def __init__(self, demand: Demand, snapshot: m.Snapshot | None) -> None:
        self.demand = demand
        self.snapshot = snapshot
        self._inside: dict[int, Executor] = {}
        self._heaps: dict[int, list[tuple[float, int]]] = {}

    def belongs(self, executor: Executor) -> bool:
        """Return whether an executor should be here."""
        return (
            executor.alive
            and self.demand.isolation in ("", executor.isolation)
            and (self.snapshot is None or not executor.fetch_ms(self.snapshot))
            and executor.room(self.demand) > 0
        )

    def enter(self, executor: Executor) -> None:
        """Take in an executor that belongs here, or whose start queue is shorter, or whose pace is another now."""
        self._inside[executor.order] = executor
        heap = self._heaps.setdefault(pace_class(executor.start_ms), [])
        heapq.heappush(heap, (executor.busy_until_ms, executor.order))
        if len(heap) > 4 * len(self._inside) + 64:
            self._rebuild()

    def leave(self, executor: Executor) -> None:
        """Let go of an executor."""
        self._inside.pop(executor.order, None)

    def any(self) -> bool:
        """Return whether there is room anywhere."""
        return next(self.firsts({}), None) is not None

    def has(self, executor: Executor) -> bool:
        """Return whether an executor is here."""
        return executor.order in self._inside

    def _rebuild(self) -> None:
        self._heaps = {}
        for executor in self._inside.values():
            heap = self._heaps.setdefault(pace_class(executor.start_ms), [])
            heap.append((executor.busy_until_ms, executor.order))
        for heap in self._heaps.values():
            heapq.heapify(heap)

    def firsts(self, aside: dict[int, None]) -> Iterator[Executor]:
        """Yield of each pace the executor that is done soonest; of those put aside, none."""
        for pace, heap in self._heaps.items():
            put_back: list[tuple[float, int]] = []
            while heap:
                busy, order = heap[0]
                executor = self._inside.get(order)
                if executor is None or pace_class(executor.start_ms) != pace:
                    heapq.heappop(heap)
                elif executor.busy_until_ms != busy:
                    heapq.heapreplace(heap, (executor.busy_until_ms, order))
                elif order in aside:
                    put_back.append(heapq.heappop(heap))
                elif executor.room(self.demand) <= 0:
                    heapq.heappop(heap)
                    del self._inside[order]
                else:
                    yield executor
                    break
            for entry in put_back:
                heapq.heappush(heap, entry)


class Choice(NamedTuple):
    """An executor that could start a sandbox, when it would be done, and how much of that is fetching bytes."""

    done_ms: float
    order: int
    executor: Executor
    fetch_ms: float


class Away(NamedTuple):
    """The nodes of an executor that left, and until when it is counted on to come back (broker's time, ms)."""

    isolation: str
    specs: tuple[m.NodeSpec, ...]
    until_ms: int


class Fleet:
    """The executors by name. Whoever changes one says so here, so that the indexes stay right."""

    def __init__(self) -> None:
        self.executors: dict[str, Executor] = {}
        self.away: dict[str, Away] = {}
        self.joined = 0
        self._indexes: dict[tuple[Demand, str], Index] = {}
        self._values: dict[str, list[str]] = {}

    def add(self, executor: Executor) -> None:
        """Take in an executor that joined."""
        self.executors[executor.name] = executor
        self.away.pop(executor.name, None)
        self._values.clear()
        self.gained(executor)

    def remove(self, executor: Executor) -> None:
        """Forget an executor."""
        del self.executors[executor.name]
        self._values.clear()
        for index in self._indexes.values():
            index.leave(executor)

    def expect(self, executor: Executor, now: int) -> None:
        """Remember how large the nodes of an executor that left were: most that leave are started anew."""
        self.away[executor.name] = Away(
            executor.isolation, tuple(node.spec for node in executor.by_number), now + _AWAY_MS
        )

    def give_up(self, now: int) -> None:
        """Count no longer on those that left too long ago."""
        self.away = {name: away for name, away in self.away.items() if now < away.until_ms}

    def gained(self, executor: Executor) -> None:
        """Note that an executor has room, bytes or life that it had not."""
        for index in self._indexes.values():
            if not index.has(executor) and index.belongs(executor):
                index.enter(executor)

    def lost(self, executor: Executor) -> None:
        """Note that an executor has gone silent, or has not all bytes any more that it had."""
        for index in self._indexes.values():
            if index.has(executor) and not index.belongs(executor):
                index.leave(executor)

    def sooner(self, executor: Executor) -> None:
        """Note that an executor's start queue may be shorter than thought, or its pace another."""
        for index in self._indexes.values():
            if index.has(executor):
                index.enter(executor)

    def index(self, demand: Demand, snapshot: m.Snapshot | None = None) -> Index:
        """Return the index of a kind of sandbox; the first time, that is a look at every executor."""
        key = (demand, snapshot.digest if snapshot else "")
        found = self._indexes.pop(key, None)
        if found is None:
            found = Index(demand, snapshot)
            for executor in self.executors.values():
                if found.belongs(executor):
                    found.enter(executor)
            if len(self._indexes) >= _INDEXES:
                del self._indexes[next(iter(self._indexes))]
        self._indexes[key] = found
        return found

    def choices(self, demand: Demand, snapshot: m.Snapshot, now: int, aside: dict[int, None]) -> list[Choice]:
        """Return who could start a sandbox soonest: the best of those that have its bytes, and of all others."""
        found = [
            Choice(max(each.busy_until_ms, now) + each.start_ms + fetch, each.order, each, fetch)
            for each in self.index(demand).firsts(aside)
            for fetch in (each.fetch_ms(snapshot) if snapshot.blobs else 0.0,)
        ]
        if snapshot.blobs:
            found += [
                Choice(max(each.busy_until_ms, now) + each.start_ms, each.order, each, 0.0)
                for each in self.index(demand, snapshot).firsts(aside)
            ]
        return sorted(found)

    def values(self, label: str) -> list[str]:
        """Return the values that a label has on any node."""
        found = self._values.get(label)
        if found is None:
            nodes = [node for executor in self.executors.values() for node in executor.by_number]
            values = {value: None for node in nodes for name, value in node.spec.labels if name == label}
            found = self._values[label] = sorted(values)
        return found

    def spread(self, names: Iterable[str], groups: Sequence[Group], label: str) -> dict[str, int]:
        """Return how many sandboxes of a rollout these executors hold, those that live, by a label of their nodes."""
        found: dict[str, int] = {}
        for executor in (self.executors.get(name) for name in names):
            for node in executor.by_number if executor is not None and executor.alive else ():
                count = sum(ranges.count(node.held[group].indices) for group in groups if group in node.held)
                for name, value in node.spec.labels if count else ():
                    if name == label:
                        found[value] = found.get(value, 0) + count
        return found

    def _able(self, demand: Demand) -> Iterator[m.NodeSpec]:
        """Yield the nodes that would hold one such sandbox, were they empty; also what is silent, or just left."""
        here = ((each.isolation, [node.spec for node in each.by_number]) for each in self.executors.values())
        away = ((each.isolation, each.specs) for each in self.away.values())
        for isolation, specs in chain(here, away):
            if demand.isolation in ("", isolation):
                yield from (spec for spec in specs if could_hold(spec, demand))

    def impossible(self, demand: Demand) -> str:
        """Return what of a kind of sandbox no known node could hold, were it empty; empty where one could.

        Nothing is impossible while no node at all would do: one may join. Nodes that are lost for the moment would do.
        """
        if next(self._able(demand), None) is not None:
            return ""
        for what, unit, less, of in (
            (f"{demand.memory}", "bytes of memory", demand._replace(memory=0), attrgetter("memory")),
            (f"{demand.cpu_milli}", "thousandths of a cpu", demand._replace(cpu_milli=0), attrgetter("cpu_milli")),
            (f"{demand.disk}", "bytes of disk", demand._replace(disk=0), attrgetter("disk")),
        ):
            if have := [of(spec) for spec in self._able(less)]:
                return f"it asks for {what} {unit}, and the largest node that would do has {max(have)}"
        return ""

    def check(self) -> None:
        """Assert that no node is over-committed, and that no index overlooks anybody."""
        for executor in self.executors.values():
            executor.check()
            for index in self._indexes.values():
                assert index.has(executor) or not index.belongs(executor)
