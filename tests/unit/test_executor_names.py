"""Names of sandboxes on their node."""

import pytest

from shoal_executor.core.names import Names, indices_of, name_of, parse


@pytest.mark.parametrize("attempt", [0, 3])
def test_names_are_those_of_each(attempt: int) -> None:
    key = ("math-7", attempt, "n1")
    names = Names(key, ((2, 2), (9, 1)))
    assert (len(names), list(names)) == (3, [name_of(key, index) for index in (2, 3, 9)])
    assert (names[0], names[-1], names[1:]) == (name_of(key, 2), name_of(key, 9), tuple(names)[1:])
    assert [parse(name) for name in names] == [("math-7", index, attempt) for index in (2, 3, 9)]
    assert indices_of(names[1:]) == ((3, 1), (9, 1))
    assert name_of(key, 3) in names
    assert name_of(key, 4) not in names


def test_no_names() -> None:
    names = Names(("r", 0, "n1"), ())
    assert (len(names), list(names), indices_of(names)) == (0, [], ())


@pytest.mark.parametrize("name", ["box", "r-", "r-x", "r-1.x"])
def test_what_is_no_name_of_ours_is_said(name: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        parse(name)
