"""Subjects are built from checked tokens only, and each belongs to exactly one stream."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from shoal.wire import streams, subjects
from shoal.wire.quantities import BadValueError

GOOD: dict[str, Any] = {
    "cell": 3,
    "tenant": "acme",
    "run": "grpo-7",
    "executor": "node-1",
    "kind": "request",
    "stream": "SHOAL_ROLLOUT_3",
}
NO_SUBJECT = {"token", "cell_of"}
BUILDERS: dict[str, Callable[..., str]] = {
    name: function
    for name, function in vars(subjects).items()
    if inspect.isfunction(function)
    and function.__module__ == subjects.__name__
    and not name.startswith("_")
    and name not in NO_SUBJECT
}
BAD_TOKENS = (
    "",
    " ",
    "a b",
    "a.b",
    ".",
    "*",
    ">",
    "a*",
    "a>",
    "a\n",
    "\x00",
    "é",
    "-a",
    "_",
    "_a",
    "a" * 65,
    "a/b",
    "$JS",
)
BAD_CELLS = (-1, 10_000, 10**30)
TOKENS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,63}", fullmatch=True)


def arguments(builder: Callable[..., str]) -> list[str]:
    return list(inspect.signature(builder).parameters)


BAD_ARGUMENTS = [
    (name, argument, value)
    for name, builder in BUILDERS.items()
    for argument in arguments(builder)
    for value in (BAD_CELLS if argument == "cell" else BAD_TOKENS)
    if not (name == "rollout_filter" and value == "*")  # a filter may say: any
    and not (name == "snapshot" and argument == "tenant" and value == subjects.SYSTEM)
]


@pytest.mark.parametrize(("name", "argument", "value"), BAD_ARGUMENTS)
def test_a_bad_token_is_refused_by_the_name_of_its_field(name: str, argument: str, value: Any) -> None:
    builder = BUILDERS[name]
    given_ = {argument_: GOOD[argument_] for argument_ in arguments(builder)}
    builder(**given_)
    with pytest.raises(BadValueError, match=argument) as caught:
        builder(**(given_ | {argument: value}))
    assert caught.value.field == argument
    assert repr(value) in str(caught.value) or str(value) in str(caught.value)


@pytest.mark.parametrize("name", sorted(BUILDERS.keys() - {"rollout_filter"}))
@given(cell=st.integers(0, 9_999), tenant=TOKENS, run=TOKENS, executor=TOKENS, kind=TOKENS)
def test_a_subject_belongs_to_exactly_one_stream(
    name: str, cell: int, tenant: str, run: str, executor: str, kind: str
) -> None:
    every = (
        *(make(cell) for make in (streams.rollout, streams.placement, streams.trajectory, streams.blob)),
        streams.executor(executor),
        streams.snapshot(),
        streams.dead(),
    )
    drawn = {
        "cell": cell,
        "tenant": tenant,
        "run": run,
        "executor": executor,
        "kind": kind,
        "stream": streams.executor(executor).name,
    }
    subject = BUILDERS[name](**{argument: drawn[argument] for argument in arguments(BUILDERS[name])})
    keepers = [stream.name for stream in every if any(streams.subjects_overlap(subject, s) for s in stream.subjects)]
    assert keepers == [streams.stream_of(subject)]
    assert len(subject.split(".")) <= 16
    assert len(subject) < 256


@given(cell=st.integers(0, 9_999), tenant=TOKENS, run=TOKENS)
def test_a_run_is_followed_by_its_filter_and_by_no_other(cell: int, tenant: str, run: str) -> None:
    mine = subjects.rollout_filter(cell, tenant, run)
    for builder in (subjects.rollout_request, subjects.rollout_sandbox, subjects.rollout_outcome):
        assert streams.subjects_overlap(mine, builder(cell, tenant, run))
        assert not streams.subjects_overlap(mine, builder(cell, tenant + "x", run))
        assert not streams.subjects_overlap(mine, builder(cell, tenant, run + "x"))
        assert streams.subjects_overlap(subjects.rollout_filter(cell), builder(cell, tenant, run))
    assert not streams.subjects_overlap(mine, subjects.rollout_system(cell))


def test_a_filter_narrows_by_each_of_its_parts() -> None:
    assert subjects.rollout_filter(0) == "shoal.rollout.0.*.*.*"
    assert subjects.rollout_filter(7, "acme", "grpo-7", "outcome") == "shoal.rollout.7.acme.grpo-7.outcome"


def test_no_two_builders_give_the_same_subject() -> None:
    built = [
        builder(**{argument: GOOD[argument] for argument in arguments(builder)})
        for name, builder in BUILDERS.items()
        if name != "rollout_filter"
    ]
    assert len(set(built)) == len(built)


def test_control_and_commands_can_be_permitted_apart() -> None:
    assert not streams.subjects_overlap("shoal.executor.node-1.acme.command", subjects.executor_control("node-1"))
    assert not streams.subjects_overlap("shoal.executor.node-1.*.command", subjects.executor_control("node-1"))


def test_the_system_may_ask_for_templates_in_its_own_name() -> None:
    assert subjects.snapshot(subjects.SYSTEM, "request") == "shoal.snapshot._.request"


@pytest.mark.parametrize(
    "stream", ["SHOAL_SNAPSHOT", "SHOAL_ROLLOUT_0", "SHOAL_EXECUTOR_" + "x" * 64, "SHOAL_EXECUTOR_a_b-c"]
)
def test_every_stream_has_a_subject_for_its_dead_letters(stream: str) -> None:
    assert streams.stream_of(subjects.dead(stream)) == "SHOAL_DEAD"


def test_a_rollouts_cell_never_changes() -> None:
    pinned = {
        ("r0", 1): 0,
        ("r7k2m4n6p8q2s4t6v", 16): 12,
        ("rabcdefghijklmno0", 16): 15,
        ("rzzzzzzzzzzzzzzzz", 10_000): 5366,
    }
    assert {key: subjects.cell_of(*key) for key in pinned} == pinned


def test_rollouts_spread_over_all_cells() -> None:
    counts = [0] * 16
    for number in range(16_000):
        counts[subjects.cell_of(f"r{number:015x}", 16)] += 1
    assert min(counts) > 800
    assert max(counts) < 1200
