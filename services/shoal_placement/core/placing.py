"""One request's sandboxes, put on nodes: reserved as they are chosen, and given back if they have to be together."""

import math

from shoal.machine import ranges
from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m
from shoal_placement.core.fleet import Fleet
from shoal_placement.core.nodes import Demand, Executor, Group, Node, demand_of
from shoal_placement.core.policies import THROTTLE_MS, Policy
from shoal_placement.core.records import Record


class Placing:
    """See the module. `rest` is what found no room, `again_ms` when a start queue will be short enough for it."""

    def __init__(self, fleet: Fleet, policy: Policy, request: m.PlaceRequested, record: Record, now: int) -> None:
        self._fleet = fleet
        self._policy = policy
        self._request = request
        self._there: dict[str, int] = {}  # its sandboxes, by the value of the label that they are spread over
        self._now = now
        self._group: Group = (request.rollout, request.attempt)
        self._parts: dict[tuple[int, int], tuple[Executor, Node, m.Ranges]] = {}
        self._queues: dict[int, tuple[Executor, float]] = {}
        self._throttle_ms = math.inf if request.together else THROTTLE_MS
        self.again_ms: int | None = None
        self.rest = request.indices
        demand = demand_of(request.spec)
        if request.spec.spread_over:
            groups = [(request.rollout, attempt) for attempt, _ in record.seen]
            self._there = fleet.spread(record.where, groups, request.spec.spread_over)
            self._spread(demand, request.spec.spread_over)
        else:
            self._anywhere(demand, ranges.count(self.rest))
        if self.rest and request.together:
            self._undo()

    @property
    def parts(self) -> list[tuple[Executor, Node, m.Ranges]]:
        """What is placed where."""
        return list(self._parts.values())

    def _anywhere(self, demand: Demand, count: int) -> int:
        """Place up to `count` of the rest; returns how many.

        A node to be avoided is better than none, but not for a hedge: that is being started there already.
        """
        left, avoided = count, self._request.avoid
        hedge = self._request.attempt >= HEDGE
        for avoid in (avoided, ()) if avoided and not hedge else (avoided,):
            left -= self._fill(demand, left, avoid)
        return count - left

    def _fill(self, demand: Demand, count: int, avoid: tuple[str, ...]) -> int:
        request, placed = self._request, 0
        aside: dict[int, None] = {}
        while placed < count:
            name = f"{request.rollout}:{request.attempt}"
            share = self._policy(
                self._fleet, demand, request.snapshot, count - placed, self._now, self._throttle_ms, aside, name
            )
            if not isinstance(share, tuple):
                self.again_ms = share
                break
            executor, part = share
            self._queues.setdefault(executor.order, (executor, executor.busy_until_ms))
            taken = 0
            for node, number in executor.take(part, demand, avoid):
                self._reserve(executor, node, number, demand)
                taken += number
            if taken:
                executor.busy_until_ms = max(executor.busy_until_ms, self._now) + taken * executor.start_ms
            if not taken:
                aside[executor.order] = None  # what slots it has are too small, or are to be avoided
            placed += taken
        return placed

    def _reserve(self, executor: Executor, node: Node, count: int, demand: Demand) -> None:
        part, self.rest = ranges.take(self.rest, count)
        executor.reserve(node, self._group, part, demand)
        key = (executor.order, node.number)
        known = self._parts.get(key)
        self._parts[key] = (executor, node, ranges.union(known[2], part) if known else part)
        label = self._request.spec.spread_over
        for name, value in node.spec.labels:
            if name == label:
                self._there[value] = self._there.get(value, 0) + count

    def _spread(self, demand: Demand, label: str) -> None:
        """Place as many on the nodes of each value of a label, as far as there is room."""
        spread = self._there
        open_ = [value for value in self._fleet.values(label) if self._fleet.index(_of(demand, label, value)).any()]
        while self.rest and open_:
            open_.sort(key=lambda value: (spread.get(value, 0), value))
            least = spread.get(open_[0], 0)
            level = next((spread.get(value, 0) for value in open_ if spread.get(value, 0) > least), None)
            lowest = [value for value in open_ if spread.get(value, 0) == least]
            each = -(-ranges.count(self.rest) // len(lowest))
            part = each if level is None else min(each, level - least)
            for value in lowest:
                wanted = min(part, ranges.count(self.rest))
                if wanted and self._anywhere(_of(demand, label, value), wanted) < wanted:
                    open_.remove(value)
        if self.rest:  # nodes without the label are better than none
            self._anywhere(demand, ranges.count(self.rest))

    def _undo(self) -> None:
        for executor, node, part in self._parts.values():
            executor.release(node, self._group, part)
        for executor, busy_until_ms in self._queues.values():
            executor.busy_until_ms = busy_until_ms
            self._fleet.sooner(executor)
            self._fleet.gained(executor)
        self._parts.clear()
        self.rest = self._request.indices


def _of(demand: Demand, label: str, value: str) -> Demand:
    return demand._replace(labels=(*demand.labels, (label, value)))
