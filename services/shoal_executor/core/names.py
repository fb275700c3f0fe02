"""A sandbox's name on its node: `<rollout>-<index>`, with `.<attempt>` behind it from the second attempt on."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from shoal.machine import ranges
from shoal.wire.messages import Ranges
from shoal_executor.core.effects import Key


def name_of(key: Key, index: int) -> str:
    """Return the name of a group's sandbox."""
    rollout, attempt, _ = key
    return f"{rollout}-{index}.{attempt}" if attempt else f"{rollout}-{index}"


def parse(name: str) -> tuple[str, int, int]:
    """Return rollout, index and attempt of a name. Raises ValueError when it is none of ours."""
    rollout, _, rest = name.rpartition("-")
    index, _, attempt = rest.partition(".")
    return rollout, int(index), int(attempt or 0)


class Names(Sequence[str]):
    """The names of a group's sandboxes, in order; none is spelled before somebody looks at it.

    They are needed at the start, the run and the end. Who keeps sandboxes by group, as the simulation does, never looks
    at one, and to spell them was a tenth of what an executor did for it.
    """

    __slots__ = ("_spelled", "attempt", "indices", "rollout")

    def __init__(self, key: Key, indices: Ranges) -> None:
        self.rollout, self.attempt, _ = key
        self.indices = indices
        self._spelled: tuple[str, ...] | None = None

    def _all(self) -> tuple[str, ...]:
        if self._spelled is None:
            stem, end = f"{self.rollout}-", f".{self.attempt}" if self.attempt else ""
            self._spelled = tuple([f"{stem}{index}{end}" for index in ranges.indices(self.indices)])
        return self._spelled

    def __len__(self) -> int:
        return ranges.count(self.indices)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[str, ...]: ...

    def __getitem__(self, at: int | slice) -> str | tuple[str, ...]:
        return self._all()[at]


def indices_of(names: Iterable[str]) -> Ranges:
    """Return the indices in names of one group."""
    return ranges.collect([parse(name)[1] for name in names])


def left_of(indices: Ranges, told: Ranges) -> Ranges:
    """Return those of these that were not told of. Raises ValueError where others were."""
    rest = ranges.without(indices, told)
    if ranges.count(indices) - ranges.count(rest) != ranges.count(told):
        raise ValueError(f"told again, or never asked for: {ranges.without(told, indices) or told}")
    return rest
