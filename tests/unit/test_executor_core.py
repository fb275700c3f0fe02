"""The executor's roster: every event in, exactly these effects out."""

import msgspec
import pytest

from shoal.wire.messages import (
    Command,
    CommandResult,
    DestroySandboxes,
    EndReason,
    Ranges,
    Resources,
    RunCommand,
    SandboxResult,
    Snapshot,
    StartSandboxes,
)
from shoal_executor import core as c
from shoal_executor.core.group import Group

BOOT = "b1"
KEY = ("r1", 0, "n1")


def order(
    indices: Ranges = ((0, 3),), commands: tuple[Command, ...] = (), attempt: int = 0, boot: str = BOOT
) -> StartSandboxes:
    return StartSandboxes(
        boot,
        "n1",
        "r1",
        "acme",
        "run",
        0,
        attempt,
        indices,
        Snapshot("host", "host"),
        Resources(),
        commands,
        (),
        (),
        "",
        10**13,
    )


def destroy(indices: Ranges = (), reason: EndReason = EndReason.RELEASED, boot: str = BOOT) -> DestroySandboxes:
    return DestroySandboxes(boot, "r1", indices, reason)


def ask(index: int, tenant: str = "acme", attempt: int = 0) -> RunCommand:
    return RunCommand("c1", tenant, "run", 0, "r1", index, attempt, Command(("true",)))


def test_interactive_life() -> None:
    core = c.ExecutorCore(BOOT)
    start = order()
    assert core.start(start) == [c.Start(KEY, start, ((0, 3),))]
    assert core.starting == 3
    assert core.started(KEY, ((1, 1),)) == [c.ReportReady(KEY, start, ((1, 1),), False)]
    assert core.command(ask(1)) == [c.CarryOut(KEY, ask(1))]
    assert core.destroy(destroy(((1, 1),))) == [c.Destroy(KEY, ((1, 1),))]  # whoever ordered it knows that it ends
    assert core.command(ask(1)) == [c.Refuse(ask(1), EndReason.RELEASED)]
    assert core.destroyed(KEY, ((1, 1),)) == [c.ReportReleased(KEY, start, ((1, 1),), True)]
    core.check()


def test_job_life_reports_the_result_and_ends_itself() -> None:
    core = c.ExecutorCore(BOOT)
    commands = (Command(("a",)), Command(("b",)))
    start = order(((4, 2),), commands)
    core.start(start)
    assert core.started(KEY, ((5, 1),)) == [
        c.ReportReady(KEY, start, ((5, 1),), True),
        c.RunJobs(KEY, ((5, 1),), commands[1:]),
    ]
    result = SandboxResult(5, CommandResult(0), 7)
    assert core.jobs_done(KEY, [result, result]) == [
        c.ReportFinished(KEY, start, ((5, 1),), (result,), True),
        c.Destroy(KEY, ((5, 1),)),
    ]
    assert core.jobs_done(KEY, [result]) == []
    assert core.destroyed(KEY, ((5, 1),)) == [c.ReportReleased(KEY, start, ((5, 1),), True)]
    assert core.start(start) == []  # 4 still starts, 5 is done: a repeat starts neither again
    core.started(KEY, ((4, 1),))
    last = SandboxResult(4, CommandResult(0), 7)
    assert core.jobs_done(KEY, [last])[0] == c.ReportFinished(KEY, start, ((4, 1),), (last,), False)
    assert core.destroyed(KEY, ((4, 1),)) == [c.ReportReleased(KEY, start, ((4, 1),), False)]
    core.check()


def test_many_at_once_are_as_each_alone() -> None:
    core = c.ExecutorCore(BOOT)
    command = Command(("x",))
    start = order(((0, 40),), (command,))
    core.start(start)
    assert core.start_failed(KEY, ((7, 2),), "no space") == [
        c.ReportEnded(KEY, start, ((7, 2),), EndReason.START_FAILED, "no space"),
        c.ReportReleased(KEY, start, ((7, 2),), True),
    ]
    assert core.destroy(destroy(((30, 1),))) == []
    up = ((0, 7), (9, 21), (31, 9))
    assert core.started(KEY, ((0, 40),)) == [
        c.ReportReady(KEY, start, up, True),
        c.RunJobs(KEY, up, (command,)),
        c.Destroy(KEY, ((30, 1),)),
    ]
    results = tuple(SandboxResult(index, CommandResult(0), 7) for index in (5, 3, 4))
    assert core.jobs_done(KEY, results) == [
        c.ReportFinished(KEY, start, ((3, 3),), results, True),
        c.Destroy(KEY, ((3, 3),)),
    ]
    assert core.destroyed(KEY, ((3, 3), (30, 1))) == [c.ReportReleased(KEY, start, ((3, 3), (30, 1)), True)]
    assert (core.live, core.starting) == (34, 0)
    core.check()


