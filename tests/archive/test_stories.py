"""The whole story, as recorded archives of real systems have it."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import shoal.archive
from archive.cluster import Cluster
from shoal.archive.happenings import Happening, Ref, cause_in, in_order, linked
from shoal.archive.nodes import NodeStory, tell_node
from shoal.archive.source import History
from shoal.archive.stories import NoSuchNameError, Story, tell_rollout
from shoal.archive.words import duration, said, sandboxes, spread, summed
from shoal.cli.story_text import lines
from shoal.wire import messages as m, subjects
from shoal.wire.messages import ExecutorBeat, ExecutorJoined, NodeSpec, Tick
from wire.samples import SAMPLES

RECORDED = Path(__file__).with_name("recorded")


@pytest.fixture
async def agents() -> AsyncIterator[History]:
    async with shoal.archive.open(RECORDED / "agents.shoal") as history:
        yield history


@pytest.fixture
async def lost() -> AsyncIterator[History]:
    async with shoal.archive.open(RECORDED / "lost.shoal") as history:
        yield history


async def rollouts(history: History) -> dict[str, str]:
    """Return the last rollout of each run."""
    found: dict[str, str] = {}
    async for delivery in history.read("SHOAL_ROLLOUT_0"):
        message = shoal.wire.codec.decode(delivery.payload)
        if isinstance(message, m.RolloutSubmitted) and message.run not in found:
            found[message.run] = message.rollout
    return found


async def story_of(history: History, name: str) -> Story:
    story = await tell_rollout(history, name)
    assert story is not None
    return story


def text(story: Story, **options: Any) -> str:
    """Return a story's lines without times, digests and ids, which are as they happened to be."""
    found = "\n".join(line.rstrip() for line in lines(story, **options))
    found = re.sub(r"^\d\d:\d\d:\d\d\.\d{3} .{11} ", "", found, flags=re.M)
    found = re.sub(r"\b[0-9a-f]{12}\b", "DIGEST", re.sub(r"\br[a-z0-9]{15}\b", "ROLLOUT", found))
    return re.sub(r"\b[0-9.]+(-[0-9.]+)? m?s\b", "TIME", re.sub(r"boot \w+", "boot BOOT", found))


# --- causes


@pytest.mark.parametrize(
    ("id", "cause"),
    [
        ("SHOAL_ROLLOUT_0:12:3", Ref("SHOAL_ROLLOUT_0", 12)),
        ("SHOAL_SNAPSHOT:1:0:4690af8f:0", Ref("SHOAL_SNAPSHOT", 1)),
        ("dead:SHOAL_EXECUTOR_node-7_b:5:executor.node-7_b", Ref("SHOAL_EXECUTOR_node-7_b", 5)),
        ("SHOAL_SNAPSHOT:outstanding:0", None),
        ("tick:SHOAL_ROLLOUT_0:1700000000000", None),
        ("local:b7541ae534a577df:1", None),
        ("r7frdskplikue6zo:submitted", None),
        ("", None),
    ],
)
def test_an_id_names_its_cause(id: str, cause: Ref | None) -> None:
    assert cause_in(id) == cause


async def test_everything_that_followed_has_its_cause(agents: History) -> None:
    """Only what people and trainers ask is without a cause, and what executors say by themselves."""
    names = await rollouts(agents)
    for rollout in names.values():
        story = await story_of(agents, rollout)
        known = story.by_ref
        assert len(known) == len(story.told)
        for each in story.told:
            asked = (m.RolloutSubmitted, m.RolloutReleased, m.RolloutCancelled, m.SandboxesWanted, m.RunCommand,
                     m.WriteFile, m.ReadFile, m.ManageFile, m.TakeSnapshot, m.RollBack, m.Hibernate)  # fmt: skip
            if not each.context and not isinstance(each.message, asked):
                assert each.cause is not None, each
                assert each.cause in known, each
                assert known[each.cause].time_ms <= each.time_ms


