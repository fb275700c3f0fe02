"""What a rollout came to, in numbers and statuses."""

import msgspec

from shoal.cli.exits import Exit
from shoal.cli.results import as_object, not_found
from shoal.cli.summary import Summary, percentile
from shoal.cli.trajectory import _came, _what
from shoal.client.results import CommandResult, SandboxOutcome
from shoal.client.rows import TrajectoryStep
from shoal.wire.messages import EndReason


def outcome(index: int, reason: EndReason, *, code: int | None = 0, isolation: str = "zygote") -> SandboxOutcome:
    result = None if code is None else CommandResult(code, b"42\n", b"", 0.01)
    first = None if code is None else float(10 * (index + 1))
    return SandboxOutcome(f"rx-{index}", index, 0, reason, "n", isolation, result, "", first, first)


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) is None


def test_a_summary_counts_each_sandbox_once_and_tells_loss_from_failure() -> None:
    summary = Summary("rx")
    summary.add(outcome(0, EndReason.SUCCEEDED))
    summary.add(outcome(1, EndReason.COMMAND_FAILED, code=3))
    summary.add(outcome(2, EndReason.NODE_LOST, code=None))
    found = summary.as_json()
    assert (found["sandboxes"], found["succeeded"], found["failed"], found["lost"]) == (3, 1, 1, 1)
    assert found["first_command_ms"] == {"p50": 10.0, "p99": 20.0}
    assert found["sandboxes_per_s"] == 100.0
    assert summary.status is Exit.LOST
    assert "simulated" not in found


def test_only_success_of_all_is_status_zero() -> None:
    for reason, status in (
        (EndReason.SUCCEEDED, Exit.OK),
        (EndReason.COMMAND_FAILED, Exit.FAILED),
        (EndReason.TIMED_OUT, Exit.FAILED),
        (EndReason.CANCELLED, Exit.CANCELLED),
        (EndReason.DIED, Exit.LOST),
        (EndReason.RELEASED, Exit.OK),
    ):
        summary = Summary("rx")
        summary.add(outcome(0, EndReason.SUCCEEDED))
        summary.add(outcome(1, reason, code=1))
        assert summary.status is status
    assert Summary("rx").status is not Exit.OK


def test_what_its_trainer_let_go_did_not_fail() -> None:
    summary = Summary("rx")
    summary.add(outcome(0, EndReason.RELEASED, code=None))
    summary.add(outcome(1, EndReason.COMMAND_FAILED, code=1))
    found = summary.as_json()
    assert (found["sandboxes"], found["failed"], found["released"]) == (2, 1, 1)
    assert "2 sandboxes, 0 succeeded, 1 failed, 0 lost, 1 released by their trainer" in summary.lines()[0]


def test_simulated_results_say_so() -> None:
    summary = Summary("rx")
    summary.add(outcome(0, EndReason.SUCCEEDED, isolation="simulated"))
    assert summary.as_json()["simulated"] is True
    assert "simulated" in summary.lines()[0]


def test_an_outcome_without_result_has_nulls() -> None:
    found = as_object(outcome(0, EndReason.NODE_LOST, code=None))
    assert found["exit_code"] is None
    assert found["stdout"] is None
    assert found["reason"] == "node_lost"


def test_what_is_left_out_of_an_output_is_said_to_programs() -> None:
    whole, result = outcome(0, EndReason.SUCCEEDED), CommandResult(0, b"ab", b"", 0.1, stdout_dropped=9, stdout_tail=1)
    cut = as_object(msgspec.structs.replace(whole, result=result))
    assert (cut["stdout"], cut["stdout_dropped"], cut["stdout_tail"], cut["stderr_dropped"]) == ("ab", 9, 1, 0)
    assert "stdout_dropped" not in as_object(whole)


def test_what_was_done_with_files_is_shown_in_words() -> None:
    place = ("r", "x", "", "host", "x-0", 0, 0, 1, "#1")
    assert _what(TrajectoryStep(*place, "rename", path="a", to="b")) == "a to b"
    data = '[{"name": "a"}, {"name": "b"}]'
    assert _came(TrajectoryStep(*place, "list", path=".", data=data, detail="and more")) == "a, b, and more"
    assert _came(TrajectoryStep(*place, "stat", path="c", data="[]")) == "nothing"


def test_a_missing_command_is_told_apart() -> None:
    assert "foo" in not_found(127, "sh: foo: not found\n")
    assert not_found(1, "foo: not found") == ""
