"""Index ranges: sets of a rollout's indices as sorted `(first, count)` pairs, for messages and compact states."""

from collections.abc import Iterable, Iterator

from shoal.wire.messages import Ranges


def whole(n: int) -> Ranges:
    """Return all indices of a rollout of n."""
    return ((0, n),) if n else ()


def count(ranges: Ranges) -> int:
    """Return how many indices the ranges hold."""
    return sum(length for _, length in ranges)


def indices(ranges: Ranges) -> Iterator[int]:
    """Yield every index, ascending."""
    for first, length in ranges:
        yield from range(first, first + length)


def collect(numbers: Iterable[int]) -> Ranges:
    """Return the ranges of these indices, which may come in any order and more than once."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][0] + found[-1][1] == number:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return tuple(found)


def take(ranges: Ranges, limit: int) -> tuple[Ranges, Ranges]:
    """Split off the first `limit` indices; returns those and the rest."""
    taken: list[tuple[int, int]] = []
    rest: list[tuple[int, int]] = []
    for first, length in ranges:
        part = min(length, limit)
        if part > 0:
            taken.append((first, part))
            limit -= part
        if part < length:
            rest.append((first + max(part, 0), length - max(part, 0)))
    return tuple(taken), tuple(rest)


def without(ranges: Ranges, removed: Ranges) -> Ranges:
    """Return the indices of `ranges` that are not in `removed`."""
    if not removed:
        return ranges
    gone = set(indices(removed))
    return collect(number for number in indices(ranges) if number not in gone)


def intersect(ranges: Ranges, other: Ranges) -> Ranges:
    """Return the indices that both hold."""
    kept = set(indices(other))
    return collect(number for number in indices(ranges) if number in kept)


def valid(ranges: Ranges, n: int) -> bool:
    """Return whether the ranges are sorted, disjoint, not empty and within a rollout of n."""
    end = 0
    for first, length in ranges:
        if first < end or length <= 0:
            return False
        end = first + length
    return end <= n
