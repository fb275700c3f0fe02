"""Room of other cells: asked for by lines that have none here, and lent as tickets, each good for one sandbox, once.

A line that lacks room asks the next cell, and while it goes on waiting another one every `STEP_MS`. There it waits
among that cell's own rollouts, in the order of that cell (`Rollout.guest`), so nobody gains by asking: what is lent is
accounted there, and what is no longer wanted, or used up, is given back. Every ticket has a number, so that whatever
comes twice changes nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from shoal.machine import ranges
from shoal.wire import messages as m
from shoal_scheduler.core.state import Rollout
from shoal_scheduler.core.waiting import Key, Line

STEP_MS: Final = 250
"""How long a line waits for one cell before it asks another, too."""
MOST: Final = 1024
"""Tickets in one ask."""

Where = tuple[int, int]
"""A cell, and the number of what was asked of it."""


@dataclass(slots=True)
class Ask:
    """What one line asks of one cell. Tickets not named here are not lent yet."""

    cell: int
    number: int
    key: Key
    unit: int
    n: int
    lent: m.Ranges = ()
    used: m.Ranges = ()
    gone: m.Ranges = ()

    @property
    def outstanding(self) -> m.Ranges:
        """The tickets that may come still."""
        known = ranges.union(ranges.union(self.lent, self.used), self.gone)
        return ranges.without(ranges.whole(self.n), known)

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it, nor has to be given back."""
        return not self.lent and not self.used and ranges.count(self.gone) == self.n

    def dump(self) -> "DumpedAsk":
        """Return it as data."""
        return DumpedAsk(self.cell, self.number, self.key, self.unit, self.n, self.lent, self.used, self.gone)


class DumpedAsk(msgspec.Struct, frozen=True, array_like=True):
    """An ask in a checkpoint."""

    cell: int
    number: int
    key: Key
    unit: int
    n: int
    lent: m.Ranges
    used: m.Ranges
    gone: m.Ranges

    def load(self) -> Ask:
        """Return the ask."""
        return Ask(self.cell, self.number, self.key, self.unit, self.n, self.lent, self.used, self.gone)


