"""A sandbox's story: what its present attempt has behind it, whatever was lost, in whatever order it is told."""

import random

import pytest

from shoal.client.story import Story, Told
from shoal.machine.ledger import HEDGE
from shoal.wire.messages import (
    AnyMessage,
    Command,
    CommandFinished,
    CommandRefused,
    CommandResult,
    Hibernated,
    SandboxesBegan,
    SandboxSaved,
    SandboxSlept,
    Snapshot,
    Step,
    StepBegun,
)


def done(id: str, number: int, attempt: int = 0, *, idempotent: bool = True) -> CommandFinished:
    step = Step(number, 0, "e1", number, idempotent)
    return CommandFinished(id, "r", 0, attempt, Command(line=id), CommandResult(0), step)


def began(attempt: int, digest: str) -> SandboxesBegan:
    return SandboxesBegan("r", attempt, ((0, 1),), "n1", "e1", "zygote", digest)


def saved(digest: str, *steps: tuple[int, int], attempt: int = 0) -> SandboxSaved:
    return SandboxSaved("r", attempt, 0, Snapshot(digest, "host"), 0, steps)


def told(*messages: AnyMessage) -> Story:
    story = Story()
    for message in messages:
        story.take(message, 1)
    return story


def ids(steps: list[Told]) -> list[str]:
    return [each.id for each in steps]


LOST: tuple[AnyMessage, ...] = (
    began(0, "host"),
    done("a", 1),
    done("b", 2),
    saved("s1", (1, 2)),
    done("c", 3),
    saved("s2", (1, 1), (3, 2)),  # the second had begun and was not at its end
    done("d", 4),
    done("b", 5),
    began(1, "s2"),
    done("e", 1, 1),
    done("d", 2, 1),
    saved("s3", (1, 1), attempt=1),
    done("f", 3, 1),
    began(2, "s3"),
)


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_undoes_what_came_after_the_snapshot_in_whatever_order_it_is_told(seed: int) -> None:
    messages = [*LOST, *random.Random(seed).choices(LOST, k=10)]
    random.Random(seed).shuffle(messages)
    story = told(*messages)
    assert ids(story.steps(0)) == ["a", "b", "c", "d", "b"]
    assert ids(story.steps(1)) == ["a", "c", "d", "e", "d", "f"]
    assert ids(story.steps(2)) == ["a", "c", "d", "e"]
    assert [story.recorded(id, 2) is not None for id in "abcdef"] == [True, False, True, True, True, False]
    latest = story.saved(2)
    assert latest is not None
    assert latest.snapshot.digest == "s3"
    undone = story.undone("f", 2)
    assert isinstance(undone, Told)
    assert undone.attempt == 1
    assert story.undone("a", 2) is None


def test_what_was_lost_without_a_snapshot_has_nothing_behind_it() -> None:
    story = told(began(0, "host"), done("a", 1), began(1, "host"))
    assert story.steps(1) == []
    assert story.saved(1) is None
    assert story.undone("a", 1) is not None


def test_what_sleeps_has_all_of_it_behind_it_also_before_it_wakes() -> None:
    step = Step(2, 0, "e1", 2)
    story = told(done("a", 1), saved("s1", (1, 2)), SandboxSlept("r", 0, 0, "n1", Snapshot("s1", "host")))
    assert story.knows(1)
    assert ids(story.steps(1)) == ["a"]
    story.take(Hibernated("h", "r", 0, 0, "s1", step), 1)
    assert ids(story.steps(1)) == ["a", "h"]
    assert story.recorded("h", 1) is not None
    story.take(began(1, "s1"), 1)
    assert ids(story.steps(1)) == ["a", "h"]


def test_of_two_snapshots_that_are_alike_the_later_one_counts() -> None:
    story = told(done("a", 1), saved("s1", (1, 1)), done("look", 2), saved("s1", (1, 2)), began(1, "s1"))
    assert ids(story.steps(1)) == ["a", "look"]


def test_a_hedge_is_a_first_attempt_and_one_after_it_goes_on_from_it() -> None:
    story = told(began(HEDGE, "host"), done("a", 1, HEDGE), saved("s1", (1, 1), attempt=HEDGE), began(1, "s1"))
    assert story.knows(HEDGE)
    assert ids(story.steps(HEDGE)) == ["a"]
    assert ids(story.steps(1)) == ["a"]
    assert not story.knows(2)
    assert story.last(2) == 1
    assert told(done("a", 1, HEDGE), began(HEDGE, "host")).last(1) == HEDGE
    assert told(done("a", 1), began(HEDGE, "host")).last(1) == 0


def test_what_was_not_carried_out_is_not_recorded_and_what_failed_is() -> None:
    def refused(code: str, number: int) -> CommandRefused:
        return CommandRefused(code, "r", 0, 0, code, "", None, Step(number, 0, "e1", 1), "read", None, "a")

    codes = ("asleep", "sandbox_gone", "answer_gone", "file_error")
    story = told(*(refused(code, number) for number, code in enumerate(codes, 1)))
    assert ids(story.steps(0)) == ["file_error"]
    story.take(refused("bad_request", 0), 1)  # never begun
    assert story.recorded("bad_request", 0) is None


def test_what_was_begun_and_must_not_be_again_is_known_without_its_end() -> None:
    def begun(attempt: int) -> StepBegun:
        return StepBegun("pay", "r", 0, attempt, Step(2, 0, "e1", 1, idempotent=False), "run", Command(line="pay"))

    story = told(done("a", 1), begun(0))
    assert story.undone("pay", 0) is None  # it is under way
    story.take(saved("s1", (1, 1)), 1)
    story.take(began(1, "s1"), 1)
    assert story.undone("pay", 1) == begun(0)
    story.take(begun(1), 1)
    assert story.undone("pay", 1) == begun(0)
    kept = told(done("a", 1), begun(0), done("pay", 2, idempotent=False), saved("s1", (1, 2)), began(1, "s1"))
    assert kept.undone("pay", 1) is None
    assert kept.recorded("pay", 1) is not None