async def test_answers_are_of_what_was_asked(agents: History) -> None:
    story = await story_of(agents, (await rollouts(agents))["agent"])
    known = story.by_ref
    pairs: dict[type[Any], type[Any]] = {
        m.FileWritten: m.WriteFile, m.CommandFinished: m.RunCommand, m.FileRead: m.ReadFile,
        m.SnapshotTaken: m.TakeSnapshot, m.RolledBack: m.RollBack, m.Hibernated: m.Hibernate,
        m.SandboxSlept: m.Hibernate, m.SandboxesReady: m.StartSandboxes,
        m.StartSandboxes: m.PlaceRequested, m.DestroySandboxes: m.ReleaseRequested,
        m.ReleaseRequested: m.RolloutReleased, m.RolloutConcluded: m.RolloutReleased,
    }  # fmt: skip
    seen: set[type[Any]] = set()
    for each in story.told:
        wanted = pairs.get(type(each.message))
        if wanted is not None and each.cause is not None:
            cause = known[each.cause].message
            assert isinstance(cause, wanted)
            assert getattr(each.message, "id", None) in (None, getattr(cause, "id", None))
            seen.add(type(each.message))
    assert seen == pairs.keys()


def happened(sequence: int, time_ms: int, cause: int | None = None) -> Happening:
    return Happening("S", sequence, time_ms, f"{sequence}", Tick(0), Ref("S", cause) if cause is not None else None)


def test_nothing_is_told_before_its_cause() -> None:
    told = [happened(1, 100), happened(2, 90, 1), happened(3, 80, 2), happened(4, 70), happened(5, 200, 99)]
    assert [each.sequence for each in in_order(told)] == [4, 1, 2, 3, 5]
    circle = [happened(1, 100, 2), happened(2, 90, 1)]  # which there is none of
    assert {each.sequence for each in in_order(circle)} == {1, 2}
    assert linked(told) == in_order(told)


# --- rollouts and sandboxes


async def test_a_group_is_readable(lost: History) -> None:
    story = await story_of(lost, (await rollouts(lost))["jobs"])
    told = text(story)
    assert len(told.splitlines()) < 15
    assert "submitted: 256 sandboxes of host, to run work, run jobs of default" in told
    assert "256 placed on 16 nodes" in told
    assert "256 done on 16 nodes: 256 exit 0" in told
    assert "256 rooms free again on 16 nodes" in told
    assert "concluded, finished: 256 succeeded" in told
    every = text(story, everything=True)
    assert every.count(" placed on local-") == 16
    assert len(every.splitlines()) > 50


