"""The load generator's book: what became of everything that was asked for, when, and whether that can be right."""

import pytest

from shoal.wire.messages import (
    AnyMessage,
    Command,
    CommandResult,
    EndReason,
    OnLost,
    RolloutConcluded,
    RolloutQueued,
    RolloutRejected,
    RolloutReleased,
    RolloutSpec,
    RolloutSubmitted,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesReady,
    SandboxResult,
)
from shoal_loadtest.load.book import Book, Entry, Tally
from shoal_loadtest.load.waits import Waits

MS = 1_000_000
JOB = RolloutSpec("host", 4, (Command(line="true"),), on_lost=OnLost.RESTART)
STAY = RolloutSpec("host", 4)


class World:
    """A book with one rollout, asked for at 1000 ms of both clocks, 5 ms late."""

    def __init__(self, spec: RolloutSpec, *, stays: bool = False) -> None:
        self.book = Book(1)
        self.tally = Tally(0, stays=stays)
        self.entry = Entry("r1", 0, spec, self.tally, 1000 * MS, places=True)
        self.book.open(self.entry, 1005 * MS)
        self.hear(1010, RolloutSubmitted("r1", "t", "run", spec))

    def hear(self, ms: int, *messages: AnyMessage) -> None:
        """Take messages stored at this time, a millisecond later."""
        for message in messages:
            self.book.take(message, ms, (ms + 1) * MS)

    def ms(self, name: str, percentile: float = 50.0) -> float | None:
        return self.tally.latencies.quantile_ms(name, percentile)


def finished(*indices: int, attempt: int = 0, run_us: int = 0, exit_code: int = 0) -> SandboxesFinished:
    results = tuple(SandboxResult(index, CommandResult(exit_code), run_us) for index in indices)
    return SandboxesFinished("r1", attempt, "n", "e", "simulated", results)


def ready(first: int, count: int, attempt: int = 0, executor: str = "e") -> SandboxesReady:
    return SandboxesReady("r1", attempt, ((first, count),), "n", executor, "simulated")


def concluded(*counts: tuple[EndReason, int]) -> RolloutConcluded:
    return RolloutConcluded("r1", counts, "finished")


def test_a_job_is_timed_from_when_it_should_have_been_asked_for() -> None:
    world = World(JOB)
    world.hear(1030, finished(0, 1, run_us=10_000))
    world.hear(1050, finished(2, 3))
    world.hear(1060, concluded((EndReason.SUCCEEDED, 4)))
    assert world.ms("lateness") == pytest.approx(5, rel=0.01)
    assert world.ms("first_ready") == pytest.approx(21, rel=0.01)  # heard at 1031, ready 10 ms before
    assert world.ms("ready", 100) == pytest.approx(51, rel=0.01)
    assert world.ms("group_ready") == pytest.approx(51, rel=0.01)
    assert world.ms("first_command") == pytest.approx(31, rel=0.01)
    assert world.ms("ready_broker", 0) == pytest.approx(10, rel=0.01)  # from 1010, where the request is in the log
    assert world.ms("first_command_broker", 100) == pytest.approx(40, rel=0.01)
    assert world.tally.counts["ready"] == world.tally.counts["through"] == 4
    assert world.tally.open == 0
    assert world.book.missing == 0
    assert world.book.audit["disagreed"] == world.book.audit["doubled"] == 0


def test_sandboxes_that_stay_are_live_until_they_are_given_back() -> None:
    world = World(STAY, stays=True)
    settled: list[str] = []
    world.book.on_settled = lambda entry: settled.append(entry.id)
    world.hear(1020, ready(0, 3, executor="e1"))
    assert (world.book.live, world.tally.open, settled) == (3, 4, [])
    world.hear(1030, ready(3, 1, executor="e2"))
    assert (world.book.live, world.tally.open, settled) == (4, 0, ["r1"])
    assert [world.book.executor_of(world.entry, index) for index in (0, 3)] == ["e1", "e2"]
    assert sum(world.tally.moments.values()) == 4
    world.hear(1100, RolloutReleased("r1", ((0, 4),)))
    assert world.book.live == 0
    assert world.book.missing == 4
    world.hear(1110, RolloutConcluded("r1", ((EndReason.RELEASED, 4),), "released"))
    assert world.book.missing == 0
    assert world.book.audit["disagreed"] == 0


