"""What is to be forgotten is found without looking at the rest, whatever was set before."""

from hypothesis import given, strategies as st

from shoal_placement.core.expiries import Expiries

NAMES = st.sampled_from("abcd")
TIMES = st.integers(0, 20)


@given(st.lists(st.one_of(st.tuples(NAMES, TIMES), TIMES), max_size=60))
def test_as_if_all_were_looked_at(steps: list[tuple[str, int] | int]) -> None:
    known: dict[str, int] = {}
    expiries = Expiries(known.get)
    for step in steps:
        if isinstance(step, tuple):
            name, when = step
            known[name] = when
            expiries.set(name, when)
        else:
            expected = sorted((when, name) for name, when in known.items() if when <= step)
            assert expiries.due(step) == [name for _, name in expected]
            for _, name in expected:
                del known[name]
        expiries.check(known.items())
        assert expiries.first() == min(known.values(), default=None)
        again = Expiries(known.get)
        again.begin(known.items())
        assert again.first() == expiries.first()


def test_what_was_forgotten_meanwhile_is_passed_over() -> None:
    known = {"a": 1, "b": 2}
    expiries = Expiries(known.get)
    expiries.begin(known.items())
    del known["a"]
    assert expiries.first() == 2
    known["a"] = 5
    expiries.set("a", 5)
    assert expiries.due(4) == ["b"]
    assert expiries.due(4) == []  # told once
    assert expiries.due(9) == ["a"]
