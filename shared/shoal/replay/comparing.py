"""Two states, or two messages, beside each other: which parts differ."""

from collections.abc import Iterator
from typing import Any, Final

_NAMES: Final = ("rollout", "name", "executor", "node", "tenant", "digest")


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of plain data with their paths; entries of lists go by their names where they have any."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from flat(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        names = [_name(part) for part in value]
        named = None not in names and len(set(names)) == len(names)
        for number, part in enumerate(value):
            yield from flat(part, f"{path}[{names[number] if named else number}]")
    else:
        yield path, value


def _name(part: Any) -> str | None:
    if isinstance(part, dict):
        inner = part.get("request", part)
        for key in _NAMES:
            if isinstance(inner, dict) and isinstance(inner.get(key), str):
                return str(inner[key])
    if isinstance(part, list) and len(part) > 1 and isinstance(part[0], str):
        return part[0]
    return None


def differences(before: Any, after: Any) -> list[tuple[str, Any, Any]]:
    """Return path, what it was and what it is, of all leaves that differ; None where there is none."""
    one, other = dict(flat(before)), dict(flat(after))
    return [
        (path, one.get(path), other.get(path)) for path in {**one, **other} if one.get(path) != other.get(path)
    ]  # fmt: skip
