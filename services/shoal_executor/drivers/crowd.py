"""Simulated sandboxes that live, by group: those to which nothing of their own happened are one entry together.

Hundreds of thousands come and go in a load test, and most see no more than one command that all of their group see. An
entry for each of them was a quarter of what an executor did for it, most of that waiting for memory.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shoal.machine import ranges
from shoal.wire.messages import CommandResult, Ranges
from shoal_executor.core.names import Names, name_of, parse
from shoal_executor.drivers.tree import Tree

_Place = tuple[str, int]
"""A rollout and an attempt; a name that is of no rollout, and -1."""
_Fresh = tuple[int, str, CommandResult | None]
"""Sandboxes in which at most one command ran: their disk limit, and the command's id and result."""


@dataclass(slots=True)
class Sandbox:
    """One that was used for more."""

    disk: int
    commands: int = 0
    files: Tree | None = None
    results: "dict[str, asyncio.Future[CommandResult] | CommandResult | None]" = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)
    """Commands that nobody wanted any more before they had come to their end."""


class _Group:
    """The live ones of a group: those together are disjoint."""

    __slots__ = ("apart", "together")

    def __init__(self) -> None:
        self.together: dict[Ranges, _Fresh] = {}
        self.apart: dict[int, Sandbox] = {}

    def get(self, index: int) -> Sandbox | None:
        """Return one, from now on apart from the others."""
        sandbox = self.apart.get(index)
        if sandbox is not None:
            return sandbox
        for indices, fresh in self.together.items():
            if ranges.holds(indices, index):
                del self.together[indices]
                if rest := ranges.without(indices, ((index, 1),)):
                    self.together[rest] = fresh
                disk, id, result = fresh
                sandbox = self.apart[index] = Sandbox(disk)
                if result is not None:
                    sandbox.commands, sandbox.results = 1, {id: result}
                return sandbox
        return None

    def ran(self, indices: Ranges, id: str, result: CommandResult) -> bool:
        """The same command ran in each of them, the first of all; returns False, and does nothing, where it is not."""
        parts = [
            (have, fresh, part)
            for have, fresh in self.together.items()
            if not fresh[1] and (part := ranges.intersect(have, indices))
        ]
        if sum(ranges.count(part) for _, _, part in parts) < ranges.count(indices):
            return False
        for have, fresh, part in parts:
            del self.together[have]
            self.together[part] = (fresh[0], id, result)
            if rest := ranges.without(have, part):
                self.together[rest] = fresh
        return True

    def remove(self, indices: Ranges) -> None:
        """Forget these."""
        if self.together.pop(indices, None) is not None:
            return
        self.together = {
            rest: fresh for have, fresh in self.together.items() if (rest := ranges.without(have, indices))
        }
        for index in ranges.indices(indices) if self.apart else ():
            self.apart.pop(index, None)


class Crowd:
    """All of an executor."""

    def __init__(self) -> None:
        self._groups: dict[_Place, _Group] = {}

    def add(self, names: Sequence[str], disk: int) -> None:
        """These live from now on, and nothing has happened to them."""
        for place, indices in _places(names):
            group = self._groups.get(place)
            if group is None:
                group = self._groups[place] = _Group()
            else:
                group.remove(indices)
            group.together[indices] = (disk, "", None)

    def get(self, name: str) -> Sandbox | None:
        """Return one that something happens to, if it lives."""
        place, index = _place(name)
        group = self._groups.get(place)
        return None if group is None else group.get(index)

    def ran(self, names: Sequence[str], id: str, result: CommandResult) -> bool:
        """The same command ran in each of them, the first of all; returns False, and does nothing, where it is not."""
        if not isinstance(names, Names):
            return False
        group = self._groups.get((names.rollout, names.attempt))
        return group is not None and group.ran(names.indices, id, result)

    def remove(self, names: Sequence[str]) -> None:
        """Forget these; names that are not live are ignored."""
        for place, indices in _places(names):
            group = self._groups.get(place)
            if group is not None:
                group.remove(indices)
                if not group.together and not group.apart:
                    del self._groups[place]

    def names(self) -> list[str]:
        """Return the names of all."""
        return [
            name if attempt < 0 else name_of((name, attempt, ""), index)
            for (name, attempt), group in self._groups.items()
            for index in (*(each for indices in group.together for each in ranges.indices(indices)), *group.apart)
        ]


def _places(names: Sequence[str]) -> Iterator[tuple[_Place, Ranges]]:
    if isinstance(names, Names):
        if names.indices:
            yield (names.rollout, names.attempt), names.indices
        return
    for name in names:
        place, index = _place(name)
        yield place, ((index, 1),)


def _place(name: str) -> tuple[_Place, int]:
    """Return where a sandbox is; who calls a driver may call its sandboxes anything."""
    try:
        rollout, index, attempt = parse(name)
    except ValueError:
        return (name, -1), 0
    if index >= 0 and attempt >= 0 and name_of((rollout, attempt, ""), index) == name:
        return (rollout, attempt), index
    return (name, -1), 0
