"""The trajectory: what was done in sandboxes, what came of it, and what they were when it was done.

`SandboxSaved` and `SandboxSlept` are said here as well as in the rollout log, so that this log alone tells what of a
sandbox's story the present one has behind it.
"""

from shoal.wire.bounds import Integer
from shoal.wire.messages.base import Message
from shoal.wire.values import Blob, Command, CommandResult, EndReason, FileEntry, FileOp, Ranges, Snapshot, Step


class SandboxesBegan(Message, frozen=True):
    """These sandboxes take commands, and are what the snapshot with this digest holds.

    Said of each attempt but the first, which has nothing behind it: `SandboxesReady` says what that one is.
    """

    rollout: str
    attempt: Integer
    indices: Ranges
    node: str
    executor: str
    isolation: str
    digest: str


class StepBegun(Message, frozen=True):
    """Something that must not be done twice is about to be done. `what` as in `CommandRefused`."""

    id: str
    rollout: str
    index: Integer
    attempt: Integer
    step: Step
    what: str
    command: Command | None = None
    path: str = ""


class CommandOutput(Message, frozen=True):
    """A piece of a streamed command's output. `channel` is 1 for stdout, 2 for stderr; `part` counts from 0.

    An executor that went on where another was killed counts from far above; pieces may be missing before that.
    """

    id: str
    rollout: str
    index: Integer
    part: Integer
    channel: Integer
    data: bytes
    attempt: Integer = 0


class CommandFinished(Message, frozen=True):
    """A command ended by itself or by its limits. `command` is kept, so that the trajectory tells the whole story.

    `stdin`: what its standard input was, where it had one; `command.stdin` has it unless it is large.
    """

    id: str
    rollout: str
    index: Integer
    attempt: Integer
    command: Command
    result: CommandResult
    step: Step = Step()
    stdin: Blob | None = None


class FileWritten(Message, frozen=True):
    """A piece of a file was written: `content`, which `data` has unless it is large. Offset -1: it was appended."""

    id: str
    rollout: str
    index: Integer
    attempt: Integer
    path: str
    size: Integer  # of the whole file, in bytes
    step: Step = Step()
    data: bytes = b""
    offset: Integer = 0
    mode: Integer = 0o644
    content: Blob | None = None


class FileRead(Message, frozen=True):
    """A piece of a file was read; `eof` when nothing follows."""

    id: str
    rollout: str
    index: Integer
    attempt: Integer
    path: str
    data: bytes
    size: Integer
    eof: bool
    step: Step = Step()
    offset: Integer = 0


class FileManaged(Message, frozen=True):
    """Files were looked at, or changed. `entries`: what a directory has; of stat the one, or none where nothing is.

    `more`: the directory has more entries than are told.
    """

    id: str
    rollout: str
    index: Integer
    attempt: Integer
    op: FileOp
    path: str
    step: Step = Step()
    to: str = ""
    recursive: bool = False
    entries: tuple[FileEntry, ...] = ()
    more: bool = False


class SnapshotTaken(Message, frozen=True):
    """A live sandbox was kept as it was. `took_us`: how long it stood still for it, in microseconds."""

    id: str
    rollout: str
    index: Integer
    attempt: Integer
    snapshot: Snapshot
    name: str = ""
    took_us: Integer = 0
    step: Step = Step()
    memory: str = ""  # as it was asked for


class RolledBack(Message, frozen=True):
    """A sandbox is again what the snapshot with this digest holds."""

    id: str
    rollout: str
    index: Integer
    attempt: Integer
    digest: str
    step: Step = Step()


class Hibernated(Message, frozen=True):
    """A sandbox sleeps, and occupies nothing; the snapshot with this digest is all of it."""

    id: str
    rollout: str
    index: Integer
    attempt: Integer
    digest: str
    step: Step = Step()


class CommandRefused(Message, frozen=True):
    """A command, file operation or snapshot was not carried out.

    `code` is `sandbox_gone` (with the reason it ended, where known), `file_error`, `bad_request`, `unsupported` (by
    the sandbox's driver), `snapshot_failed`, `rolled_back` (while it ran), `asleep` (wake it, and ask again: nothing
    was carried out), `busy` (it cannot sleep while a command is under way; or another command held the shell, or the
    interpreter, for too long), `given_up` (before it was begun: one that ran has a result, which says so) or
    `answer_gone` (it was carried out before, and the trajectory has its result). `what` was asked: run, write, read,
    a `FileOp`, snapshot, rollback or hibernate.
    """

    id: str
    rollout: str
    index: Integer
    attempt: Integer
    code: str
    detail: str
    reason: EndReason | None = None
    step: Step = Step()
    what: str = ""
    command: Command | None = None
    path: str = ""


class BlobRead(Message, frozen=True):
    """A piece of a blob, of `size` bytes in all; or `error` says why there is none."""

    id: str
    data: bytes
    size: Integer
    error: str = ""
