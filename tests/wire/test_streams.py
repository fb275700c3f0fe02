"""No subject is kept by two streams, whatever a cluster's size and however its executors are named."""

import re

import pytest
from hypothesis import given, strategies as st

from shoal.wire import streams
from shoal.wire.quantities import BadValueError

ODD_NAMES = ("0", "1", "control", "command", "rollout", "ROLLOUT_0", "SNAPSHOT", "dead", "a-b_c", "A-B_C", "x" * 64)
WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    parts = draw(st.lists(st.sampled_from(["a", "b", "c", "*"]), min_size=1, max_size=4))
    return ".".join([*parts, ">"] if draw(st.booleans()) else parts)


def matches(pattern: str, subject: str) -> bool:
    """Say whether the pattern keeps the subject, by another road than the code under test."""
    escaped = re.escape(pattern).replace(r"\*", "[^.]+")
    return re.fullmatch(escaped.removesuffix(">") + ".+" if pattern.endswith(">") else escaped, subject) is not None


@pytest.mark.parametrize("cells", [1, 2, 11, 64])
def test_no_two_streams_overlap(cells: int) -> None:
    every = [*streams.cluster(cells), *map(streams.executor, ODD_NAMES)]
    assert streams.overlapping(every) == []
    assert len({stream.name for stream in every}) == len(every)


def test_the_check_for_overlaps_finds_them() -> None:
    thief = streams.Stream("THIEF", ("shoal.*.1.>",), 1, 1)
    found = streams.overlapping([*streams.cluster(2), thief])
    kept = (
        "SHOAL_ROLLOUT_1",
        "SHOAL_PLACEMENT_1",
        "SHOAL_TRAJECTORY_1",
        "SHOAL_BLOB_1",
        "SHOAL_SNAPSHOT",
        "SHOAL_DEAD",
    )
    assert found == [(name, "THIEF") for name in kept]


@pytest.mark.parametrize("name", ["", "a.b", "a.>", "*", ">", "a b", "_", "x" * 65])
def test_an_executor_whose_name_is_no_token_has_no_stream(name: str) -> None:
    with pytest.raises(BadValueError, match="executor"):
        streams.executor(name)


@given(patterns(), patterns(), st.lists(WORDS, max_size=30))
def test_patterns_that_both_match_something_overlap(left: str, right: str, words: list[list[str]]) -> None:
    if any(matches(left, ".".join(word)) and matches(right, ".".join(word)) for word in words):
        assert streams.subjects_overlap(left, right)
        assert streams.subjects_overlap(right, left)


@given(patterns(), WORDS)
def test_a_subject_overlaps_the_patterns_that_match_it(pattern: str, word: list[str]) -> None:
    subject = ".".join(word)
    assert streams.subjects_overlap(pattern, subject) == matches(pattern, subject)


@pytest.mark.parametrize("stream", streams.cluster(2), ids=lambda stream: stream.name)
def test_a_streams_subjects_lead_back_to_it(stream: streams.Stream) -> None:
    for subject in stream.subjects:
        assert streams.stream_of(subject.replace(">", "x")) == stream.name


@pytest.mark.parametrize("subject", ["", "shoal", "shoal.rollout", "shoal.nothing.x", "other.rollout.0.x", "shoal..x"])
def test_a_subject_of_nobody_is_refused(subject: str) -> None:
    with pytest.raises(ValueError, match="belongs to no stream"):
        streams.stream_of(subject)


def test_a_cluster_has_every_stream_but_its_executors() -> None:
    assert [stream.name for stream in streams.cluster(1)] == [
        "SHOAL_ROLLOUT_0",
        "SHOAL_PLACEMENT_0",
        "SHOAL_TRAJECTORY_0",
        "SHOAL_BLOB_0",
        "SHOAL_SNAPSHOT",
        "SHOAL_DEAD",
    ]
    assert len(streams.cluster(4)) == 4 * 4 + 2


@pytest.mark.parametrize("stream", [*streams.cluster(1), streams.executor("x")], ids=lambda stream: stream.name)
def test_ages_are_days_and_repeats_are_dropped_for_a_while(stream: streams.Stream) -> None:
    passing = stream == streams.blob(0)  # copies, fetched at once
    assert stream.max_age_s == 0 or passing or stream.max_age_s >= streams.KEPT_S >= 8 * 86_400
    assert 0 < stream.dedupe_s <= (stream.max_age_s if passing else streams.KEPT_S)
    assert stream.max_bytes >= 1024**3


def test_the_broker_removes_nothing_that_is_folded() -> None:
    folded = [streams.rollout(0), streams.placement(0), streams.snapshot()]
    assert [stream.max_age_s for stream in folded] == [0, 0, 0]


def test_only_dead_letters_make_room_for_others() -> None:
    assert [each.name for each in streams.cluster(2) if each.makes_room] == ["SHOAL_DEAD"]
    assert not streams.executor("e").makes_room
