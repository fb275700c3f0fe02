"""What is started ahead: the hottest, within the budget, and nothing that was asked for once."""

from hypothesis import example, given, strategies as st

from shoal.wire.messages import InputFile, Resources, Snapshot
from shoal_executor.drivers.heat import HALF_LIFE_S, Budget, Heat, Kind, kind_of
from shoal_executor.drivers.protocol import StartSpec

MIB = 1024**2


def kind(snapshot: str = "a", memory: int = 64 * MIB, env: tuple[tuple[str, str], ...] = (), user: str = "") -> Kind:
    return kind_of(StartSpec(Snapshot(snapshot, "host"), Resources(memory=memory), env=env, user=user))


def ask(heat: Heat, what: Kind, sandboxes: int, *at: float) -> None:
    for now in at:
        heat.asked(what, Snapshot(what.snapshot, "host"), sandboxes, now)


def test_what_was_asked_for_once_is_not_worth_it_and_twice_is() -> None:
    heat = Heat(Budget(8, 1024 * MIB))
    ask(heat, kind(), 64, 0.0)
    assert heat.wanted(0.0) == {}
    ask(heat, kind(), 64, 10.0)
    assert heat.wanted(10.0) == {kind(): 8}
    assert heat.snapshot(kind()) == Snapshot("a", "host")


def test_what_nobody_asks_for_any_more_cools_down() -> None:
    heat = Heat(Budget(8, 1024 * MIB))
    ask(heat, kind(), 64, 0.0, 1.0)
    assert heat.wanted(1.0 + HALF_LIFE_S) == {}
    ask(heat, kind(), 64, 1000.0)
    assert heat.wanted(1000.0) == {}


def test_no_more_than_its_orders_were_for() -> None:
    heat = Heat(Budget(8, 1024 * MIB))
    ask(heat, kind(), 1, 0.0, 1.0, 2.0)
    assert heat.wanted(2.0) == {kind(): 1}


def test_the_budget_is_shared_by_heat_and_its_memory_is_kept() -> None:
    heat = Heat(Budget(8, 1024 * MIB))
    ask(heat, kind("a"), 64, *([0.0] * 6))
    ask(heat, kind("b"), 64, *([0.0] * 2))
    assert heat.wanted(0.0) == {kind("a"): 6, kind("b"): 2}
    narrow = Heat(Budget(8, 200 * MIB))
    ask(narrow, kind("a"), 64, *([0.0] * 6))
    ask(narrow, kind("large", 512 * MIB), 64, *([0.0] * 8))
    assert narrow.wanted(0.0) == {kind("a"): 3}


def test_what_differs_in_anything_but_files_is_another_kind() -> None:
    kinds = {kind(), kind("b"), kind(memory=MIB), kind(env=(("A", "b"),)), kind(user="nobody")}
    assert len(kinds) == 5
    spec = StartSpec(Snapshot("a", "host"), Resources(memory=64 * MIB), (InputFile("in", b"x"),))
    assert kind_of(spec) == kind()


def test_what_could_not_be_started_ahead_has_to_be_asked_for_again() -> None:
    heat = Heat(Budget(8, 1024 * MIB))
    ask(heat, kind(), 64, 0.0, 1.0)
    heat.failed(kind())
    assert heat.wanted(1.0) == {}
    ask(heat, kind(), 64, 2.0)
    assert heat.wanted(2.0) == {}


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.integers(1, 300), st.integers(1, 64), st.floats(0, 500)), max_size=60
    ),
    st.integers(1, 20),
    st.integers(0, 4096),
)
@example([("a", 1, 1, 0.0), ("a", 1, 1, 0.0), ("a", 1, 2, 0.0), ("a", 1, 2, 0.0)], 1, 4096)  # equally hot
def test_the_budget_holds_whatever_is_asked_for(
    orders: list[tuple[str, int, int, float]], sandboxes: int, memory: int
) -> None:
    heat = Heat(Budget(sandboxes, memory * MIB))
    for name, number, size, at in sorted(orders, key=lambda order: order[3]):
        ask(heat, kind(name, size * 16 * MIB), number, at)
        wanted = heat.wanted(at)
        assert sum(wanted.values()) <= sandboxes
        assert sum(each.resources.memory * number for each, number in wanted.items()) <= memory * MIB
        assert all(number > 0 for number in wanted.values())


def test_of_a_kind_that_failed_nothing_is_known() -> None:
    heat = Heat(Budget(8, 1024 * MIB))
    ask(heat, kind(), 64, 0.0, 1.0)
    heat.failed(kind())
    assert heat.snapshot(kind()) is None
