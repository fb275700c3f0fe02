"""One sandbox's story, as its trajectory tells it: what was done, and what of it the present sandbox has behind it.

A sandbox lives in attempts. One that was lost, or slept, goes on as what a snapshot of an earlier attempt holds: what
was done after that snapshot is undone, and nobody has seen it done. So the story of an attempt is all of its own steps,
and those of the attempt it goes on from that were in the snapshot, and so on. What is told may come in any order, and
more than once. No I/O.
"""

from dataclasses import dataclass
from typing import Final

from shoal.machine import ranges
from shoal.machine.ledger import HEDGE, next_attempt
from shoal.wire.asked import Answer, word
from shoal.wire.messages import (
    AnyMessage,
    CommandFinished,
    CommandRefused,
    FileManaged,
    FileRead,
    FileWritten,
    Hibernated,
    Ranges,
    RolledBack,
    SandboxesBegan,
    SandboxSaved,
    SandboxSlept,
    SnapshotTaken,
    Step,
    StepBegun,
)

PASSING: Final = frozenset(("sandbox_gone", "asleep", "answer_gone"))
"""Refusals that say nothing of what was asked: it can be asked again."""


@dataclass(slots=True)
class Told:
    """A step that has come to its end; `ended_ms` by the broker's clock.

    What came of it is `answer`, or, where that was let go, the trajectory's message of this `sequence`. `what` as in
    `CommandRefused`; `refused`: it was not carried out.
    """

    id: str
    attempt: int
    step: Step
    what: str
    refused: bool
    ended_ms: int
    sequence: int
    answer: Answer | None

    @property
    def place(self) -> tuple[int, int]:
        """By this the steps of a story are in order."""
        return order(self.attempt), self.step.number