def test_each_has_its_own_command_whatever_was_ordered_with_it() -> None:
    core = c.ExecutorCore(BOOT)
    a, b = Command(("a",)), Command(("b",))
    core.start(order(((0, 2),), (a, b)))
    core.start(order(((2, 1),), (a,)))
    core.start(order(((3, 2),), (b, a)))
    for index, command in ((1, b), (0, a)):
        (_, run) = core.started(KEY, ((index, 1),))
        assert run == c.RunJobs(KEY, ((index, 1),), (command,))
        core.jobs_done(KEY, [SandboxResult(index, CommandResult(0), 1)])
        core.destroyed(KEY, ((index, 1),))
    assert core.started(KEY, ((2, 2),))[1] == c.RunJobs(KEY, ((2, 2),), (a, b))
    copy = c.ExecutorCore(BOOT)
    copy.load(core.dump())
    for each in (core, copy):
        assert each.started(KEY, ((4, 1),))[1] == c.RunJobs(KEY, ((4, 1),), (a,))
    core.check()


def test_of_what_ended_long_ago_nobody_knows_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_executor.core.ended.REMEMBERED_ENDS", 4)
    core = c.ExecutorCore(BOOT)
    for rollout in ("r1", "r2", "r3"):
        start = msgspec.structs.replace(order(((0, 2),)), rollout=rollout)
        core.start(start)
        core.destroy(msgspec.structs.replace(destroy(), rollout=rollout))
    known = [msgspec.structs.replace(ask(0), rollout=rollout) for rollout in ("r1", "r2", "r3")]
    core.started(("r1", 0, "n1"), ((0, 2),))
    core.destroyed(("r1", 0, "n1"), ((0, 2),))
    assert core.command(known[0]) == [c.Refuse(known[0], None)]
    assert core.command(known[1]) == [c.Refuse(known[1], EndReason.RELEASED)]
    copy = c.ExecutorCore(BOOT)
    copy.load(core.dump())
    assert copy.command(known[2]) == [c.Refuse(known[2], EndReason.RELEASED)]
    core.check()


def test_sandboxes_of_one_group_may_start_from_different_snapshots() -> None:
    core = c.ExecutorCore(BOOT)
    first, *others = (
        msgspec.structs.replace(order(((index, 1),), attempt=1), snapshot=Snapshot(f"kept-{index}", "host"))
        for index in range(3)
    )
    key = ("r1", 1, "n1")
    for each in (first, *others):
        (start,) = core.start(each)
        assert isinstance(start, c.Start)
        assert start.order.snapshot == each.snapshot
    copy = c.ExecutorCore(BOOT)
    copy.load(core.dump())
    assert copy.dump() == core.dump()
    for index in range(3):
        assert copy.groups[key].order_of(index).snapshot.digest == f"kept-{index}"
        copy.started(key, ((index, 1),))
    slept = copy.slept(key, 2, Snapshot("asleep", "host"))
    assert slept == [c.ReportSlept(key, first, 2, Snapshot("asleep", "host")), c.Destroy(key, ((2, 1),))]
    asked = ask(2, attempt=1)
    assert copy.command(asked) == [c.Refuse(asked, None, asleep=True)]
    assert copy.slept(key, 2, Snapshot("again", "host")) == []
    copy.destroyed(key, ((2, 1),))
    assert copy.command(asked) == [c.Refuse(asked, None, asleep=True)]
    copy.check()


def test_a_start_for_another_life_is_nothing() -> None:
    core = c.ExecutorCore(BOOT)
    assert core.start(order(boot="older")) == []
    assert core.groups == {}


def test_ended_while_starting_is_destroyed_once_it_has_started_and_never_reported_ready() -> None:
    core = c.ExecutorCore(BOOT)
    start = order(((0, 1),))
    core.start(start)
    assert core.destroy(destroy(reason=EndReason.CANCELLED)) == []
    assert core.started(KEY, ((0, 1),)) == [c.Destroy(KEY, ((0, 1),))]
    assert core.destroyed(KEY, ((0, 1),)) == [c.ReportReleased(KEY, start, ((0, 1),))]


def test_failed_start_frees_the_slot() -> None:
    core = c.ExecutorCore(BOOT)
    start = order(((0, 1),))
    core.start(start)
    assert core.start_failed(KEY, ((0, 1),), "no space") == [
        c.ReportEnded(KEY, start, ((0, 1),), EndReason.START_FAILED, "no space"),
        c.ReportReleased(KEY, start, ((0, 1),)),
    ]
    assert core.groups == {}


