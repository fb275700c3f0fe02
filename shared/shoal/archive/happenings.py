"""Messages with what caused each of them.

An effect's id names its cause (`shoal.machine.core.effect_id`): the stream, the sequence there and when it was stored
(ms since 1970; recordings of earlier versions lack it), then a number. What an executor reports is an answer to what it
was told: to the start, end or command of the same sandboxes. What trainers and operators ask has no cause in the log.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from shoal.bus.protocol import Delivery
from shoal.machine import ranges
from shoal.wire.codec import UndecodableError, decode
from shoal.wire.messages import (
    AnyMessage,
    CommandFinished,
    CommandRefused,
    DestroySandboxes,
    EndReason,
    FileManaged,
    FileRead,
    FileWritten,
    Hibernate,
    Hibernated,
    ManageFile,
    PreemptSandboxes,
    Ranges,
    ReadFile,
    RollBack,
    RolledBack,
    RunCommand,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesReady,
    SandboxSaved,
    SandboxSlept,
    SlotsReleased,
    SnapshotAdded,
    SnapshotTaken,
    StartSandboxes,
    TakeSnapshot,
    WriteFile,
)

_EFFECT: Final = re.compile(r"(?:dead:)?(SHOAL_[A-Z]+(?:_[A-Za-z0-9_\-]+)?):(\d+):")
COMMANDS: Final = (RunCommand, WriteFile, ReadFile, ManageFile, TakeSnapshot, RollBack, Hibernate)
"""What trainers have done in sandboxes."""
ANSWERS: Final = (
    CommandFinished, FileWritten, FileRead, FileManaged, SnapshotTaken, RolledBack, Hibernated, CommandRefused,
)  # fmt: skip
"""What came of it."""
_TOLD_TO_END: Final = (
    EndReason.RELEASED, EndReason.CANCELLED, EndReason.TIMED_OUT, EndReason.NOT_STARTED, EndReason.DEADLINE,
)  # fmt: skip


class Ref(NamedTuple):
    """Where a message is."""

    stream: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Happening:
    """A message, decoded. `cause`: the message it follows from, where that is known.

    `context`: it is not about what was asked for, and is told because something that is follows from it.
    """

    stream: str
    sequence: int
    time_ms: int
    id: str
    message: AnyMessage
    cause: Ref | None = None
    context: bool = False

    @property
    def ref(self) -> Ref:
        """Where it is."""
        return Ref(self.stream, self.sequence)

    @property
    def kind(self) -> str:
        """Its message's name."""
        return type(self.message).__name__


def happening(stream: str, delivery: Delivery) -> Happening | None:
    """Return a message with the cause that its id names; None for what this version cannot decode."""
    try:
        message = decode(delivery.payload)
    except UndecodableError:
        return None
    return Happening(stream, delivery.sequence, delivery.time_ms, delivery.id, message, cause_in(delivery.id))


def cause_in(id: str) -> Ref | None:
    """Return the message that an id names as its cause."""
    found = _EFFECT.match(id)
    return Ref(found[1], int(found[2])) if found is not None else None


def executor_of(told: Happening) -> str:
    """Return the executor that a message was said to, or that said it: ids of executors begin with their name."""
    if told.stream.startswith("SHOAL_EXECUTOR_"):
        return told.stream.removeprefix("SHOAL_EXECUTOR_")
    return told.id.partition(":")[0]


def linked(told: Iterable[Happening]) -> list[Happening]:
    """Return these in order, what executors report with what it answers, among these."""
    by_time = sorted(told, key=lambda each: (each.time_ms, each.stream, each.sequence))
    orders = _Orders(by_time)
    found = [each if each.cause is not None else replace(each, cause=orders.answered_by(each)) for each in by_time]
    return in_order(found)


def in_order(told: Iterable[Happening]) -> list[Happening]:
    """Return these by time, and nothing before its cause: brokers' clocks differ by a little."""
    by_time = sorted(told, key=lambda each: (each.time_ms, each.stream, each.sequence))
    known = {each.ref: each for each in by_time}
    found: dict[Ref, Happening] = {}
    for each in by_time:
        chain: dict[Ref, Happening] = {}
        at: Happening | None = each
        while at is not None and at.ref not in found and at.ref not in chain:
            chain[at.ref] = at
            at = known.get(at.cause) if at.cause is not None else None
        for ref in reversed(chain):
            found[ref] = chain[ref]
    return list(found.values())