class Story:
    """See the module. `take` what the trajectory says of this sandbox."""

    def __init__(self) -> None:
        self._steps: dict[int, dict[int, Told]] = {}  # by attempt and number
        self._numbers: dict[str, dict[int, int]] = {}  # by id and attempt
        self._begun: dict[str, dict[int, StepBegun]] = {}  # by id and attempt: what must not be done twice
        self._began: dict[int, str] = {}  # by attempt: the digest of what it is
        self._slept: dict[int, str] = {}
        self._saved: dict[int, list[SandboxSaved]] = {}
        self._lines: dict[int, tuple[tuple[int, Ranges | None], ...]] = {}

    def take(self, message: AnyMessage, time_ms: int, sequence: int = 0) -> Told | None:
        """Take what is said of it; returns a step that is told of for the first time."""
        match message:
            case SandboxesBegan(attempt=attempt, digest=digest):
                self._began[attempt] = digest
                self._lines.clear()
            case SandboxSaved(attempt=attempt):
                self._saved.setdefault(attempt, []).append(message)
                self._lines.clear()
            case SandboxSlept(attempt=attempt, snapshot=snapshot):
                self._slept[attempt] = snapshot.digest
                self._lines.clear()
            case StepBegun(id=id, attempt=attempt):
                self._begun.setdefault(id, {})[attempt] = message
            case CommandRefused(code=code) if code in PASSING:
                pass
            case (
                CommandFinished() | CommandRefused() | FileWritten() | FileRead() | FileManaged() | SnapshotTaken()
                | RolledBack() | Hibernated()
            ):  # fmt: skip
                return self._step(message, time_ms, sequence)
            case _:
                pass
        return None

    def _step(self, answer: Answer, time_ms: int, sequence: int) -> Told | None:
        step, attempt = answer.step, answer.attempt
        steps = self._steps.setdefault(attempt, {})
        if not step.number or step.number in steps:
            return None
        refused = isinstance(answer, CommandRefused)
        told = Told(answer.id, attempt, step, word(answer), refused, time_ms, sequence, answer)
        steps[step.number] = told
        self._numbers.setdefault(answer.id, {})[attempt] = step.number
        return told

    def knows(self, attempt: int) -> bool:
        """Return whether it is told what an attempt is: only then is it known what it has behind it."""
        return order(attempt) == 0 or attempt in self._began or self._asleep_as(attempt) is not None

    def last(self, attempt: int) -> int:
        """Return this attempt, or, where it never began, the last one that did: what came of it stays."""
        if self.knows(attempt):
            return attempt
        began = [0, *(each for each in self._began if order(each) < order(attempt))]
        return max(began, key=lambda each: (order(each), each in self._steps))

    def recorded(self, id: str, attempt: int) -> Told | None:
        """Return a step that an attempt has behind it."""
        for each, within in self._line(attempt):
            number = self._numbers.get(id, {}).get(each, 0)
            if number and _holds(within, number):
                return self._steps[each][number]
        return None

    def undone(self, id: str, attempt: int) -> Told | StepBegun | None:
        """Return a step that was carried out, or at least begun, in some other attempt, and is undone in this one."""
        line = dict(self._line(attempt))
        for each, number in self._numbers.get(id, {}).items():
            if each not in line or not _holds(line[each], number):
                return self._steps[each][number]
        for each, begun in self._begun.get(id, {}).items():
            if each != attempt and (each not in line or not _holds(line[each], begun.step.number)):
                return begun
        return None

    def holds(self, attempt: int, of: int, number: int) -> bool:
        """Return whether an attempt has the step of that number behind it, of an earlier attempt or its own."""
        return any(each == of and _holds(within, number) for each, within in self._line(attempt))

    def counts(self, id: str, attempt: int, of: int) -> bool:
        """Return whether an attempt has behind it that a step was given up in an attempt, and not done again since."""
        told = self.recorded(id, attempt)
        return any(each == of for each, _ in self._line(attempt)) and (
            told is None or order(told.attempt) <= order(of)
        )  # fmt: skip

    def steps(self, attempt: int) -> list[Told]:
        """Return the steps that an attempt has behind it, in their order."""
        found = [
            told
            for each, within in self._line(attempt)
            for number, told in self._steps.get(each, {}).items()
            if _holds(within, number)
        ]
        return sorted(found, key=lambda told: told.place)

    def saved(self, attempt: int) -> SandboxSaved | None:
        """Return the last snapshot that an attempt has behind it."""
        for each, within in self._line(attempt):
            known = [s for s in self._saved.get(each, ()) if within is None or not ranges.without(s.steps, within)]
            if known:
                return max(known, key=lambda saved: ranges.count(saved.steps))
        return None

    def _line(self, attempt: int) -> tuple[tuple[int, Ranges | None], ...]:
        """Return the attempts that a story is made of, the latest first, with what of each; None: all."""
        line = self._lines.get(attempt)
        if line is None:
            found: list[tuple[int, Ranges | None]] = [(attempt, None)]
            at: int = attempt
            while (saved := self._origin(at)) is not None:
                found.append((saved.attempt, saved.steps))
                at = saved.attempt
            line = self._lines[attempt] = tuple(found)
        return line

    def _origin(self, attempt: int) -> SandboxSaved | None:
        """Return the snapshot that an attempt goes on from, if it is one of an earlier attempt."""
        digest = self._began.get(attempt, self._asleep_as(attempt))
        known = [
            saved
            for each, all_of_it in self._saved.items()
            for saved in all_of_it
            if order(each) < order(attempt) and saved.snapshot.digest == digest
        ]
        return max(known, key=lambda s: (order(s.attempt), ranges.count(s.steps)), default=None)

    def _asleep_as(self, attempt: int) -> str | None:
        return next((digest for each, digest in self._slept.items() if next_attempt(each) == attempt), None)


def in_snapshot(told: Told, saved: SandboxSaved) -> bool:
    """Return whether a step is in a snapshot, both of the story of one attempt."""
    attempt, number = told.place
    mine = order(saved.attempt)
    return attempt < mine or (attempt == mine and _holds(saved.steps, number))


def order(attempt: int) -> int:
    """Return the how-manieth an attempt is: of two that are tried at once, both are."""
    return attempt & (HEDGE - 1)


def _holds(within: Ranges | None, number: int) -> bool:
    return within is None or ranges.holds(within, number)
