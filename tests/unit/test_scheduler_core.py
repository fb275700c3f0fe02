from typing import Any

import pytest

from shoal.machine.core import Cause, LawBrokenError
from shoal.wire import messages as m
from shoal_scheduler.core.admission import problem
from shoal_scheduler.core.scheduler import SchedulerCore

HOST = m.Snapshot("host", "host")


def fold(core: SchedulerCore, message: Any, now: int = 1) -> list[Any]:
    effects = core.handle(message, Cause("S", now, now))
    core.check()
    return [effect.message for effect in effects]  # type: ignore[union-attr]


def submitted(n: int = 4, slots: int = 10) -> tuple[SchedulerCore, list[Any]]:
    core = SchedulerCore(0)
    fold(core, m.CellCapacity(slots, 1, ("zygote",)))
    fold(core, m.RolloutSubmitted("r", "t", "run", m.RolloutSpec("host", n, timeout_ms=1000)))
    return core, fold(core, m.TemplateResolved("t", "host", HOST))


def test_partial_dispatch_says_what_waits() -> None:
    _, said = submitted(n=4, slots=3)
    assert said[0].indices == ((0, 3),)
    assert said[1] == m.RolloutQueued("r", 0, 1, "waiting for 1 slot of 256 MiB")


@pytest.mark.parametrize(("cells", "where"), [(1, ""), (2, " in cell 1, to which it belongs")])
def test_where_no_node_is_alive_it_is_not_said_that_none_ever_came(cells: int, where: str) -> None:
    core = SchedulerCore(cells - 1, cells=cells)
    fold(core, m.CellCapacity(10, 1, ("zygote",)))
    fold(core, m.CellCapacity(0, 0, ()))
    fold(core, m.RolloutSubmitted("r", "t", "run", m.RolloutSpec("host", 1, timeout_ms=1000)))
    said = [*fold(core, m.TemplateResolved("t", "host", HOST)), *fold(core, m.Tick(2_000), 2_000)]
    assert [each.reason for each in said if isinstance(each, m.RolloutQueued)] == [f"no node is alive{where}"]


def test_what_a_trainer_gave_up_is_its_own_affair() -> None:
    core, _ = submitted()
    before = core.dump()
    assert fold(core, m.StepsGivenUp("r", (m.StepGivenUp(0, 0, "#1"), m.StepGivenUp(9, 9, "no such")))) == []
    assert fold(core, m.StepsGivenUp("no such", ())) == []
    assert core.dump() == before


def test_release_of_part_then_the_deadline() -> None:
    core, _ = submitted()
    released = m.RolloutReleased("r", ((1, 2),))
    assert fold(core, released) == [m.ReleaseRequested("r", ((1, 2),), m.EndReason.RELEASED)]
    assert fold(core, released) == []
    assert core.wake_at_ms() == 1001
    said = fold(core, m.Tick(1001), 1001)
    assert said[-1] == m.RolloutConcluded(
        "r", ((m.EndReason.RELEASED, 2), (m.EndReason.DEADLINE, 2)), "timed_out", (), ((0, 1), (3, 1))
    )


def test_a_failed_start_is_tried_elsewhere() -> None:
    core, _ = submitted()
    (again,) = fold(core, m.SandboxesEnded("r", 0, ((2, 1),), "n1", m.EndReason.START_FAILED))
    assert (again.attempt, again.indices, again.avoid) == (1, ((2, 1),), ("n1",))


def test_a_sandbox_waits_for_its_own_failures_and_not_for_those_of_others() -> None:
    core = SchedulerCore(0)
    fold(core, m.CellCapacity(100, 50, ("zygote",)))  # on so many nodes it is not the template that fails
    spec = m.RolloutSpec("host", 8, timeout_ms=600_000, max_attempts=9)
    fold(core, m.RolloutSubmitted("r", "t", "run", spec))
    fold(core, m.TemplateResolved("t", "host", HOST))
    for index in range(8):  # each fails once, one after the other: each is tried again at once
        (again,) = fold(core, m.SandboxesEnded("r", 0, ((index, 1),), "n1", m.EndReason.START_FAILED))
        assert (again.attempt, again.indices) == (1, ((index, 1),))
    waits, now = [], 1
    for attempt in range(1, 9):  # one that fails again and again waits twice as long each time
        said = fold(core, m.SandboxesEnded("r", attempt, ((3, 1),), "n2", m.EndReason.START_FAILED), now)
        if attempt == 8:
            break  # its starts are used up
        assert [each for each in said if isinstance(each, m.PlaceRequested)] == []
        wake = core.wake_at_ms()
        assert wake is not None
        waits.append(wake - now)
        now = wake
        (again,) = [each for each in fold(core, m.Tick(now), now) if isinstance(each, m.PlaceRequested)]
        assert (again.attempt, again.indices) == (attempt + 1, ((3, 1),))
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000]


