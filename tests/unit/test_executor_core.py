"""The executor's roster: every event in, exactly these effects out."""

import msgspec
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.machine import ranges
from shoal.wire.messages import (
    Command,
    CommandResult,
    DestroySandboxes,
    EndReason,
    Ranges,
    Resources,
    RunCommand,
    Snapshot,
    StartSandboxes,
)
from shoal_executor import core as c

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
    assert core.started(KEY, 1) == [c.ReportReady(KEY, start, 1, False)]
    assert core.command(ask(1)) == [c.CarryOut(KEY, ask(1))]
    assert core.destroy(destroy(((1, 1),))) == [
        c.ReportEnded(KEY, start, ((1, 1),), EndReason.RELEASED, ""),
        c.Destroy(KEY, ((1, 1),)),
    ]
    assert core.command(ask(1)) == [c.Refuse(ask(1), EndReason.RELEASED)]
    assert core.destroyed(KEY, ((1, 1),)) == [c.ReportReleased(KEY, start, ((1, 1),))]
    core.check()


def test_job_life_reports_the_result_and_ends_itself() -> None:
    core = c.ExecutorCore(BOOT)
    commands = (Command(("a",)), Command(("b",)))
    start = order(((4, 2),), commands)
    core.start(start)
    assert core.started(KEY, 5) == [c.ReportReady(KEY, start, 5, True), c.RunJob(KEY, 5, commands[1])]
    result = CommandResult(0)
    assert core.job_done(KEY, 5, result, 7) == [c.ReportFinished(KEY, start, 5, result, 7), c.Destroy(KEY, ((5, 1),))]
    assert core.job_done(KEY, 5, result, 7) == []
    assert core.destroyed(KEY, ((5, 1),)) == [c.ReportReleased(KEY, start, ((5, 1),))]
    assert core.start(start) == []  # 4 still starts, 5 is done: a repeat starts neither again
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
        copy.started(key, index)
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
    assert core.destroy(destroy(reason=EndReason.CANCELLED)) == [
        c.ReportEnded(KEY, start, ((0, 1),), EndReason.CANCELLED, "")
    ]
    assert core.started(KEY, 0) == [c.Destroy(KEY, ((0, 1),))]
    assert core.destroyed(KEY, ((0, 1),)) == [c.ReportReleased(KEY, start, ((0, 1),))]


def test_failed_start_frees_the_slot() -> None:
    core = c.ExecutorCore(BOOT)
    start = order(((0, 1),))
    core.start(start)
    assert core.start_failed(KEY, 0, "no space") == [
        c.ReportEnded(KEY, start, ((0, 1),), EndReason.START_FAILED, "no space"),
        c.ReportReleased(KEY, start, ((0, 1),)),
    ]
    assert core.groups == {}


def test_death_is_reported_with_its_reason_and_cleared_away() -> None:
    core = c.ExecutorCore(BOOT)
    start = order(((0, 1),))
    core.start(start)
    core.started(KEY, 0)
    assert core.exited(KEY, 0, EndReason.OUT_OF_MEMORY, "x") == [
        c.ReportEnded(KEY, start, ((0, 1),), EndReason.OUT_OF_MEMORY, "x"),
        c.Destroy(KEY, ((0, 1),)),
    ]
    assert core.command(ask(0)) == [c.Refuse(ask(0), EndReason.OUT_OF_MEMORY)]


def test_another_tenants_sandbox_does_not_exist() -> None:
    core = c.ExecutorCore(BOOT)
    core.start(order())
    core.started(KEY, 0)
    assert core.command(ask(0, tenant="other")) == [c.Refuse(ask(0, tenant="other"), None)]


def test_the_rollouts_end_is_a_backstop() -> None:
    core = c.ExecutorCore(BOOT)
    start = order(((0, 2),))
    core.start(start)
    core.started(KEY, 0)
    effects = core.expire(KEY)
    assert isinstance(effects[0], c.ReportEnded)
    assert effects[0].reason is EndReason.TIMED_OUT
    assert effects[1] == c.Destroy(KEY, ((0, 1),))  # 1 is still starting


