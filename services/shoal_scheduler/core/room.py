"""How much room a cell has for which sandboxes, as its scheduler knows it: what all nodes have, less what it gave out.

The scheduler knows the sum and not the nodes, so this is an upper bound: what does not fit a single node after all,
placement gives back. A rollout that needs an isolation or labels has only the pools (`m.Pool`) that offer them; what
may run anywhere may be in those, too, so their room is at most what is left of the whole.
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from shoal.wire import messages as m
from shoal.wire.quantities import format_bytes

PLENTY: Final = 10**9
"""More sandboxes than there is room for anywhere."""

Amounts = tuple[int, int, int, int]
"""slots, memory, cpu, disk"""


class Needs(NamedTuple):
    """Which nodes: their isolation (empty: any) and labels."""

    isolation: str
    labels: tuple[tuple[str, str], ...]

    def met_by(self, pool: m.Pool) -> bool:
        """Return whether these nodes will do."""
        return self.isolation in ("", pool.isolation) and all(label in pool.labels for label in self.labels)


class Want(NamedTuple):
    """What one sandbox takes, and where it can be."""

    needs: Needs
    memory: int
    cpu_milli: int
    disk: int

    @property
    def amounts(self) -> Amounts:
        """What one sandbox takes."""
        return (1, self.memory, self.cpu_milli, self.disk)

    def text(self, count: int) -> str:
        """Return it for people: `120 slots of 2 GiB on nodes with gvisor`."""
        where = [self.needs.isolation] if self.needs.isolation else []
        where += [f"{name}={value}" for name, value in self.needs.labels]
        on = f" on nodes with {', '.join(where)}" if where else ""
        return f"{count} slot{'s' if count != 1 else ''} of {format_bytes(self.memory)}{on}"


class Rooms:
    """See the module. `given` is what is in flight, by what it needs."""

    def __init__(self) -> None:
        self.capacity = m.CellCapacity(0, 0, ())
        self.total: Amounts = (0, 0, 0, 0)  # 0: not counted
        self._given: dict[Needs, list[int]] = {}
        self._offers: dict[Needs, tuple[m.Pool, ...]] = {}
        self._sums: dict[Needs, list[int]] = {}
        self._drained: dict[Needs, list[int]] = {}
        self._largest: dict[Needs, list[int]] = {}

    def set(self, capacity: m.CellCapacity) -> None:
        """Take over what there is. One that says only how many slots is of nodes that count nothing else."""
        if not capacity.pools and capacity.slots:
            isolations = capacity.isolations or ("",)
            each, rest = divmod(capacity.slots, len(isolations))
            pools = tuple(
                m.Pool(isolation, (), capacity.nodes, m.Room(each + (rest if not number else 0)), m.Room(each + rest))
                for number, isolation in enumerate(isolations)
            )
            capacity = m.CellCapacity(capacity.slots, capacity.nodes, capacity.isolations, pools)
        self.capacity = capacity
        self._offers.clear()
        self._sums.clear()
        self._drained.clear()
        self._largest.clear()
        counted = _sum(self.offers(_ANYWHERE))
        self.total = (counted[0], counted[1], counted[2], counted[3])

    def offers(self, needs: Needs) -> tuple[m.Pool, ...]:
        """Return the pools that would do. One without nodes is what is held on drained ones, and is no offer."""
        found = self._offers.get(needs)
        if found is None:
            pools = self.capacity.pools
            found = self._offers[needs] = tuple(pool for pool in pools if pool.nodes and needs.met_by(pool))
        return found

    def _held(self, needs: Needs) -> list[int]:
        """Return what is held on drained nodes that would do: it counts as given, and takes no room of these."""
        found = self._drained.get(needs)
        if found is None:
            rooms = [pool.total for pool in self.capacity.pools if not pool.nodes and needs.met_by(pool)]
            found = self._drained[needs] = [sum(column) for column in _columns(rooms)]
        return found

    def overlap(self, one: Needs, other: Needs) -> bool:
        """Return whether some nodes would do for both."""
        mine = self.offers(one)
        return any(pool in mine for pool in self.offers(other))

    def fits(self, want: Want) -> int:
        """Return for how many more sandboxes there is room."""
        return min(self._fits(want, _ANYWHERE), self._fits(want, want.needs))

    def holds(self, want: Want) -> int:
        """Return for how many sandboxes there would be room, were there no others."""
        return self._fits(want, want.needs, empty=True)

    def too_large(self, want: Want) -> str:
        """Return what of one sandbox no node could hold, were it empty, for people; empty where one may."""
        largest = self._largest.get(want.needs)
        if largest is None:
            rooms = [pool.largest for pool in self.offers(want.needs)]
            largest = self._largest[want.needs] = [max(each, default=0) if all(each) else 0 for each in _columns(rooms)]
        for amount, most, form in zip(want.amounts, largest, _FORMS, strict=True):
            if amount > most > 0:
                return f"each takes {form(amount)}, and the largest node has {form(most)}"
        return ""

    def _fits(self, want: Want, needs: Needs, *, empty: bool = False) -> int:
        offers = self.offers(needs)
        if not offers:
            return 0
        total = self._sums.get(needs)
        if total is None:
            total = self._sums[needs] = _sum(offers)
        given = [0, 0, 0, 0] if empty else self._given_within(needs, offers)
        if not empty and any(held := self._held(needs)):
            given = [max(taken - there, 0) for taken, there in zip(given, held, strict=True)]
        most = total[0] - given[0]
        for number, amount in enumerate(want.amounts[1:], 1):
            if total[number] and amount:
                most = min(most, (total[number] - given[number]) // amount)
        return max(most, 0)

    def _given_within(self, needs: Needs, offers: tuple[m.Pool, ...]) -> list[int]:
        within = [0, 0, 0, 0]
        for other, amounts in self._given.items():
            if needs == _ANYWHERE or all(pool in offers for pool in self.offers(other)):
                for number, amount in enumerate(amounts):
                    within[number] += amount
        return within

    def give(self, want: Want, count: int) -> None:
        """Note that so many more sandboxes are in flight; fewer, where count is negative."""
        given = self._given.setdefault(want.needs, [0, 0, 0, 0])
        for number, amount in enumerate(want.amounts):
            given[number] += amount * count
        if not given[0]:
            assert not any(given)
            del self._given[want.needs]

    @property
    def given(self) -> int:
        """How many sandboxes are in flight."""
        return sum(amounts[0] for amounts in self._given.values())


_ANYWHERE: Final = Needs("", ())
_FORMS: Final[tuple[Callable[[int], str], ...]] = (
    "{} slots".format,
    lambda memory: f"{format_bytes(memory)} of memory",
    lambda cpu_milli: f"{cpu_milli / 1000:g} cpus",
    lambda disk: f"{format_bytes(disk)} of disk",
)


def _sum(pools: Iterable[m.Pool]) -> list[int]:
    """Return what pools have together; 0 for what some of them do not count."""
    return [sum(column) if all(column) else 0 for column in _columns([pool.total for pool in pools])]


def _columns(rooms: list[m.Room]) -> tuple[list[int], ...]:
    return (
        [room.slots for room in rooms], [room.memory for room in rooms],
        [room.cpu_milli for room in rooms], [room.disk for room in rooms],
    )  # fmt: skip
