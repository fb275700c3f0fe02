"""A story as a trace is what the Trace Event Format asks for, and says what happened."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import shoal.archive
from archive.test_stories import RECORDED, rollouts, story_of
from shoal.archive.happenings import Happening, linked
from shoal.archive.nodes import tell_node
from shoal.archive.stories import Story
from shoal.archive.trace import trace_of
from shoal.wire import messages as m

Event = dict[str, Any]
REQUIRED = {
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid"},
    "M": {"name", "ph", "pid", "args"},
    "s": {"name", "cat", "ph", "ts", "pid", "tid", "id"},
    "f": {"name", "cat", "ph", "ts", "pid", "tid", "id", "bp"},
}
"""What an event of each phase must have, by the format's description."""


def check(events: list[Event]) -> None:
    """Assert that these are events as the format describes them, and viewers expect them."""
    json.dumps(events)
    names: dict[tuple[int, int], str] = {}
    processes: dict[int, str] = {}
    for event in events:
        assert event.keys() >= REQUIRED[event["ph"]], event
        assert isinstance(event["pid"], int)
        assert all(isinstance(event[key], int) and event[key] >= 0 for key in ("ts", "dur") if key in event)
        if event["ph"] == "M":
            value = {"process_name": "name", "thread_name": "name", "process_sort_index": "sort_index",
                     "thread_sort_index": "sort_index"}[event["name"]]  # fmt: skip
            assert event["args"].keys() == {value}
            if event["name"] == "thread_name":
                names[event["pid"], event["tid"]] = event["args"]["name"]
            if event["name"] == "process_name":
                processes[event["pid"]] = event["args"]["name"]
    assert len(set(processes.values())) == len(processes)
    others = [event for event in events if event["ph"] != "M"]
    assert {(event["pid"], event["tid"]) for event in others} == names.keys()
    assert {event["pid"] for event in others} == processes.keys()

    tracks: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():
        check_nesting(slices)

    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert len(starts) == sum(event["ph"] == "s" for event in events)
    for number, start in starts.items():
        end = ends[number]
        assert (end["bp"], end["name"], end["cat"]) == ("e", start["name"], start["cat"])
        assert start["ts"] <= end["ts"]
        for event in (start, end):
            around = tracks[event["pid"], event["tid"]]
            assert any(begin <= event["ts"] <= finish for begin, finish in around), event


def check_nesting(slices: list[tuple[int, int]]) -> None:
    """Assert that slices of a track lie within each other, or apart: never across each other's ends."""
    open_ends: list[int] = []
    for begin, end in sorted(slices, key=lambda one: (one[0], -one[1])):
        while open_ends and open_ends[-1] <= begin:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1], (begin, end)
        open_ends.append(end)


def test_the_check_itself() -> None:
    check_nesting([(0, 10), (0, 5), (5, 10), (10, 20)])
    with pytest.raises(AssertionError):
        check_nesting([(0, 10), (5, 15)])


@pytest.mark.parametrize("name", ["agents", "lost"])
async def test_every_recorded_story_is_a_trace(name: str) -> None:
    async with shoal.archive.open(RECORDED / f"{name}.shoal") as history:
        for rollout in (await rollouts(history)).values():
            check(trace_of(await story_of(history, rollout)))
            check(trace_of(await story_of(history, f"{rollout}-0")))
        story = await tell_node(history, {"agents": "local", "lost": "local-0"}[name])
        assert story is not None
        check(trace_of(story))


async def test_what_a_trace_shows() -> None:
    async with shoal.archive.open(RECORDED / "agents.shoal") as history:
        story = await story_of(history, (await rollouts(history))["agent"])
    events = trace_of(story)
    tracks = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    states: dict[str, list[str]] = defaultdict(list)
    ends: dict[str, int] = {}
    for event in events:
        if event.get("cat") == "sandbox":
            name = tracks[event["pid"], event["tid"]]
            assert event["ts"] >= ends.get(name, 0)
            ends[name] = event["ts"] + event["dur"]
            states[name].append(event["name"])
    assert len(states) == 3
    waking = ["queued", "placing", "starting", "live", "asleep", "waking", "placing", "starting", "live"]
    for found in states.values():
        assert "live" in found
        assert [name for name in waking if name in found]
    (slept,) = [found for found in states.values() if "asleep" in found]
    # Only what lasted for a millisecond at least is a slice.
    assert [name for name in slept if name in ("starting", "live", "asleep")] == [
        "starting", "live", "asleep", "starting", "live",
    ]  # fmt: skip
    commands = [event for event in events if event.get("cat") == "command"]
    at_once = [event for event in commands if event["name"].startswith("sleep 0.1; echo")]
    assert len({event["tid"] for event in at_once}) == 3  # beside each other
    assert {event["args"]["answer"].partition(" in ")[0] for event in at_once} == {"exit 0"}
    marks = [event for event in events if event.get("cat") == "message"]
    assert len(marks) == len(story.told)
    by = {event["name"]: tracks[event["pid"], event["tid"]] for event in marks}
    assert by["RolloutSubmitted"] == "requests"
    assert by["PlaceRequested"] == "scheduler"
    assert by["StartSandboxes"] == "placement"
    assert by["SandboxesReady"] == "reports"
    assert by["RunCommand"] == "commands"
    assert sum(event["ph"] == "s" for event in events) == sum(each.cause in story.by_ref for each in story.told)


def test_the_recorded_archives_are_small() -> None:
    assert all(path.stat().st_size < 10_000 for path in Path(RECORDED).glob("*.shoal"))


def test_a_released_sandbox_lives_until_its_slot_is_free() -> None:
    """Nobody says that it ended: whoever let it go knows, and the executor says when it is gone."""
    them: m.Ranges = ((0, 2),)
    start = m.StartSandboxes("b", "n1", "r", "t", "u", 0, 0, them, m.Snapshot("host", "host"), m.Resources(),
                             (), (), (), "", 10**13)  # fmt: skip
    said: list[tuple[int, str, str, m.AnyMessage]] = [
        (10, "SHOAL_EXECUTOR_e1", "p:1", start),
        (20, "SHOAL_ROLLOUT_0", "e1:b:1", m.SandboxesReady("r", 0, them, "n1", "e1", "zygote")),
        (30, "SHOAL_EXECUTOR_e1", "p:2", m.DestroySandboxes("b", "r", ((1, 1),), m.EndReason.RELEASED)),
        (35, "SHOAL_PLACEMENT_0", "e1:b:2", m.SlotsReleased("e1", "b", "n1", "r", 0, ((1, 1),))),
        (50, "SHOAL_PLACEMENT_0", "e1:b:3", m.SlotsReleased("e1", "b", "another", "r", 0, ((0, 1),))),  # not of these
        (60, "SHOAL_ROLLOUT_0", "e1:b:4", m.SandboxesEnded("r", 0, ((0, 1),), "n1", m.EndReason.DIED)),
        (70, "SHOAL_PLACEMENT_0", "e1:b:5", m.SlotsReleased("e1", "b", "n1", "r", 0, ((0, 1),))),
    ]
    told = linked(Happening(stream, at, at, id, message, None) for at, stream, id, message in said)
    causes = {each.time_ms: each.cause.sequence for each in told if each.cause is not None}
    assert (causes[35], causes[70]) == (30, 60)
    slices = [each for each in trace_of(Story("rollout", "r", told)) if each.get("cat") == "sandbox"]
    lives = {each["args"]["sandbox"]: each["ts"] + each["dur"] for each in slices if each["name"] == "live"}
    assert lives == {"r-0": 50_000, "r-1": 25_000}
    check(trace_of(Story("rollout", "r", told)))
