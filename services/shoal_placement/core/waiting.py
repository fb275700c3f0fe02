"""Requests that no node has room for yet, in the order in which they came.

In a full fleet thousands wait, and every slot that comes free is offered to them. So they stand in lines of those that
want the same, of which only the first is looked at, and are found by their rollout when that gives them up.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from shoal.wire import messages as m
from shoal_placement.core.expiries import Expiries
from shoal_placement.core.nodes import Demand, demand_of

Waits = tuple[m.PlaceRequested, int]
"""A request, and since when it waits (broker's time, ms)."""


class Waiting:
    """See the module. A number says which request came before which."""

    def __init__(self, known: Iterable[Waits] = ()) -> None:
        self._last = 0
        self._lines: dict[Demand, OrderedDict[int, Waits]] = {}
        self._numbers: dict[str, dict[int, Demand]] = {}  # by rollout
        self._until: dict[str, int] = {}  # deadlines, by rollout
        self._ending = Expiries(self._until.get)
        for request, since_ms in known:
            self.add(request, since_ms)

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Waits]:
        """Yield all of them in their order."""
        for _, each in heapq.merge(*(line.items() for line in self._lines.values()), key=lambda entry: entry[0]):
            yield each

    def add(self, request: m.PlaceRequested, since_ms: int) -> None:
        """Have a request wait behind all others."""
        self._last += 1
        demand = demand_of(request.spec)
        self._lines.setdefault(demand, OrderedDict())[self._last] = (request, since_ms)
        self._numbers.setdefault(request.rollout, {})[self._last] = demand
        if request.rollout not in self._until:
            self._until[request.rollout] = request.deadline_ms
            self._ending.set(request.rollout, request.deadline_ms)

    def first_deadline(self) -> int | None:
        """Return when the first of the rollouts that wait is over (broker's time, ms)."""
        return self._ending.first()

    def take_ending(self, by_ms: int) -> list[m.PlaceRequested]:
        """Take out and return what waits of rollouts that are over by then, the first of them first."""
        found = [each for rollout in self._ending.due(by_ms) for each in self.of(rollout)]
        for number, request in found:
            self.put(number, request, None)
        return [request for _, request in found]

    def of(self, rollout: str) -> list[tuple[int, m.PlaceRequested]]:
        """Return a rollout's requests in their order, with their numbers."""
        numbers = self._numbers.get(rollout, {})
        return [(number, self._lines[demand][number][0]) for number, demand in numbers.items()]

    def put(self, number: int, was: m.PlaceRequested, left: m.PlaceRequested | None) -> None:
        """Have what is left of a request wait in its place; None: nothing is."""
        numbers = self._numbers[was.rollout]
        demand = numbers[number]
        line = self._lines[demand]
        if left is not None:
            line[number] = (left, line[number][1])
            return
        del line[number], numbers[number]
        if not line:
            del self._lines[demand]
        if not numbers:
            del self._numbers[was.rollout], self._until[was.rollout]

    def drop(self, rollout: str) -> None:
        """Forget what a rollout wanted."""
        for number, request in self.of(rollout):
            self.put(number, request, None)

    def heads(self) -> "Heads":
        """Return the first of each line, to go through them in their order."""
        return Heads(self._lines)


class Heads:
    """The first of each line that is still gone through; the oldest of them is `first`."""

    def __init__(self, lines: dict[Demand, OrderedDict[int, Waits]]) -> None:
        self._lines = lines
        self._heap = [(next(iter(line)), demand) for demand, line in lines.items()]
        heapq.heapify(self._heap)

    def __bool__(self) -> bool:
        return bool(self._heap)

    @property
    def first(self) -> tuple[int, m.PlaceRequested, int]:
        """The oldest: its number, the request, and since when it waits."""
        number, demand = self._heap[0]
        return (number, *self._lines[demand][number])

    def next(self) -> None:
        """Go on with the one behind it in its line, now that it waits no longer."""
        _, demand = self._heap[0]
        line = self._lines.get(demand)
        if line:
            heapq.heapreplace(self._heap, (next(iter(line)), demand))
        else:
            heapq.heappop(self._heap)

    def leave(self) -> None:
        """Look at nobody else of its line."""
        heapq.heappop(self._heap)
