"""What follows from what happens to an executor, as data; `service` carries it out."""

from dataclasses import dataclass
from enum import IntEnum

from shoal.wire.asked import Asked
from shoal.wire.messages import (
    Command,
    EndReason,
    Ranges,
    SandboxResult,
    Snapshot,
    StartSandboxes,
)

Key = tuple[str, int, str]
"""A group: rollout, attempt and node. Placement never names an index of a group twice."""


class Phase(IntEnum):
    """Where a sandbox is in its life here."""

    STARTING = 0
    LIVE = 1
    ENDING = 2


@dataclass(frozen=True, slots=True)
class Start:
    """Start these sandboxes; answer with `started` or `start_failed` for each."""

    group: Key
    order: StartSandboxes
    indices: Ranges


@dataclass(frozen=True, slots=True)
class RunJobs:
    """Run the command that travelled with the rollout in each of these; answer with `jobs_done`.

    `commands`: one for all of them, or one for each.
    """

    group: Key
    indices: Ranges
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Destroy:
    """End these sandboxes; answer with `destroyed`."""

    group: Key
    indices: Ranges


@dataclass(frozen=True, slots=True)
class LetSleep:
    """Put this sandbox to sleep as soon as no command is under way in it: it makes room; answer with `slept`."""

    group: Key
    index: int


@dataclass(frozen=True, slots=True)
class CarryOut:
    """Carry out a trainer's command or file operation in a live sandbox."""

    group: Key
    asked: Asked


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the trainer that its sandbox is gone, and why where that is known; or that it sleeps."""

    asked: Asked
    reason: EndReason | None
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class ReportReady:
    """Say that these sandboxes take commands. `job`: a command travels along, so nobody waits for this word."""

    group: Key
    order: StartSandboxes
    indices: Ranges
    job: bool


@dataclass(frozen=True, slots=True)
class ReportFinished:
    """Say what the one command of each of these returned."""

    group: Key
    order: StartSandboxes
    results: tuple[SandboxResult, ...]


@dataclass(frozen=True, slots=True)
class ReportEnded:
    """Say that these sandboxes ended without a result."""

    group: Key
    order: StartSandboxes
    indices: Ranges
    reason: EndReason
    detail: str


@dataclass(frozen=True, slots=True)
class ReportSlept:
    """Say that this sandbox sleeps, and what it will go on from."""

    group: Key
    order: StartSandboxes
    index: int
    snapshot: Snapshot
    preempted: bool = False


@dataclass(frozen=True, slots=True)
class ReportReleased:
    """Say that these sandboxes no longer occupy their node."""

    group: Key
    order: StartSandboxes
    indices: Ranges


Effect = (
    Start | RunJobs | Destroy | LetSleep | CarryOut | Refuse
    | ReportReady | ReportFinished | ReportEnded | ReportSlept | ReportReleased
)  # fmt: skip
