"""Simulated sandboxes kept by group against one entry for each of them."""

from hypothesis import given, settings, strategies as st

from shoal.machine import ranges
from shoal.wire.messages import CommandResult, Ranges
from shoal_executor.core.names import Names
from shoal_executor.drivers.crowd import Crowd

ROLLOUTS = ("r", "r-1", "a-b")
OTHERS = ("box", "r-01", "r-1.0", "pool-3f", "r-2.x", "-")
indices = st.sets(st.integers(0, 12), max_size=8).map(ranges.collect)
groups = st.tuples(st.sampled_from(ROLLOUTS), st.integers(0, 2), indices)


def names_in(group: tuple[str, int, Ranges]) -> Names:
    rollout, attempt, those = group
    return Names((rollout, attempt, "n1"), those)


names = groups.map(names_in)
some = names | names.map(list) | st.lists(st.sampled_from(OTHERS), max_size=3, unique=True)
actions = st.one_of(
    st.tuples(st.sampled_from(("add", "remove", "remove")), some, st.just("")),
    st.tuples(st.just("ran"), names, st.sampled_from(("a", "b"))),
    st.tuples(st.just("get"), some, st.just("")),
)


@settings(max_examples=400, deadline=None)
@given(steps=st.lists(actions, max_size=30))
def test_as_one_entry_for_each(steps: list[tuple[str, Names | list[str], str]]) -> None:
    crowd = Crowd()
    known: dict[str, dict[str, CommandResult]] = {}
    used: set[str] = set()
    for number, (what, those, id) in enumerate(steps):
        if what == "add":
            fresh = [name for name in those if name not in known]  # a name is never given again
            crowd.add(those if len(fresh) == len(those) else fresh, disk=7)
            known.update({name: {} for name in fresh})
        elif what == "remove":
            crowd.remove(those)
            for name in those:
                known.pop(name, None)
                used.discard(name)
        elif what == "ran":
            result = CommandResult(number)
            first_of_all = all(name in known and not known[name] and name not in used for name in those)
            assert crowd.ran(those, id, result) == first_of_all or not len(those)
            if first_of_all:
                known.update({name: {id: result} for name in those})
        else:
            for name in those:
                sandbox = crowd.get(name)
                assert (sandbox is not None) == (name in known)
                if sandbox is not None:
                    used.add(name)
                    assert (sandbox.disk, sandbox.results) == (7, known[name])
                    assert sandbox.commands == len(known[name])
        assert sorted(crowd.names()) == sorted(known)
