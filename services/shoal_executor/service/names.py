"""A sandbox's name on its node: `<rollout>-<index>`, with `.<attempt>` behind it from the second attempt on."""

from collections.abc import Iterable

from shoal.machine import ranges
from shoal.wire.messages import Ranges
from shoal_executor.core import Key


def name_of(key: Key, index: int) -> str:
    """Return the name of a group's sandbox."""
    rollout, attempt, _ = key
    return f"{rollout}-{index}.{attempt}" if attempt else f"{rollout}-{index}"


def names_of(key: Key, indices: Iterable[int]) -> dict[str, int]:
    """Return the names of a group's sandboxes, and the index of each."""
    rollout, attempt, _ = key
    end = f".{attempt}" if attempt else ""
    return {f"{rollout}-{index}{end}": index for index in indices}


class Names:
    """The names of those that last started together in a job group, while any of them is here.

    They are needed at the start, the run and the end, mostly of all of them at once: making them each time was a
    twelfth of what the executor does for a sandbox.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, tuple[Ranges, dict[str, int]]] = {}

    def of(self, key: Key, indices: Ranges) -> dict[str, int]:
        """Return the names of a group's sandboxes, and the index of each; not to be changed."""
        kept = self._kept.get(key)
        return kept[1] if kept is not None and kept[0] == indices else names_of(key, ranges.indices(indices))

    def keep(self, key: Key, indices: Ranges, names: dict[str, int]) -> None:
        """Keep the names of these, which start together."""
        self._kept[key] = (indices, names)

    def drop(self, key: Key) -> None:
        """A group is gone."""
        self._kept.pop(key, None)


def parse(name: str) -> tuple[str, int, int]:
    """Return rollout, index and attempt of a name."""
    rollout, _, rest = name.rpartition("-")
    index, _, attempt = rest.partition(".")
    return rollout, int(index), int(attempt or 0)
