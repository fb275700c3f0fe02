"""The demonstration says what did not pass, and how."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from episodes import Episode
    from run import Score

EXAMPLE = Path(__file__).parents[2] / "examples/humaneval"


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(EXAMPLE)
    before = set(sys.modules)
    yield
    for name in {"run", "episodes", "candidates"} - before:
        sys.modules.pop(name, None)


def episode(problem: str, reference: bool | None, how: str = "") -> "Episode":
    from episodes import Episode

    return Episode(problem, [bool(reference)], reference, reference_failed=how)


def score(*episodes: "Episode") -> "Score":
    from run import Score

    return Score(list(episodes))


def test_where_all_passed_nothing_is_said() -> None:
    from run import incomplete

    assert incomplete(score(*[episode("HumanEval/0", True)] * 3, episode("HumanEval/0", None)), 1) == ""


def test_a_reference_solution_that_failed_is_named_with_how() -> None:
    from run import incomplete

    said = incomplete(score(*[episode("HumanEval/0", True)] * 3, episode("HumanEval/0", False, "AssertionError")), 1)
    assert said == "the reference solution failed for HumanEval/0 (AssertionError)"


def test_where_one_timed_out_it_says_what_may_help() -> None:
    from run import incomplete

    said = incomplete(score(*[episode("HumanEval/7", True)] * 3, episode("HumanEval/7", False, "timed out")), 1)
    assert "HumanEval/7 (timed out)" in said
    assert "a lower --concurrency may help" in said


def test_sandboxes_without_a_score_are_counted() -> None:
    from run import incomplete

    assert incomplete(score(episode("HumanEval/0", True)), 1) == "3 of 4 sandboxes have no score"