def test_an_impossible_report_changes_nothing() -> None:
    core, _ = submitted()
    with pytest.raises(LawBrokenError):
        fold(core, m.SandboxesReady("r", 0, ((3, 2),), "n", "e", "zygote"))
    core.check()


@pytest.mark.parametrize("n", [0, 100_001])
def test_a_refusal_names_the_field(n: int) -> None:
    refused = problem(m.RolloutSpec("host", n))
    assert refused is not None
    assert refused[0] == "bad_request"
    assert refused[1].startswith("n:")


@pytest.mark.parametrize("source", ["oci:/images/v1", "docker://alpine", "docker-archive:/a.tar", "template:tools"])
def test_what_templates_are_made_of_is_to_be_built_first(source: str) -> None:
    refused = problem(m.RolloutSpec(source, 1))
    assert refused is not None
    assert refused[0] == "unknown_template"
    assert "build a template of it first" in refused[1]


def test_the_environment_has_a_limit_in_bytes() -> None:
    full = ("A", "x" * (128 * 1024 - 3))
    assert problem(m.RolloutSpec("host", 1, env=(full,))) is None
    for more in (("B", ""), ("A", "\u00e9" * (64 * 1024))):
        refused = problem(m.RolloutSpec("host", 1, env=(full, more)))
        assert refused is not None
        assert refused[0] == "bad_request"
        assert refused[1].startswith("env:")
        assert "at most 131072" in refused[1]


def test_from_the_first_tenant_on_strangers_are_told_and_put_aside() -> None:
    core = SchedulerCore(0)
    fold(core, m.RolloutSubmitted("r1", "anyone", "run", m.RolloutSpec("host", 1)))
    fold(core, m.TenantAdded("acme"))
    before = core.dump()
    with pytest.raises(LawBrokenError, match=r"there is no 'stranger'.*shoal tenant add") as caught:
        fold(core, m.RolloutSubmitted("r2", "stranger", "run", m.RolloutSpec("host", 1)))
    (answer,) = caught.value.answers
    assert answer.subject == "shoal.rollout.0.stranger.run.outcome"
    assert isinstance(answer.message, m.RolloutRejected)
    assert answer.message.code == "unknown_tenant"
    assert core.dump() == before
    fold(core, m.RolloutSubmitted("r3", "acme", "run", m.RolloutSpec("host", 1)))
    fold(core, m.TenantRemoved("acme"))
    fold(core, m.RolloutSubmitted("r2", "stranger", "run", m.RolloutSpec("host", 1)))
    with pytest.raises(LawBrokenError):
        fold(core, m.TenantAdded("no.token"))


def test_a_lost_sandbox_resumes_from_what_was_kept_of_it_and_the_others_from_the_start() -> None:
    core = SchedulerCore(0)
    fold(core, m.CellCapacity(10, 1, ("zygote",)))
    fold(core, m.RolloutSubmitted("r", "t", "run", m.RolloutSpec("host", 4, on_lost=m.OnLost.RESUME)))
    fold(core, m.TemplateResolved("t", "host", HOST))
    fold(core, m.SandboxesReady("r", 0, ((0, 4),), "n1", "e", "zygote"))
    kept = [m.Snapshot(f"kept-{number}", "host", layers=(m.Blob("ab", 1),)) for number in range(3)]
    for number, index in enumerate((1, 1, 2)):  # the last one counts
        assert fold(core, m.SandboxSaved("r", 0, index, kept[number])) == []
    with pytest.raises(LawBrokenError):
        fold(core, m.SandboxSaved("r", 0, 4, kept[0]))
    copy = SchedulerCore(0)
    copy.load(core.dump())
    said = fold(copy, m.SandboxesEnded("r", 0, ((0, 3),), "n1", m.EndReason.NODE_LOST))
    assert [(each.attempt, each.indices, each.snapshot.digest) for each in said] == [
        (1, ((0, 1),), "host"), (1, ((1, 1),), "kept-1"), (1, ((2, 1),), "kept-2"),
    ]  # fmt: skip
    assert fold(copy, m.SandboxSaved("r", 0, 1, kept[0])) == []  # of the attempt that was lost
    said = fold(copy, m.SandboxesEnded("r", 1, ((1, 1),), "n2", m.EndReason.NODE_LOST))
    assert [each.snapshot.digest for each in said] == ["kept-1"]