class Borrowing:
    """What one cell of several has asked of the others. What it says is taken with `say`."""

    def __init__(self, cell: int, cells: int) -> None:
        self.cell = cell
        self.cells = cells
        self.asks: dict[Where, Ask] = {}
        self.numbers: dict[int, int] = {}
        self.asked_ms: dict[Key, int] = {}
        self._by_key: dict[Key, dict[Where, Ask]] = {}
        self._returned: dict[tuple[Where, bool], m.Ranges] = {}
        self._said: list[tuple[int, m.RoomWanted | m.RoomReturned]] = []

    # --- what was lent

    @property
    def some(self) -> bool:
        """Whether there is a ticket to be used."""
        return any(ask.lent for ask in self.asks.values())

    def find(self, key: Key, unit: int) -> Ask | None:
        """Return where so many tickets for a line are."""
        for ask in self._by_key.get(key, {}).values():
            if ranges.count(ask.lent) >= unit:
                return ask
        return None

    def lent(self, message: m.RoomLent) -> None:
        """Take in tickets: those that are news, and that were not given up meanwhile."""
        ask = self.asks.get((message.cell, message.number))
        if ask is not None:
            ask.lent = ranges.union(ask.lent, ranges.intersect(message.tickets, ask.outstanding))

    def use(self, ask: Ask, count: int) -> None:
        """Use tickets."""
        part, ask.lent = ranges.take(ask.lent, count)
        ask.used = ranges.union(ask.used, part)

    def back(self, where: Where, count: int, *, declined: bool = False) -> None:
        """Give back tickets that were used: their sandboxes have ended, or there was no room for them after all."""
        ask = self.asks[where]
        part, ask.used = ranges.take(ask.used, count)
        self._return(ask, part, declined)

    def _return(self, ask: Ask, part: m.Ranges, declined: bool = False) -> None:
        where = (ask.cell, ask.number)
        ask.gone = ranges.union(ask.gone, part)
        known = self._returned.get((where, declined), ())
        self._returned[where, declined] = ranges.union(known, part)
        if ask.over:
            self._forget(ask)

    def _forget(self, ask: Ask) -> None:
        where = (ask.cell, ask.number)
        del self.asks[where]
        mine = self._by_key[ask.key]
        del mine[where]
        if not mine:
            del self._by_key[ask.key]
            self.asked_ms.pop(ask.key, None)

    # --- what is asked

    def settle(self, lacking: Iterable[tuple[Line, Rollout, int]], now: int) -> int | None:
        """Ask for lines that lack room: their first rollout, and how many of theirs wait; give back the rest.

        Returns when to look again.
        """
        if self.cells == 1:
            return None
        again: int | None = None
        wanted: dict[Key, None] = {}
        for line, first, waiting in lacking:
            wanted[line.key] = None
            due = self._ask(line, first, waiting, now)
            if due is not None and (again is None or due < again):
                again = due
        # In the order in which they were asked: that of `_by_key` is another one after a checkpoint was loaded.
        for ask in [ask for ask in self.asks.values() if ask.key not in wanted]:
            self._give_up(ask)
        return again

    def _give_up(self, ask: Ask) -> None:
        """Return whatever of an ask is not in use."""
        part = ranges.union(ask.outstanding, ask.lent)
        ask.lent = ()
        if part:
            self._return(ask, part)

    def _ask(self, line: Line, first: Rollout, waiting: int, now: int) -> int | None:
        """Ask one more cell if it is time for that; returns when it will be."""
        mine, unit = self._by_key.get(line.key, {}), first.unit
        for ask in list(mine.values()):
            if ask.unit != unit:
                self._give_up(ask)
        open_ = {ask.cell: None for ask in self._by_key.get(line.key, {}).values() if ask.outstanding}
        others = [(self.cell + step) % self.cells for step in range(1, self.cells)]
        free = [cell for cell in others if cell not in open_]
        if not free:
            return None
        due = self.asked_ms.get(line.key, now - STEP_MS) + STEP_MS
        if open_ and now < due:
            return due
        # Where there was some before, there may be more.
        served = [ask.cell for ask in self._by_key.get(line.key, {}).values() if ask.used]
        cell = next((each for each in served if each in free), free[0])
        spec = first.request.spec
        n = unit if unit > 1 else min(waiting, MOST)
        asked = m.RolloutSpec(
            spec.template, n, resources=spec.resources, timeout_ms=spec.timeout_ms, priority=spec.priority,
            isolation=line.want.needs.isolation, labels=line.want.needs.labels, min_ready=unit if unit > 1 else 0,
            hedge=False,
        )  # fmt: skip
        number = self.numbers.get(cell, 0) + 1
        self.numbers[cell] = number
        self.asks[cell, number] = ask = Ask(cell, number, line.key, unit, n)
        self._by_key.setdefault(line.key, {})[cell, number] = ask
        self.asked_ms[line.key] = now
        self._said.append((cell, m.RoomWanted(self.cell, number, line.tenant, line.run, asked)))
        return now + STEP_MS if len(free) > 1 else None

    def say(self) -> list[tuple[int, m.RoomWanted | m.RoomReturned]]:
        """Return what is to be said since the last time, and to which cell."""
        said, self._said = self._said, []
        for (where, declined), tickets in self._returned.items():
            said.append((where[0], m.RoomReturned(self.cell, where[1], tickets, declined)))
        self._returned.clear()
        return said

    # ---

    def dump(self) -> tuple[list[DumpedAsk], list[tuple[int, int]], list[tuple[Key, int]]]:
        """Return it as data; all is said."""
        assert not self._said
        assert not self._returned
        return [ask.dump() for ask in self.asks.values()], list(self.numbers.items()), list(self.asked_ms.items())

    def load(self, dumped: tuple[list[DumpedAsk], list[tuple[int, int]], list[tuple[Key, int]]]) -> None:
        """Take over what was dumped."""
        asks, numbers, asked_ms = dumped
        for each in asks:
            ask = each.load()
            self.asks[ask.cell, ask.number] = ask
            self._by_key.setdefault(ask.key, {})[ask.cell, ask.number] = ask
        self.numbers, self.asked_ms = dict(numbers), dict(asked_ms)

    def check(self, abroad: dict[Where, int]) -> None:
        """Assert that each ticket is in one place, and that as many are used as sandboxes are there."""
        for where, ask in self.asks.items():
            parts = (ask.lent, ask.used, ask.gone, ask.outstanding)
            assert sum(map(ranges.count, parts)) == ask.n
            assert not ask.over
            assert ranges.count(ask.used) == abroad.get(where, 0)
        assert all(where in self.asks for where, count in abroad.items() if count)
