"""Where a trainer's handle believes its sandbox to be, whichever of two logs tells first."""

import asyncio

import pytest

import shoal
from shoal.client.fold import Ready
from shoal.client.pending import Pending
from shoal.client.presence import Presence
from shoal.wire.messages import Command, CommandFinished, CommandRefused, CommandResult, EndReason, FileRead, Step

LOST = EndReason.NODE_LOST


def ready(attempt: int = 0, *, asleep: bool = False) -> Ready:
    return Ready(3, attempt, "" if asleep else "n1", "" if asleep else "e1", "zygote", 0, asleep=asleep)


class Wakes:
    """Counts for which attempts a sandbox was asked for."""

    def __init__(self) -> None:
        self.attempts: list[int] = []

    def __call__(self, attempt: int) -> "asyncio.Future[None]":
        self.attempts.append(attempt)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


async def test_what_a_loss_undid_is_told_once_by_the_next_operation() -> None:
    presence = Presence("r-3", ready(), Wakes())
    for number, what in enumerate(("a", "b", "c"), 1):
        presence.done(number, what)
    presence.kept(0, ((1, 1),))
    presence.kept(9, ((1, 3),))  # of another attempt
    presence.lost(LOST, "gone")
    with pytest.raises(shoal.SandboxResumed, match="2 commands") as told:
        await presence.here()
    assert (told.value.undone, told.value.under_way) == (("b", "c"), 0)
    waiting = asyncio.create_task(presence.here())
    await asyncio.sleep(0)
    assert not waiting.done()
    presence.back(ready(1))
    await waiting
    presence.lost(LOST, "gone again")  # nothing was done since
    presence.back(ready(2))
    await presence.here()


async def test_of_very_many_undone_the_last_are_named_and_all_are_counted() -> None:
    presence = Presence("r-3", ready(), Wakes())
    for number in range(1, 5002):
        presence.done(number, f"c{number}")
        presence.done(max(number - 3000, 1), "once more")
    presence.kept(0, ((1, 1000), (1002, 3999)))
    told = presence.lost(LOST, "gone")
    assert (told.count, told.undone[-1]) == (2, "c5001")


async def test_what_has_its_answer_when_a_loss_is_told_is_undone_and_does_not_tell() -> None:
    presence = Presence("r-3", ready(), Wakes())
    head = ("r-3:x", "r", 3, 0)
    finished, read = Pending(None), Pending(None)  # nobody has looked at their answers yet
    finished.resolve(CommandFinished(*head, Command(line="a"), CommandResult(0), Step(1)))
    read.resolve(FileRead(*head, "f", b"", 0, True, Step(2)))
    presence.pending.update((finished, read))
    presence.lost(LOST, "gone")
    presence.done(1, "a")  # now somebody has
    presence.back(ready(1))
    with pytest.raises(shoal.SandboxResumed) as told:
        await presence.here()
    assert (told.value.undone, told.value.under_way) == (("a",), 0)
    presence.lost(LOST, "gone again")  # and that is not undone once more
    presence.back(ready(2))
    await presence.here()


@pytest.mark.parametrize("log_first", [True, False])
async def test_whoever_tells_of_a_loss_first_the_trainer_hears_all_of_it(log_first: bool) -> None:
    presence = Presence("r-3", ready(), Wakes())
    presence.done(1, "a")
    answered = Pending(None)  # its refusal has come, and nobody has looked at it yet
    answered.resolve(CommandRefused("r-3:x", "r", 3, 0, "sandbox_gone", "it is gone", LOST))
    presence.pending.add(answered)
    if log_first:
        presence.lost(LOST, "by the log")
        presence.pending.clear()
        told = presence.lost(LOST, "by the answer", told=True, attempt=0)
    else:
        presence.pending.clear()
        told = presence.lost(LOST, "by the answer", told=True, attempt=0)
        assert presence.lost(LOST, "by the log") is told
    assert told.undone == ("a",)
    assert told.under_way == 1
    presence.back(ready(1))
    await presence.here()  # it was told
    presence.done(1, "b")
    assert presence.lost(LOST, "late", told=True, attempt=0) is told  # an answer of the attempt that was lost
    await presence.here()


async def test_one_that_sleeps_is_asked_for_when_the_log_has_told_of_it() -> None:
    wakes = Wakes()
    presence = Presence("r-3", ready(), wakes)
    presence.slept(0, 30)
    presence.slept(0, 30)
    assert (presence.asleep, presence.attempt, presence.node) == (True, 1, "")
    waiting = [asyncio.create_task(presence.here()) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert wakes.attempts == []
    presence.slept(0, 30, logged=True)
    await asyncio.sleep(0.01)
    assert wakes.attempts == [1, 1]
    presence.back(ready(1))
    await asyncio.gather(*waiting)
    found = Presence("r-3", ready(4, asleep=True), wakes)
    waiting = [asyncio.create_task(found.here())]
    await asyncio.sleep(0.01)
    assert wakes.attempts == [1, 1, 4]
    found.ended(lambda: shoal.SandboxEnded("r-3", EndReason.RELEASED))
    with pytest.raises(shoal.SandboxEnded):
        await waiting[0]


async def test_a_command_that_a_sleep_leaves_in_doubt_is_given_up_in_time() -> None:
    presence = Presence("r-3", ready(), Wakes())
    under_way = Pending(None)
    presence.pending.add(under_way)
    presence.slept(0, 0.01, logged=True)
    with pytest.raises(shoal.Timeout, match="went to sleep"):
        await under_way.answer
