"""A sandbox's name on its node: `<rollout>-<index>`, with `.<attempt>` behind it from the second attempt on."""

from shoal_executor.core import Key


def name_of(key: Key, index: int) -> str:
    """Return the name of a group's sandbox."""
    rollout, attempt, _ = key
    return f"{rollout}-{index}.{attempt}" if attempt else f"{rollout}-{index}"


def parse(name: str) -> tuple[str, int, int]:
    """Return rollout, index and attempt of a name."""
    rollout, _, rest = name.rpartition("-")
    index, _, attempt = rest.partition(".")
    return rollout, int(index), int(attempt or 0)