def test_death_is_reported_with_its_reason_and_cleared_away() -> None:
    core = c.ExecutorCore(BOOT)
    start = order(((0, 1),))
    core.start(start)
    core.started(KEY, ((0, 1),))
    assert core.exited(KEY, 0, EndReason.OUT_OF_MEMORY, "x") == [
        c.ReportEnded(KEY, start, ((0, 1),), EndReason.OUT_OF_MEMORY, "x"),
        c.Destroy(KEY, ((0, 1),)),
    ]
    assert core.command(ask(0)) == [c.Refuse(ask(0), EndReason.OUT_OF_MEMORY)]


def test_another_tenants_sandbox_does_not_exist() -> None:
    core = c.ExecutorCore(BOOT)
    core.start(order())
    core.started(KEY, ((0, 1),))
    assert core.command(ask(0, tenant="other")) == [c.Refuse(ask(0, tenant="other"), None)]


def test_the_rollouts_end_is_a_backstop() -> None:
    core = c.ExecutorCore(BOOT)
    start = order(((0, 2),))
    core.start(start)
    core.started(KEY, ((0, 1),))
    effects = core.expire(KEY)
    assert isinstance(effects[0], c.ReportEnded)
    assert effects[0].reason is EndReason.TIMED_OUT
    assert effects[1] == c.Destroy(KEY, ((0, 1),))  # 1 is still starting


def expired(core: c.ExecutorCore, key: c.Key = KEY) -> dict[EndReason, Ranges]:
    core.check()
    return {each.reason: each.indices for each in core.expire(key) if isinstance(each, c.ReportEnded)}


def due(indices: Ranges, ready_by_ms: int, attempt: int = 0) -> StartSandboxes:
    """Return an order that is due at 2,000; what it says is by the broker's clock."""
    ready_by_ms += (10**13 - 2_000) * bool(ready_by_ms)
    return msgspec.structs.replace(order(indices, attempt=attempt), ready_by_ms=ready_by_ms)


@pytest.mark.parametrize("again", [False, True])
def test_what_was_there_too_late_for_half_of_its_rollouts_time_ends_as_that(again: bool) -> None:
    core = c.ExecutorCore(BOOT)
    core.start(due(((0, 5),), 1_000), 2_000)
    core.started(KEY, ((0, 1),), 1_000)
    core.started(KEY, ((1, 2),), 1_001)
    core.started(KEY, ((4, 1),), 1_001)
    core.destroy(destroy(((4, 1),)))
    if again:  # another process
        kept, core = core.dump(), c.ExecutorCore("")
        core.load(kept)
        assert core.dump() == kept
    assert expired(core) == {EndReason.DEADLINE: ((1, 3),), EndReason.TIMED_OUT: ((0, 1),)}
    assert core.command(ask(1)) == [c.Refuse(ask(1), EndReason.DEADLINE)]
    assert core.command(ask(0)) == [c.Refuse(ask(0), EndReason.TIMED_OUT)]
    core.destroyed(KEY, ((0, 3),))
    core.started(KEY, ((3, 1),), 2_000)
    core.destroyed(KEY, ((3, 2),))
    assert not core.groups


@pytest.mark.parametrize("first_ms", [0, 1_000])
def test_those_that_are_woken_at_different_times_have_each_its_own(first_ms: int) -> None:
    core, key = c.ExecutorCore(BOOT), ("r1", 1, "n1")
    core.start(due(((0, 1),), first_ms, attempt=1), 2_000)
    core.start(due(((1, 1),), 1_200, attempt=1), 2_000)
    core.start(due(((2, 1),), 2_100, attempt=1), 2_000)  # woken so late that it need not be there at all
    kept, core = core.dump(), c.ExecutorCore("")
    core.load(kept)
    core.started(key, ((0, 2),), 1_100)
    late = {EndReason.DEADLINE: ((0, 1),)} if first_ms else {}
    assert expired(core, key) == {**late, EndReason.TIMED_OUT: ((1, 2),) if first_ms else ((0, 3),)}


def test_an_order_for_one_sandbox_says_by_when_that_one_has_to_be_ready() -> None:
    kept = Snapshot("kept", "kept")
    group = Group(order(((0, 3),)), due_ms=10_000)
    group.order = msgspec.structs.replace(group.order, deadline_ms=110_000, ready_by_ms=105_000)
    group.snapshots |= {1: kept, 2: kept}
    group.ready_by_ms[2] = 108_000
    assert [group.order_of(index).ready_by_ms for index in range(3)] == [105_000, 105_000, 108_000]
    assert [(each.ready_by_ms, some) for each, some in group.orders_of(0b111)] == [
        (105_000, ((0, 1),)), (105_000, ((1, 1),)), (108_000, ((2, 1),)),
    ]  # fmt: skip
    assert [group.here_ms(moment) for moment in (0, 105_000, 110_000)] == [0, 5_000, 10_000]
