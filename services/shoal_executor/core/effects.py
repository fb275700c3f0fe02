"""What follows from what happens to an executor, as data; `service` carries it out."""

from dataclasses import dataclass
from enum import IntEnum

from shoal.wire.asked import Asked
from shoal.wire.messages import (
    Command,
    CommandResult,
    EndReason,
    Ranges,
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
class RunJob:
    """Run the command that travelled with the rollout; answer with `job_done`."""

    group: Key
    index: int
    command: Command


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
    """Say that this sandbox takes commands. `job`: its command travels along, so nobody waits for this word."""

    group: Key
    order: StartSandboxes
    index: int
    job: bool


@dataclass(frozen=True, slots=True)
class ReportFinished:
    """Say what the sandbox's one command returned."""

    group: Key
    order: StartSandboxes
    index: int
    result: CommandResult
    run_us: int


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
    Start | RunJob | Destroy | LetSleep | CarryOut | Refuse
    | ReportReady | ReportFinished | ReportEnded | ReportSlept | ReportReleased
)  # fmt: skip
