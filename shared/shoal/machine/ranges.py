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


def holds(ranges: Ranges, index: int) -> bool:
    """Return whether an index is among them."""
    return any(first <= index < first + length for first, length in ranges)


def collect(numbers: Iterable[int]) -> Ranges:
    """Return the ranges of these indices, which may come in any order and more than once."""
    known = set(numbers)
    if not known:
        return ()
    least = min(known)
    if max(known) - least + 1 == len(known):  # as they come most of the time
        return ((least, len(known)),)
    found: list[tuple[int, int]] = []
    for number in sorted(known):
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


def union(ranges: Ranges, other: Ranges) -> Ranges:
    """Return the indices that either holds; cost grows with the pairs, not with the indices."""
    if not ranges or not other:
        return ranges or other
    found: list[tuple[int, int]] = []
    for first, length in sorted((*ranges, *other)):
        if found and first <= found[-1][0] + found[-1][1]:
            begin, known = found[-1]
            found[-1] = (begin, max(known, first + length - begin))
        else:
            found.append((first, length))
    return tuple(found)


def without(ranges: Ranges, removed: Ranges) -> Ranges:
    """Return the indices of `ranges` that are not in `removed`; cost grows with the pairs."""
    if not removed or not ranges:
        return ranges
    left: list[tuple[int, int]] = []
    at = 0
    for first, length in ranges:
        end = first + length
        while at < len(removed) and removed[at][0] + removed[at][1] <= first:
            at += 1
        look = at
        while look < len(removed) and removed[look][0] < end:
            begin, stop = removed[look][0], removed[look][0] + removed[look][1]
            if begin > first:
                left.append((first, begin - first))
            first = max(first, stop)
            look += 1
        if first < end:
            left.append((first, end - first))
    return _joined(left)


def intersect(ranges: Ranges, other: Ranges) -> Ranges:
    """Return the indices that both hold; cost grows with the pairs."""
    return without(ranges, without(ranges, other))


def _joined(pairs: list[tuple[int, int]]) -> Ranges:
    """Return sorted, disjoint pairs with neighbours that touch made one."""
    found: list[tuple[int, int]] = []
    for first, length in pairs:
        if found and found[-1][0] + found[-1][1] == first:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((first, length))
    return tuple(found)


def valid(ranges: Ranges, n: int) -> bool:
    """Return whether the ranges are sorted, disjoint, not empty and within a rollout of n."""
    end = 0
    for first, length in ranges:
        if first < end or length <= 0:
            return False
        end = first + length
    return end <= n


def mask(ranges: Ranges) -> int:
    """Return the indices as the bits of a number: the form for sets that change one index at a time."""
    bits = 0
    for first, length in ranges:
        bits |= ((1 << length) - 1) << first
    return bits


def unmask(bits: int) -> Ranges:
    """Return the indices that are a number's bits."""
    found: list[tuple[int, int]] = []
    at = 0
    while bits:
        skipped = (bits & -bits).bit_length() - 1
        bits >>= skipped
        length = (~bits & (bits + 1)).bit_length() - 1
        found.append((at + skipped, length))
        bits >>= length
        at += skipped + length
    return tuple(found)
