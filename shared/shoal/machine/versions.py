"""States of earlier versions, brought to this one: a log may have no beginning any more to fold them from again."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

Upgrade = Callable[[Any], Any]
"""Makes a state of one version what the next one would have written: of plain values, as MessagePack has them.

A pure function, which says nothing of this program's own types: those are of the newest version, and change. What the
earlier version did not know is what costs least where it is wrong.
"""


class UnknownVersionError(ValueError):
    """A state is of a version that this program cannot read; the text says which it can."""


def readable(to: int, upgrades: Mapping[int, Upgrade]) -> range:
    """Return the versions of which a state can be brought to version `to`, that one included."""
    first = to
    while first - 1 in upgrades:
        first -= 1
    return range(first, to + 1)


def upgraded(state: bytes, version: int, to: int, upgrades: Mapping[int, Upgrade]) -> bytes:
    """Return a state of `version` as one of `to`. `upgrades`: by the version that each begins with.

    Raises UnknownVersionError, and ValueError for bytes that are no such state.
    """
    first = readable(to, upgrades)[0]
    if not first <= version <= to:
        reads = f"{first} to {to}" if first < to else f"{to}"
        raise UnknownVersionError(f"its state is of version {version}, and this program reads {reads}")
    if version == to:
        return state
    value = msgspec.msgpack.decode(state)
    try:
        for each in range(version, to):
            value = upgrades[each](value)
    except (LookupError, TypeError) as error:
        raise ValueError(f"it is no state of version {version}: {error!r}") from error
    return msgspec.msgpack.encode(value)
