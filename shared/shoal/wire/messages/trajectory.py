"""The trajectory: what was done in sandboxes, and what came of it."""

from shoal.wire.messages.base import Message
from shoal.wire.values import Command, CommandResult, EndReason, Snapshot


class CommandOutput(Message, frozen=True):
    """A piece of a streamed command's output. `channel` is 1 for stdout, 2 for stderr; `part` counts from 0."""

    id: str
    rollout: str
    index: int
    part: int
    channel: int
    data: bytes


class CommandFinished(Message, frozen=True):
    """A command ended by itself or by its limits. `command` is kept, so that the trajectory tells the whole story."""

    id: str
    rollout: str
    index: int
    attempt: int
    command: Command
    result: CommandResult


class FileWritten(Message, frozen=True):
    """A piece of a file was written."""

    id: str
    rollout: str
    index: int
    attempt: int
    path: str
    size: int  # of the whole file, in bytes


class FileRead(Message, frozen=True):
    """A piece of a file was read; `eof` when nothing follows."""

    id: str
    rollout: str
    index: int
    attempt: int
    path: str
    data: bytes
    size: int
    eof: bool


class SnapshotTaken(Message, frozen=True):
    """A live sandbox was kept as it was. `took_us`: how long it stood still for it, in microseconds."""

    id: str
    rollout: str
    index: int
    attempt: int
    snapshot: Snapshot
    name: str = ""
    took_us: int = 0


class RolledBack(Message, frozen=True):
    """A sandbox is again what the snapshot with this digest holds."""

    id: str
    rollout: str
    index: int
    attempt: int
    digest: str


class Hibernated(Message, frozen=True):
    """A sandbox sleeps, and occupies nothing; the snapshot with this digest is all of it."""

    id: str
    rollout: str
    index: int
    attempt: int
    digest: str


class CommandRefused(Message, frozen=True):
    """A command, file operation or snapshot was not carried out.

    `code` is `sandbox_gone` (with the reason it ended, where known), `file_error`, `bad_request`, `unsupported` (by
    the sandbox's driver), `snapshot_failed`, `rolled_back` (while it ran), `asleep` (wake it, and ask again: nothing
    was carried out), `busy` (it cannot sleep while a command is under way) or `answer_gone` (it was carried out before,
    and the trajectory has its result).
    """

    id: str
    rollout: str
    index: int
    attempt: int
    code: str
    detail: str
    reason: EndReason | None = None