def test_what_is_told_twice_counts_once() -> None:
    world = World(STAY)
    world.hear(1020, ready(0, 4), ready(0, 4))
    assert world.book.live == 4
    assert world.tally.latencies.summary("ready")["count"] == 4


def test_a_second_result_of_a_sandbox_is_noticed() -> None:
    world = World(JOB)
    world.hear(1020, finished(0), finished(0))
    assert world.book.audit["doubled"] == 1


def test_two_results_of_a_sandbox_in_one_message_are_noticed() -> None:
    world = World(JOB)
    world.hear(1020, finished(0, 0))
    assert (world.book.audit["doubled"], world.tally.reasons) == (1, {EndReason.SUCCEEDED: 1})


def test_a_result_of_an_attempt_that_was_given_up_is_only_late() -> None:
    world = World(JOB)
    world.hear(1020, SandboxesEnded("r1", 0, ((0, 1),), "n", EndReason.NODE_LOST))
    world.hear(1030, finished(0))
    assert (world.book.audit["late"], world.book.audit["doubled"]) == (1, 0)
    assert world.tally.counts["restarted"] == 1
    world.hear(1040, finished(0, attempt=1))
    assert world.tally.reasons == {EndReason.SUCCEEDED: 1}


def test_an_outcome_that_is_not_what_was_reported_is_noticed() -> None:
    world = World(JOB)
    world.hear(1020, finished(0, 1, 2, 3), concluded((EndReason.SUCCEEDED, 3), (EndReason.NODE_LOST, 1)))
    assert world.book.audit["disagreed"] == 1


def test_a_second_outcome_is_noticed() -> None:
    world = World(JOB)
    world.hear(1020, finished(0, 1, 2, 3), concluded((EndReason.SUCCEEDED, 4)), concluded((EndReason.SUCCEEDED, 4)))
    assert world.book.audit["disagreed"] == 1


def test_sandboxes_that_were_ready_before_do_not_spoil_the_latencies() -> None:
    world = World(RolloutSpec("host", 4, on_lost=OnLost.RESTART))
    world.hear(1020, ready(0, 4))
    world.hear(5000, SandboxesEnded("r1", 0, ((0, 2),), "n", EndReason.NODE_LOST))
    assert world.book.live == 2
    world.hear(9000, ready(0, 2, attempt=1))
    assert world.book.live == 4
    assert world.tally.latencies.summary("ready")["count"] == 4
    assert world.ms("ready", 100) == pytest.approx(21, rel=0.01)


def test_failures_of_the_platform_are_counted_by_reason() -> None:
    world = World(STAY)
    world.hear(1020, ready(0, 4), SandboxesEnded("r1", 0, ((0, 1),), "n", EndReason.NODE_LOST))
    assert world.tally.counts["failed"] == 1
    assert world.tally.reasons == {EndReason.NODE_LOST: 1}
    assert world.book.live == 3


def test_what_waits_and_what_is_rejected() -> None:
    world = World(STAY)
    world.hear(1020, RolloutQueued("r1", 0, 3, "full"))
    assert world.book.waiting == 3
    world.hear(1030, RolloutRejected("r1", "queue_full", "too many"))
    assert world.tally.counts["rejected"] == 4
    assert world.tally.reasons == {"rejected: queue_full": 4}
    assert (world.book.missing, world.tally.open) == (0, 0)


def test_a_trainer_that_waits_for_two_things_waits_once() -> None:
    waits = Waits(2)
    waits.begin(0, 0)
    waits.begin(0, 1000 * MS)
    waits.end(0, 2000 * MS)
    assert waits.seconds(2500 * MS) == pytest.approx(2.5)
    waits.end(0, 3000 * MS)
    waits.begin(1, 3000 * MS)
    waits.end(1, 4000 * MS)
    waits.begin(0, 2500 * MS)  # should have been asked for when the trainer waited anyway
    waits.end(0, 5000 * MS)
    assert waits.seconds(9000 * MS) == pytest.approx(3 + 1 + 2)