class Roster(RuleBasedStateMachine):
    """Any order of events: each sandbox is reported ended or finished at most once, and freed exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.core = c.ExecutorCore(BOOT)
        self.ordered: set[tuple[int, int]] = set()
        self.starting: list[tuple[int, int]] = []
        self.running: list[tuple[int, int]] = []
        self.destroying: list[tuple[int, int]] = []
        self.concluded: list[tuple[int, int]] = []
        self.released: list[tuple[int, int]] = []

    def take(self, effects: list[c.Effect]) -> None:
        for effect in effects:
            match effect:
                case c.Start(group=key, indices=indices):
                    self.starting += [(i, key[1]) for i in ranges.indices(indices)]
                case c.RunJob(group=key, index=index):
                    self.running.append((index, key[1]))
                case c.Destroy(group=key, indices=indices):
                    self.destroying += [(i, key[1]) for i in ranges.indices(indices)]
                case c.ReportEnded(group=key, indices=indices):
                    self.concluded += [(i, key[1]) for i in ranges.indices(indices)]
                case c.ReportFinished(group=key, index=index):
                    self.concluded.append((index, key[1]))
                case c.ReportReleased(group=key, indices=indices):
                    self.released += [(i, key[1]) for i in ranges.indices(indices)]
                case _:
                    pass

    @rule(first=st.integers(0, 5), count=st.integers(1, 4), attempt=st.integers(0, 1), job=st.booleans())
    def start(self, first: int, count: int, attempt: int, job: bool) -> None:
        indices: Ranges = ((first, count),)
        self.ordered |= {(i, attempt) for i in ranges.indices(indices)}
        commands = (Command(("x",)),) if job else ()
        self.take(self.core.start(order(indices, commands, attempt)))

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), fails=st.booleans(), repeat=st.booleans())
    def start_ends(self, data: st.DataObject, fails: bool, repeat: bool) -> None:
        index, attempt = self.starting.pop(data.draw(st.integers(0, len(self.starting) - 1)))
        key = ("r1", attempt, "n1")
        for _ in range(1 + repeat if not fails else 1):
            self.take(self.core.start_failed(key, index, "") if fails else self.core.started(key, index))

    @precondition(lambda self: self.running)
    @rule(repeat=st.booleans())
    def job_ends(self, repeat: bool) -> None:
        index, attempt = self.running.pop()
        for _ in range(1 + repeat):
            self.take(self.core.job_done(("r1", attempt, "n1"), index, CommandResult(0), 1))

    @precondition(lambda self: self.destroying)
    @rule(repeat=st.booleans())
    def destroy_ends(self, repeat: bool) -> None:
        index, attempt = self.destroying.pop()
        for _ in range(1 + repeat):
            self.take(self.core.destroyed(("r1", attempt, "n1"), ((index, 1),)))

    @rule(first=st.integers(0, 5), every=st.booleans())
    def destroy(self, first: int, every: bool) -> None:
        self.take(self.core.destroy(destroy(() if every else ((first, 2),))))

    @rule(index=st.integers(0, 8), attempt=st.integers(0, 1))
    def dies(self, index: int, attempt: int) -> None:
        self.take(self.core.exited(("r1", attempt, "n1"), index, EndReason.DIED, ""))

    @invariant()
    def holds(self) -> None:
        self.core.check()
        assert len(self.concluded) == len(set(self.concluded))
        assert len(self.released) == len(set(self.released))
        assert set(self.released) <= set(self.concluded)

    def teardown(self) -> None:
        """Everything that was begun ends, and then nothing is held and every slot was freed."""
        self.take(self.core.destroy(destroy()))
        while self.starting:
            index, attempt = self.starting.pop()
            self.take(self.core.started(("r1", attempt, "n1"), index))
        while self.destroying:
            index, attempt = self.destroying.pop()
            self.take(self.core.destroyed(("r1", attempt, "n1"), ((index, 1),)))
        assert self.core.groups == {}
        assert set(self.released) == set(self.concluded) == self.ordered


TestRoster = Roster.TestCase
TestRoster.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
