"""Index ranges behave as the sets they stand for."""

import pytest
from hypothesis import given, strategies as st

from shoal.machine import ranges
from shoal.wire.messages import Ranges

SETS = st.sets(st.integers(0, 40))


@given(st.lists(st.integers(0, 40)))
def test_collecting_forgets_order_and_repeats_and_is_shortest(numbers: list[int]) -> None:
    collected = ranges.collect(numbers)
    assert list(ranges.indices(collected)) == sorted(set(numbers))
    assert ranges.count(collected) == len(set(numbers))
    assert ranges.valid(collected, 41)
    assert len(collected) == sum(number - 1 not in numbers for number in set(numbers))


@given(SETS, SETS)
def test_without_intersect_and_union_are_those_of_sets(left: set[int], right: set[int]) -> None:
    one, other = ranges.collect(left), ranges.collect(right)
    assert ranges.without(one, other) == ranges.collect(left - right)
    assert ranges.intersect(one, other) == ranges.collect(left & right)
    assert ranges.union(one, other) == ranges.collect(left | right)
    assert {index for index in range(41) if ranges.holds(one, index)} == left


@given(SETS, st.integers(0, 50))
def test_taking_splits_in_order(numbers: set[int], limit: int) -> None:
    taken, rest = ranges.take(ranges.collect(numbers), limit)
    ordered = sorted(numbers)
    assert list(ranges.indices(taken)) == ordered[:limit]
    assert list(ranges.indices(rest)) == ordered[limit:]
    assert ranges.valid(taken, 41)
    assert ranges.valid(rest, 41)


def test_a_whole_rollout() -> None:
    assert ranges.whole(0) == ()
    assert list(ranges.indices(ranges.whole(3))) == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(-3, 12), st.integers(-2, 5)), max_size=4).map(tuple), st.integers(0, 12))
def test_valid_ranges_are_sorted_disjoint_and_within(pairs: Ranges, n: int) -> None:
    numbers = list(ranges.indices(pairs))
    good = (
        all(length > 0 for _, length in pairs)
        and numbers == sorted(set(numbers))
        and all(0 <= number < n for number in numbers)
    )
    assert ranges.valid(pairs, n) == good


@pytest.mark.parametrize("pairs", [((0, 0),), ((-1, 2),), ((3, 1), (1, 1)), ((0, 2), (1, 1)), ((2, 2),)])
def test_what_is_not_valid(pairs: Ranges) -> None:
    assert not ranges.valid(pairs, 3)