async def test_what_was_lost_and_started_again(lost: History) -> None:
    story = await story_of(lost, (await rollouts(lost))["agents"])
    expected = """\
submitted: 40 sandboxes of host, run agents of default
├ 0-39 to be placed
│ ├ 0-15 placed on local-0
│ │ └ 0-15 ready on local-0
│ ├ 16-31 placed on local-1
│ │ └ 16-31 ready on local-1
│ └ 32-39 placed on local-2
│   └ 32-39 ready on local-2
└ all of it is given to placement
41 commands: 41 exit 0; TIME
(executor local joined with 20 nodes, local-0 the first, simulated, boot BOOT)
├ 0-15 lost with its node: its executor restarted (local-0)
│ └ 0-15 to be placed, attempt 2, not on local-0
│   └ 0-15 placed on local-1, attempt 2
│     └ 0-15 ready on local-1, attempt 2
├ 16-31 lost with its node: its executor restarted (local-1)
│ └ 16-31 to be placed, attempt 2, not on local-1
│   └ 16-31 placed on local-0, attempt 2
│     └ 16-31 ready on local-0, attempt 2
└ 32-39 lost with its node: its executor restarted (local-2)
  └ 32-39 to be placed, attempt 2, not on local-2
    └ 32-39 placed on local-4, attempt 2
      └ 32-39 ready on local-4, attempt 2
its trainer has no more use for 0-39
├ all to be released: released
"""
    told = text(story)
    head, day, rest = told.split("\n", 2)
    assert head.startswith("rollout ROLLOUT, run agents of default: ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    assert rest.startswith(expected)
    assert rest.endswith("└ concluded, released: 40 released")


async def test_one_sandbox(agents: History) -> None:
    rollout = (await rollouts(agents))["agent"]
    told = {index: text(await story_of(agents, f"{rollout}-{index}")) for index in range(3)}
    (slept,) = [each for each in told.values() if "go to sleep" in each]
    for line in (
        "sandbox ROLLOUT-", "(what is template host?)", "go to sleep: sleeps as snapshot DIGEST",
        "sleeps, and left local",
        "wanted again", "placed on local, attempt 2", "ready on local, attempt 2", "echo awake: exit 0 in TIME",
        "released (local)",
    ):  # fmt: skip
        assert line in slept
    (wrote,) = [each for each in told.values() if "write a.txt" in each]
    assert "write a.txt, 5 B at 0: written, 5 B" in wrote
    assert "cat a.txt; exit 3: exit 3 in TIME" in wrote
    assert "read a.txt from 0: read, 5 B of 5 B" in wrote
    assert "snapshot" not in wrote
    assert "echo awake" not in wrote
    for number in range(3):
        assert f"sleep 0.1; echo {number}" in wrote


async def test_others_are_named_where_they_were_the_cause(agents: History) -> None:
    rollout = (await rollouts(agents))["cancelled"]
    told = text(await story_of(agents, rollout))
    assert "cancelled by client" in told
    assert "to end: cancelled" in told
    assert "concluded, cancelled: 2 cancelled" in told


async def test_wrong_names(agents: History) -> None:
    rollout = (await rollouts(agents))["agent"]
    with pytest.raises(NoSuchNameError, match="has 3 sandboxes, counted from 0"):
        await tell_rollout(agents, f"{rollout}-3")
    for name in ("nothing", "r123-x", "-", "-1", f"{rollout}-", f"{rollout}x-1"):
        assert await tell_rollout(agents, name) is None
        assert await tell_node(agents, name) is None


# --- nodes


async def test_a_node_that_was_drained_and_lost(lost: History) -> None:
    story = await tell_node(lost, "local-0")
    assert story is not None
    told = text(story)
    assert story.executors == ("local",)
    assert told.count("executor local joined with 20 nodes") == 2  # twice booted
    assert "16-31 placed on local-0, attempt 2 [ROLLOUT]" in told
    assert "lost with its node: its executor restarted (local-0) [ROLLOUT]" in told
    drained = await tell_node(lost, "local-3")
    assert drained is not None
    assert "node local-3 takes no more sandboxes" in text(drained)
    assert "node local-3 takes sandboxes again" in text(drained)


async def test_silence_and_leaving() -> None:
    cluster = Cluster()
    nodes = (NodeSpec("n0", 8, 1), NodeSpec("n1", 8, 1))
    joined = ExecutorJoined("e0", "boot", "simulated", nodes)
    cluster.say(subjects.placement_node(0), joined)
    cluster.run("a", "r", "r1")
    for pause_ms in (1000, 1000, 34_000, 1000):
        cluster.now += pause_ms - 1000
        cluster.say(subjects.placement_node(0), ExecutorBeat("e0", "boot"))
        cluster.say(subjects.placement_node(0), joined)
    cluster.say(subjects.placement_node(0), ExecutorBeat("other", "boot"))
    left_ms = cluster.now
    cluster.say(subjects.placement_node(0), m.ExecutorLeft("e0", "boot"))
    story = await tell_node(cluster.history, "n0")
    assert isinstance(story, NodeStory)
    (silence,) = story.silences
    assert silence.until_ms - silence.since_ms == 34_000
    told = text(story)
    assert told.count("executor e0 joined with 2 nodes, n0 the first, simulated, boot BOOT") == 1
    assert "silent for TIME" in told
    assert "0-3 placed on n0 [r1]" in told
    assert told.index("executor e0 left") > told.index("silent for")
    late = await tell_node(cluster.history, "n0", since_ms=left_ms - 3000)
    assert late is not None
    assert "placed on" not in text(late)
    early = await tell_node(cluster.history, "n0", until_ms=left_ms - 30_000)
    assert early is not None
    assert "left" not in text(early)
    assert await tell_node(cluster.history, "n2") is None


# --- words


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_each_message_has_words(name: str) -> None:
    message = SAMPLES[name]
    words = said(message)
    assert words
    assert "\n" not in words


def test_what_is_done_with_files_is_told_alone_and_by_kind() -> None:
    head, told = ("i", "t", "r", 0, "x", 3, 0), ("i", "x", 3, 0)
    assert said(m.ManageFile(*head, m.FileOp.RENAME, "a", "b")) == "3: rename a to b"
    assert said(m.ManageFile(*head, m.FileOp.REMOVE, "a", recursive=True)) == "3: remove a, with all that is in it"
    assert said(m.WriteFile(*head, "log", b"12", offset=-1)) == "3: write log, 2 B at its end"
    entry = m.FileEntry("a", "file", 2048, 0o644, 0)
    assert said(m.FileManaged(*told, m.FileOp.LIST, ".", entries=(entry,), more=True)) == "1 entry, and more"
    assert said(m.FileManaged(*told, m.FileOp.STAT, "a", entries=(entry,))) == "a file of 2 KiB"
    assert said(m.FileManaged(*told, m.FileOp.STAT, "a")) == "nothing is there"

    def many(*messages: m.AnyMessage) -> str:
        return summed([Happening("S", number, number, f"{number}", each) for number, each in enumerate(messages, 1)])

    asked = [m.ManageFile(*head, m.FileOp.REMOVE, f"{number}") for number in range(9)]
    assert many(*asked) == "9 files to remove"
    answered = [m.FileManaged(*told, m.FileOp.MAKE_DIR, f"{number}") for number in range(2)]
    assert many(*answered, m.FileManaged(*told, m.FileOp.LIST, ".")) == "2 made, 1 listed"


def test_what_is_told_of_many_sandboxes_is_not_told_as_if_it_were_one() -> None:
    def many(*messages: m.AnyMessage) -> str:
        return summed([Happening("S", number, number, f"{number}", each) for number, each in enumerate(messages, 1)])

    released = [m.ReleaseRequested("r", ((index, 1),), m.EndReason.RELEASED) for index in range(60, 70)]
    assert many(*released) == "10 to be released"
    began = [m.SandboxesBegan("r", 1, ((index, 2),), "n1", "e", "i", "d") for index in range(0, 6, 2)]
    assert many(*began) == "6 take commands on 1 node"
    assert many(*[m.DestroySandboxes("b", "r", (), m.EndReason.RELEASED)] * 2) == "all to end"


def test_figures_in_words() -> None:
    assert sandboxes(()) == "all"
    assert sandboxes(((0, 3), (7, 1))) == "0-2, 7"
    assert sandboxes(tuple((n * 2, 1) for n in range(9))) == "0, 2, 4, 6, 8, 10 and 3 more"
    assert [duration(ms) for ms in (0, 0.25, 7, 999, 1500, 119_000, 200_000, 7_500_000)] == [
        "0 ms", "0.2 ms", "7 ms", "999 ms", "1.5 s", "119.0 s", "3 min 20 s", "2 h 5 min",
    ]  # fmt: skip
    assert spread([5.0, 9.0, 100.0]) == "5 ms to 100 ms, half of them within 9 ms"
    assert spread([5.0]) == "5 ms"
