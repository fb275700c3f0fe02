"""What a service is to whoever folds its logs without running it: replay, time travel, what-if.

Services stand on this library, which cannot import them; each declares itself as an entry point of `shoal.services`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from shoal.machine.core import Core

ENTRY_POINTS: Final = "shoal.services"


@dataclass(frozen=True, slots=True)
class Table:
    """A part of a state for people."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Service:
    """One service. `stream` and `make` take a cell (0 where there is one partition only), `make` how many there are.

    `state` is what `Core.dump` encodes; `summary` is that for people.
    """

    name: str
    celled: bool
    stream: Callable[[int], str]
    make: Callable[[int, int], Core]
    state: type[msgspec.Struct]
    summary: Callable[[Any], list[Table]]

    def partition(self, cell: int) -> str:
        """Return the name of a cell's partition, as its checkpoints and its dead letters have it."""
        return f"{self.name}.{cell}" if self.celled else self.name

    def decoded(self, dump: bytes) -> msgspec.Struct:
        """Return a dumped state as data. Raises ValueError."""
        return msgspec.msgpack.decode(dump, type=self.state)
