"""Who did what, when, to which sandbox."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

import shoal.archive
from archive.cluster import Cluster
from archive.test_stories import RECORDED, rollouts
from shoal.archive.auditing import OPERATOR, Deed, audit, shell
from shoal.archive.source import History
from shoal.cli.audit import as_object, line
from shoal.wire import messages as m, subjects
from shoal.wire.messages import Command


@pytest.fixture
async def agents() -> AsyncIterator[History]:
    async with shoal.archive.open(RECORDED / "agents.shoal") as history:
        yield history


async def deeds(history: History, **options: Any) -> list[Deed]:
    return [deed async for deed in audit(history, **options)]


async def test_everything_that_was_done(agents: History) -> None:
    found = await deeds(agents)
    names = await rollouts(agents)
    assert Counter((deed.who, deed.run, deed.what) for deed in found) == {
        (OPERATOR, "", "tenant_added"): 1, (OPERATOR, "", "tenant_limited"): 1, (OPERATOR, "", "tenant_removed"): 1,
        ("default", "agent", "submitted"): 2, ("default", "agent", "command"): 11,
        ("default", "agent", "file_written"): 1, ("default", "agent", "file_read"): 1,
        ("default", "agent", "snapshot_taken"): 2, ("default", "agent", "rolled_back"): 1,
        ("default", "agent", "hibernated"): 1, ("default", "agent", "woken"): 1, ("default", "agent", "released"): 1,
        ("default", "jobs", "submitted"): 1, ("default", "jobs", "command"): 12,
        ("default", "cancelled", "submitted"): 1, ("default", "cancelled", "cancelled"): 1,
    }  # fmt: skip
    jobs = [deed for deed in found if deed.run == "jobs" and deed.what == "command"]
    assert {(deed.detail, deed.exit_code) for deed in jobs} == {("true", 0), ("exit 4", 4), ("sleep 0.1", 0)}
    assert {deed.subject for deed in jobs} == {f"{names['jobs']}-{index}" for index in range(12)}
    assert all(deed.ended_ms is not None and deed.ended_ms >= deed.time_ms for deed in jobs)
    (failed,) = [deed for deed in found if deed.detail == "cat a.txt; exit 3"]
    assert (failed.exit_code, failed.outcome, failed.subject.partition("-")[0]) == (3, "exit 3", names["agent"])
    (limited,) = [deed for deed in found if deed.what == "tenant_limited"]
    assert limited.detail == "weight 2, sandboxes 64"
    (hosts, _) = [deed for deed in found if deed.detail == "hostname"]
    assert hosts.values["argv"] == ["hostname"]


async def test_one_tenant_and_a_time(agents: History) -> None:
    everything = await deeds(agents)
    assert await deeds(agents, tenant="default") == [deed for deed in everything if deed.who == "default"]
    assert await deeds(agents, tenant="other") == []
    (jobs,) = [deed for deed in everything if deed.run == "jobs" and deed.what == "submitted"]
    late = await deeds(agents, since_ms=jobs.time_ms + 1)
    assert {deed.detail for deed in late if deed.run == "jobs"} == {"true", "exit 4", "sleep 0.1"}  # known from before
    early = await deeds(agents, until_ms=jobs.time_ms - 1)
    assert not any(deed.run == "jobs" for deed in early)
    (asked,) = [deed for deed in everything if deed.detail.startswith("sleep 0.2") and deed.subject.endswith("-0")]
    assert asked.ended_ms is not None
    cut = await deeds(agents, until_ms=asked.ended_ms - 1)
    assert [deed.outcome for deed in cut if deed.id == asked.id] == ["no answer"]
    begun = await deeds(agents, since_ms=asked.ended_ms)
    (alone,) = [deed for deed in begun if deed.id == asked.id]  # its answer names the command, too
    assert (alone.detail, alone.exit_code, alone.who, alone.run) == (asked.detail, 0, "default", "agent")


async def test_what_operators_and_the_catalogue_did() -> None:
    cluster = Cluster(cells=2)
    recipe = m.Recipe("host", ("make",))
    for cell in range(2):
        cluster.broker.store(
            subjects.placement_node(cell), shoal.wire.codec.encode(m.NodeDrained("n0", True, True)), "drain:n0:1"
        )
    request, answer = subjects.snapshot("a", "request"), subjects.snapshot("a", "answer")
    cluster.say(request, m.BuildTemplate("b1", "a", "tools", recipe))
    cluster.say(answer, m.TemplateBuilt("b1", "tools", None, "make: no rule"))
    cluster.say(request, m.BuildTemplate("b2", "a", "more", recipe))
    cluster.say(request, m.PinSnapshot("p", "a", "tools"))
    cluster.say(request, m.RemoveSnapshot("q", "a", "tools"))
    spec = m.RolloutSpec("host", 2, (Command(argv=("echo", "a b")),))
    cluster.say(subjects.rollout_request(0, "evil", "r"), m.RolloutSubmitted("r1", "evil", "r", spec))
    cluster.say(subjects.rollout_outcome(0, "evil", "r"), m.RolloutRejected("r1", "unknown_tenant", "no such tenant"))
    run = m.RunCommand("c1", "a", "r", 0, "r9", 1, 0, Command(python="1/0"))
    cluster.say(subjects.executor_command("e0", "a"), run)
    refused = m.CommandRefused("c1", "r9", 1, 0, "sandbox_gone", "", m.EndReason.RELEASED)
    cluster.say(subjects.trajectory(0, "a", "r"), refused)
    told = [line(deed).split(" ", 2)[2] for deed in await deeds(cluster.history)]
    assert told == [
        "operator node drained n0 and hibernated",
        "a template built tools from host: failed: make: no rule",
        "a snapshot pinned tools",
        "a snapshot removed tools",
        "evil/r submitted r1 2 sandboxes of host to run echo 'a b'",
        "evil/r rejected r1 unknown_tenant: no such tenant",
        "a/r command r9-1 python: 1/0: refused, sandbox_gone: released",
        "a template built more from host: no answer",
    ]


async def test_programs_get_all_of_it(agents: History) -> None:
    found = [as_object(deed) for deed in await deeds(agents)]
    assert all({"time_ms", "who", "what", "of", "outcome", "stream", "sequence"} <= each.keys() for each in found)
    (written,) = [each for each in found if each["what"] == "file_written"]
    assert (written["path"], written["bytes"], written["outcome"]) == ("a.txt", 5, "done")


def test_a_command_is_told_as_it_was_given() -> None:
    assert shell(Command(argv=("sh", "-c", "echo x; exit 3"))) == "sh -c 'echo x; exit 3'"
    assert shell(Command(line="a | b")) == "a | b"
    assert shell(Command(python="print(1)")) == "python: print(1)"


async def test_what_is_asked_or_told_again_was_done_once() -> None:
    cluster = Cluster()
    spec = m.RolloutSpec("host", 1)
    cluster.say(subjects.rollout_request(0, "a", "r"), m.RolloutSubmitted("r1", "a", "r", spec))
    run = m.RunCommand("c1", "a", "r", 0, "r1", 0, 0, Command(line="make"))
    done = m.CommandFinished("c1", "r1", 0, 0, Command(line="make"), m.CommandResult(0, duration_us=1000))
    inbox, trajectory = subjects.executor_command("e0", "a"), subjects.trajectory(0, "a", "r")
    for message in (run, run, done, done, run, done):
        cluster.say(inbox if message is run else trajectory, message)
    assert [deed.what for deed in await deeds(cluster.history)] == ["submitted", "command"]
