"""A story as a trace: events of the Trace Event Format, which Perfetto and Chrome show.

Whoever says something has a track, on which each message is a short slice; arrows (flow events) lead from causes to
what they caused. Each sandbox has a track of what it was (queued, placing, starting, live, asleep), and one of its
commands.
Slices of a track nest or do not touch, as the format wants: times are whole milliseconds, and a message's slice is half
of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from shoal.archive.happenings import ANSWERS, COMMANDS, Happening, Ref, executor_of
from shoal.archive.stories import Story
from shoal.archive.words import said
from shoal.machine import ranges
from shoal.wire.messages import (
    PlaceRequested,
    Ranges,
    RolloutConcluded,
    RolloutSubmitted,
    SandboxesClosed,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesReady,
    SandboxesWanted,
    SandboxSlept,
    SlotsReleased,
    StartSandboxes,
)

_MARK_US: Final = 500
Event = dict[str, Any]
_ROLES: Final = {"ROLLOUT": "scheduler", "PLACEMENT": "placement", "SNAPSHOT": "snapshot catalogue"}
_WAITING: Final = "queued"
_ANEW: Final = (_WAITING, "placing", "starting")
"""What an ended sandbox may be again; what else is said of it then came late."""


@dataclass(slots=True)
class _Tracks:
    """Numbers for the processes and threads of a trace, by name, in the order they came."""

    processes: dict[str, int] = field(default_factory=dict)
    threads: dict[tuple[str, str], int] = field(default_factory=dict)

    def of(self, process: str, thread: str) -> dict[str, int]:
        pid = self.processes.setdefault(process, len(self.processes) + 1)
        return {"pid": pid, "tid": self.threads.setdefault((process, thread), len(self.threads) + 1)}

    def metadata(self) -> Iterator[Event]:
        for process, pid in self.processes.items():
            yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": process}}
            yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
        for (process, thread), tid in self.threads.items():
            where = {"pid": self.processes[process], "tid": tid}
            yield {"ph": "M", "name": "thread_name", **where, "args": {"name": thread}}
            yield {"ph": "M", "name": "thread_sort_index", **where, "args": {"sort_index": tid}}


def trace_of(story: Story) -> list[Event]:
    """Return a story's events, times in microseconds from its beginning."""
    trace = _Trace(story)
    events = sorted(trace.events(), key=lambda event: (event["ts"], -event.get("dur", 0)))
    return [*trace.tracks.metadata(), *events]


def author(each: Happening) -> tuple[str, str]:
    """Return the process and the thread that a message is by."""
    if each.cause is not None and each.id.startswith(each.cause.stream):
        kind, _, cell = each.cause.stream.removeprefix("SHOAL_").partition("_")
        if kind in _ROLES:
            return (f"cell {cell}" if cell else "cluster", _ROLES[kind])
    if each.id.startswith("tick:"):
        return "cluster", "time"
    if isinstance(each.message, COMMANDS):
        return "trainer", "commands"
    if each.stream.startswith(("SHOAL_TRAJECTORY_", "SHOAL_PLACEMENT_")) or hasattr(each.message, "node"):
        return f"executor {executor_of(each)}", "reports"
    return "trainer", "requests"


class _Trace:
    def __init__(self, story: Story) -> None:
        self._story = story
        self._known = story.by_ref
        self._began_ms = min(each.time_ms for each in story.told)
        self._ended_ms = max(each.time_ms for each in story.told)
        self.tracks = _Tracks()

    def events(self) -> Iterator[Event]:
        for each in self._story.told:
            yield self._mark(each)
        yield from self._flows()
        for (rollout, index), states in _states(self._story).items():
            yield from self._sandbox(f"{rollout}-{index}", states)
        yield from self._commands()

    def _us(self, time_ms: int) -> int:
        return (time_ms - self._began_ms) * 1000

    def _mark(self, each: Happening) -> Event:
        return {
            "ph": "X", "name": each.kind, "cat": "message", "ts": self._us(each.time_ms), "dur": _MARK_US,
            **self.tracks.of(*author(each)),
            "args": {"said": said(each.message), "where": f"{each.stream}:{each.sequence}", "id": each.id},
        }  # fmt: skip

    def _flows(self) -> Iterator[Event]:
        number = 0
        for each in self._story.told:
            cause = self._known.get(each.cause) if each.cause is not None else None
            if cause is None:
                continue
            number += 1
            arrow: Event = {"name": "causes", "cat": "cause", "id": number}
            begin, end = self._us(cause.time_ms), self._us(each.time_ms)
            yield {"ph": "s", **arrow, "ts": begin, **self.tracks.of(*author(cause))}
            # An arrow goes forward in time; where clocks differ by a little, it ends within the slice all the same.
            yield {"ph": "f", "bp": "e", **arrow, "ts": max(begin, end), **self.tracks.of(*author(each))}

    def _sandbox(self, name: str, states: "Sequence[_State]") -> Iterator[Event]:
        for number, state in enumerate(states):
            end_ms = states[number + 1].since_ms if number + 1 < len(states) else self._ended_ms
            if state.what and end_ms > state.since_ms:
                yield {
                    "ph": "X", "name": state.what, "cat": "sandbox", "ts": self._us(state.since_ms),
                    "dur": (end_ms - state.since_ms) * 1000, **self.tracks.of("sandboxes", name),
                    "args": {"sandbox": name, "node": state.node, "attempt": state.attempt},
                }  # fmt: skip

    def _commands(self) -> Iterator[Event]:
        answers: dict[Ref, Happening] = {}
        for each in self._story.told:
            if isinstance(each.message, ANSWERS) and each.cause is not None:
                answers.setdefault(each.cause, each)
        lanes: dict[str, list[int]] = {}
        for each in self._story.told:
            if not isinstance(each.message, COMMANDS):
                continue
            name = f"{each.message.rollout}-{each.message.index}"
            answer = answers.get(each.ref)
            end_ms = max(answer.time_ms if answer is not None else self._ended_ms, each.time_ms)
            yield {
                "ph": "X", "name": said(each.message).partition(": ")[2], "cat": "command",
                "ts": self._us(each.time_ms), "dur": max((end_ms - each.time_ms) * 1000, _MARK_US),
                **self.tracks.of("commands", _lane(lanes.setdefault(name, []), name, each.time_ms, end_ms)),
                "args": {"sandbox": name, "id": each.message.id,
                         "answer": said(answer.message) if answer is not None else "none"},
            }  # fmt: skip


