"""What is being started, since when."""

from shoal_scheduler.core.starting import Sent, Starting


def test_those_that_are_over_are_told_by_since_when_they_were_started() -> None:
    starting = Starting(8, 1000)
    starting.sent(0, ((0, 4),), 1010)
    starting.sent(0, ((4, 2),), 1030)
    assert starting.over(0, ((0, 2),)) == [(1010, 2)]
    assert starting.over(0, ((0, 2),)) == []
    assert sorted(starting.over(0, ((1, 2), (4, 4)))) == [(1010, 1), (1030, 2)]
    assert (starting.count, starting.dump()) == (1, [Sent(0, ((3, 1),), 1010)])
    assert starting.over(0, ((3, 1),)) == [(1010, 1)]
    assert not starting


def test_another_attempt_is_not_over() -> None:
    starting = Starting(4, 1000)
    starting.sent(0, ((0, 3),), 1000)
    starting.sent(1, ((2, 1),), 1020)
    assert starting.over(1, ((0, 4),)) == [(1020, 1)]
    assert starting.over(1, ((0, 4),)) == []
    assert starting.over(0, ((0, 4),)) == [(1000, 2)]
