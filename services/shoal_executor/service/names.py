"""A sandbox's name on its node: `<rollout>-<index>`, with `.<attempt>` behind it from the second attempt on."""

from collections.abc import Iterable

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


def parse(name: str) -> tuple[str, int, int]:
    """Return rollout, index and attempt of a name."""
    rollout, _, rest = name.rpartition("-")
    index, _, attempt = rest.partition(".")
    return rollout, int(index), int(attempt or 0)