def _lane(ends: list[int], name: str, begin_ms: int, end_ms: int) -> str:
    """Return the track for a command: another one where the sandbox's others are in use."""
    number = next((number for number, end in enumerate(ends) if end <= begin_ms), len(ends))
    ends[number:] = [max(end_ms, begin_ms + 1), *ends[number + 1 :]]
    return name if not number else f"{name} ({number + 1})"


@dataclass(frozen=True, slots=True)
class _State:
    since_ms: int
    what: str
    node: str = ""
    attempt: int = 0


def _states(story: Story) -> dict[tuple[str, int], list[_State]]:
    """Return what each sandbox was, one after the other; nothing once it had ended."""
    found: dict[tuple[str, int], list[_State]] = {}
    only = story.index

    def note(rollout: str, indices: Ranges, state: _State, *, known: bool = False, gone: bool = False) -> None:
        for index in ranges.indices(indices):
            states = found.get((rollout, index))
            if (only is None or index == only) and (states is not None or not (known or gone)):
                states = found.setdefault((rollout, index), [])
                if gone and (states[-1].node, states[-1].attempt) != (state.node, state.attempt):
                    continue  # it was told before what became of it there
                if not states or states[-1].what or state.what in _ANEW:
                    states.append(replace(state, since_ms=max(state.since_ms, _last_ms(states))))

    for each in story.told:
        at = each.time_ms
        match each.message:
            case RolloutSubmitted(rollout=rollout, spec=spec) if not each.context:
                note(rollout, ranges.whole(spec.n), _State(at, _WAITING))
            case PlaceRequested() as m:
                note(m.rollout, m.indices, _State(at, "placing", "", m.attempt))
            case StartSandboxes() as m:
                note(m.rollout, m.indices, _State(at, "starting", m.node, m.attempt))
            case SandboxesReady() as m:
                note(m.rollout, m.indices, _State(at, "live", m.node, m.attempt))
            case SandboxesFinished() as m:
                for one in m.results:
                    ran_ms = max(at - one.run_us // 1000, _last_ms(found.get((m.rollout, one.index))))
                    note(m.rollout, ((one.index, 1),), _State(min(ran_ms, at), "command", m.node, m.attempt))
                    note(m.rollout, ((one.index, 1),), _State(at, ""))
            case SandboxesEnded() as m:
                note(m.rollout, m.indices, _State(at, _WAITING if _again(m) else ""), known=True)
            case SandboxSlept() as m:
                note(m.rollout, ((m.index, 1),), _State(at, "asleep", "", m.attempt))
            case SlotsReleased() as m:
                note(m.rollout, m.indices, _State(at, "", m.node, m.attempt), gone=True)
            case SandboxesWanted() as m:
                note(m.rollout, m.indices, _State(at, "waking"), known=True)
            case SandboxesClosed() as m:
                note(m.rollout, m.indices, _State(at, ""), known=True)
            case RolloutConcluded(rollout=rollout):
                for name, states in found.items():
                    if name[0] == rollout and states[-1].what == _WAITING:
                        states.append(_State(at, ""))
    return found


def _last_ms(states: Sequence[_State] | None) -> int:
    return states[-1].since_ms if states else 0


def _again(message: SandboxesEnded) -> bool:
    """Return whether a sandbox may be started again after this; if not, nothing more is said of it."""
    return message.reason.lost