FILES = (m.InputFile("task", b"given"),)


def test_a_sleeping_sandbox_occupies_nothing_and_wakes_from_what_was_kept_of_it() -> None:
    core = SchedulerCore(0)
    fold(core, m.CellCapacity(2, 1, ("zygote",)))
    fold(core, m.RolloutSubmitted("r", "t", "run", m.RolloutSpec("host", 3, files=FILES, on_lost=m.OnLost.RESTART)))
    fold(core, m.TemplateResolved("t", "host", HOST))
    fold(core, m.SandboxesReady("r", 0, ((0, 2),), "n1", "e", "zygote"))
    kept = m.Snapshot("kept", "host")
    place, _ = fold(core, m.SandboxSlept("r", 0, 1, "n1", kept))
    assert (place.attempt, place.indices) == (0, ((2, 1),))  # in its place
    assert fold(core, m.SandboxSlept("r", 0, 1, "n1", kept)) == []
    assert fold(core, m.SandboxesEnded("r", 0, ((1, 1),), "n1", m.EndReason.NODE_LOST)) == []  # it was not there
    copy = SchedulerCore(0)
    copy.load(core.dump())
    (queued,) = fold(copy, m.SandboxesWanted("r", ((0, 3),)))  # those that do not sleep are none the wiser
    assert (queued.waiting, queued.reason) == (1, "waiting for 1 slot of 256 MiB")
    assert fold(copy, m.SandboxesWanted("r", ((1, 1),))) == []
    (place,) = fold(copy, m.RolloutReleased("r", ((2, 1),)))[1:]
    assert (place.attempt, place.indices, place.snapshot) == (1, ((1, 1),), kept)
    assert place.spec.files == ()  # they are in it, as the agent left them
    fold(copy, m.SandboxesReady("r", 1, ((1, 1),), "n1", "e", "zygote"))
    (place,) = fold(copy, m.SandboxesEnded("r", 1, ((1, 1),), "n1", m.EndReason.NODE_LOST))
    assert (place.attempt, place.snapshot, place.spec.files) == (2, HOST, FILES)  # as its policy says
    fold(core, m.RolloutReleased("r", ((0, 1), (2, 1))))
    (over,) = fold(core, m.RolloutReleased("r", ((1, 1),)))  # nothing of it is anywhere to be released
    assert isinstance(over, m.RolloutConcluded)


def test_nothing_is_kept_for_a_rollout_that_does_not_resume() -> None:
    core, _ = submitted()
    before = core.dump()
    fold(core, m.SandboxSaved("r", 0, 1, m.Snapshot("kept", "host")))
    assert core.dump() == before


def test_a_name_is_asked_for_anew_each_time_and_a_digest_is_not() -> None:
    core = SchedulerCore(0)
    for number, template in enumerate(("mine", "mine", "snapshot:0123456789", "snapshot:0123456789")):
        said = fold(core, m.RolloutSubmitted(f"r{number}", "t", "run", m.RolloutSpec(template, 1)))
        assert any(isinstance(each, m.ResolveTemplate) for each in said) == (number != 3)
        fold(core, m.TemplateResolved("t", template, m.Snapshot(f"d{number}", "host")))


def test_warm_code_makes_a_template_of_its_own_for_its_isolation() -> None:
    core = SchedulerCore(0)
    fold(core, m.CellCapacity(10, 1, ("zygote",)))
    fold(core, m.RolloutSubmitted("r", "t", "run", m.RolloutSpec("host", 1, warm="import json")))
    place = fold(core, m.TemplateResolved("t", "host", HOST))[0]
    assert (place.snapshot.kind, place.snapshot.warm, place.spec.isolation) == ("host", "import json", "zygote")
    assert place.snapshot.digest not in ("", "host")
    fold(core, m.RolloutSubmitted("r2", "t", "run", m.RolloutSpec("host", 1)))
    fold(core, m.CellCapacity(10, 1, ("simulated", "zygote")))
    said = fold(core, m.RolloutSubmitted("r3", "t", "run", m.RolloutSpec("host", 1, warm="x", isolation="simulated")))
    said += fold(core, m.TemplateResolved("t", "host", HOST))
    assert [each.code for each in said if isinstance(each, m.RolloutRejected)] == ["unsupported_isolation"]
