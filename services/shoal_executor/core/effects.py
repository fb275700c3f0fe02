"""What follows from what happens to an executor, as data; `service` carries it out."""

from enum import IntEnum

import msgspec

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


class Start(msgspec.Struct, frozen=True):
    """Start these sandboxes; answer with `started` or `start_failed` for each."""

    group: Key
    order: StartSandboxes
    indices: Ranges


class RunJobs(msgspec.Struct, frozen=True):
    """Run the command that travelled with the rollout in each of these; answer with `jobs_done`.

    `commands`: one for all of them, or one for each.
    """

    group: Key
    indices: Ranges
    commands: tuple[Command, ...]


class Destroy(msgspec.Struct, frozen=True):
    """End these sandboxes; answer with `destroyed`."""

    group: Key
    indices: Ranges


class LetSleep(msgspec.Struct, frozen=True):
    """Put this sandbox to sleep as soon as no command is under way in it: it makes room; answer with `slept`."""

    group: Key
    index: int


class CarryOut(msgspec.Struct, frozen=True):
    """Carry out a trainer's command or file operation in a live sandbox."""

    group: Key
    asked: Asked


class CutShort(msgspec.Struct, frozen=True):
    """Nobody waits for this command any more: end it, if it has not come to its end."""

    group: Key
    index: int
    id: str


class Refuse(msgspec.Struct, frozen=True):
    """Tell the trainer that its sandbox is gone, and why where that is known; or that it sleeps."""

    asked: Asked
    reason: EndReason | None
    asleep: bool = False


class ReportReady(msgspec.Struct, frozen=True):
    """Say that these sandboxes take commands. `job`: a command travels along, so nobody waits for this word."""

    group: Key
    order: StartSandboxes
    indices: Ranges
    job: bool


class ReportFinished(msgspec.Struct, frozen=True):
    """Say what the one command of each of these returned. `more`: others of the group will be told of as well."""

    group: Key
    order: StartSandboxes
    indices: Ranges
    results: tuple[SandboxResult, ...]
    more: bool = False


class ReportEnded(msgspec.Struct, frozen=True):
    """Say that these sandboxes ended without a result."""

    group: Key
    order: StartSandboxes
    indices: Ranges
    reason: EndReason
    detail: str


class ReportSlept(msgspec.Struct, frozen=True):
    """Say that this sandbox sleeps, and what it will go on from."""

    group: Key
    order: StartSandboxes
    index: int
    snapshot: Snapshot
    preempted: bool = False


class ReportReleased(msgspec.Struct, frozen=True):
    """Say that these sandboxes no longer occupy their node. `more`: others of the group still do."""

    group: Key
    order: StartSandboxes
    indices: Ranges
    more: bool = False


Effect = (
    Start | RunJobs | Destroy | LetSleep | CarryOut | CutShort | Refuse
    | ReportReady | ReportFinished | ReportEnded | ReportSlept | ReportReleased
)  # fmt: skip
