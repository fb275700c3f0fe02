"""A rollout as its trainer sees it, message by message."""

import pytest

from shoal.client.fold import RolloutFold
from shoal.machine import ranges
from shoal.wire.messages import (
    Command,
    CommandResult,
    EndReason,
    RolloutSpec,
    RolloutSubmitted,
    SandboxesFinished,
    SandboxesReady,
    SandboxResult,
)

SPEC = RolloutSpec("host", 4, commands=(Command(line="work"),), timeout_ms=60_000)


def fold() -> RolloutFold:
    begun = RolloutFold("r", "acme", "run", SPEC)
    begun.handle(RolloutSubmitted("r", "acme", "run", SPEC), 1000)
    return begun


def finished(*indices: int, exit_code: int = 0, attempt: int = 0) -> SandboxesFinished:
    results = tuple(SandboxResult(index, CommandResult(exit_code, b"out"), 2000) for index in indices)
    return SandboxesFinished("r", attempt, "n1", "e1", "simulated", results)


def test_results_of_one_message_are_outcomes_in_their_order() -> None:
    begun = fold()
    begun.handle(SandboxesReady("r", 0, ((0, 2),), "n1", "e1", "simulated"), 1005)
    news = begun.handle(finished(2, 0), 1010)
    assert [(each.sandbox, each.reason, each.ready_ms, each.first_command_ms) for each in news.ended] == [
        ("r-2", EndReason.SUCCEEDED, 8.0, 10.0),
        ("r-0", EndReason.SUCCEEDED, 8.0, 10.0),
    ]
    assert begun.outcomes == news.ended
    assert list(begun.where) == [1]
    assert (begun.ledger.live, ranges.count(begun.ledger.ready(0, ((3, 1),)))) == (2, 1)


@pytest.mark.parametrize("index", [-1, 4])
def test_a_result_of_no_sandbox_of_the_rollout_is_none(index: int) -> None:
    begun = fold()
    assert [each.index for each in begun.handle(finished(index, 1), 1010).ended] == [1]


def test_the_first_of_two_results_counts_also_within_a_message() -> None:
    begun = fold()
    message = finished(1, exit_code=3)
    both = SandboxesFinished("r", 0, "n1", "e1", "simulated", message.results + finished(1).results)
    assert [each.exit_code for each in begun.handle(both, 1010).ended] == [3]
    assert begun.handle(finished(1), 1020).ended == []
    assert begun.handle(finished(2, attempt=1), 1020).ended == []  # of an attempt that there is not