class _Orders:
    """What executors were told, by what they may answer with."""

    def __init__(self, by_time: Sequence[Happening]) -> None:
        self._starts: dict[tuple[str, str, int], list[Happening]] = {}
        self._ends: dict[tuple[str, str], list[Happening]] = {}
        self._preempts: dict[tuple[str, str], list[Happening]] = {}
        self._commands: dict[str, Happening] = {}
        self._keeping: dict[tuple[str, int], list[Happening]] = {}
        self._reports: dict[tuple[str, str, int], list[Happening]] = {}
        for each in by_time:
            self._note(each)

    def _note(self, each: Happening) -> None:
        executor = executor_of(each)
        match each.message:
            case StartSandboxes(rollout=rollout, attempt=attempt):
                self._starts.setdefault((executor, rollout, attempt), []).append(each)
            case DestroySandboxes(rollout=rollout):
                self._ends.setdefault((executor, rollout), []).append(each)
            case PreemptSandboxes(rollout=rollout):
                self._preempts.setdefault((executor, rollout), []).append(each)
            case TakeSnapshot(rollout=rollout, index=index) | Hibernate(rollout=rollout, index=index):
                self._keeping.setdefault((rollout, index), []).append(each)
            case SandboxesFinished() | SandboxesEnded() | SandboxSlept():
                key = executor, each.message.rollout, each.message.attempt
                self._reports.setdefault(key, []).append(each)
        if isinstance(each.message, COMMANDS):
            self._commands.setdefault(each.message.id, each)

    def answered_by(self, each: Happening) -> Ref | None:
        """Return what a report answers."""
        executor, message = executor_of(each), each.message
        match message:
            case SandboxesReady() | SandboxesFinished():
                starts = self._starts.get((executor, message.rollout, message.attempt), [])
                return _last(starts, each, indices_of(message))
            case SandboxesEnded(reason=reason, rollout=rollout, attempt=attempt):
                if reason in (EndReason.START_FAILED, EndReason.BAD_INPUT):
                    return _last(self._starts.get((executor, rollout, attempt), []), each, message.indices)
                if reason is EndReason.PREEMPTED:
                    return _last(self._preempts.get((executor, rollout), []), each, message.indices)
                if reason in _TOLD_TO_END:
                    return _last(self._ends.get((executor, rollout), []), each, message.indices)
                return None
            case SandboxSlept(rollout=rollout, index=index):
                asked = self._preempts.get((executor, rollout), []) if message.preempted else []
                return _last(asked or self._keeping.get((rollout, index), []), each, ((index, 1),))
            case SandboxSaved(rollout=rollout, index=index):
                return _last(self._keeping.get((rollout, index), []), each, ((index, 1),))
            case SnapshotAdded(origin=origin) if origin:
                name, _, number = origin.rpartition("-")
                index = int(number) if number.isdecimal() else -1
                return _last(self._keeping.get((name, index), []), each, ((index, 1),))
            case SlotsReleased(rollout=rollout, attempt=attempt, indices=indices):
                told = _last(self._reports.get((executor, rollout, attempt), []), each, indices)
                return told or _last(self._ends.get((executor, rollout), []), each, indices)
        if isinstance(message, ANSWERS):
            command = self._commands.get(message.id)
            return command.ref if command is not None else None
        return None


def _last(orders: Sequence[Happening], answer: Happening, indices: Ranges) -> Ref | None:
    """Return the last of these before an answer that is about some of these sandboxes."""
    found: Happening | None = None
    for order in orders:
        about = indices_of(order.message)
        if order.time_ms <= answer.time_ms and (not about or ranges.intersect(about, indices)):
            found = order
    return found.ref if found is not None else None


def indices_of(message: AnyMessage) -> Ranges:
    """Return which sandboxes of its rollout a message is about; none: all of them, or none in particular."""
    if isinstance(message, SandboxesFinished):
        return ranges.collect(result.index for result in message.results)
    index = getattr(message, "index", None)
    if isinstance(index, int):
        return ((index, 1),)
    found: Ranges = getattr(message, "indices", ())
    return found
