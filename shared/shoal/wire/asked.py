"""What trainers ask of a sandbox, and whether an answer is one to the same question."""

import hashlib
from typing import Final, TypeGuard

import msgspec

from shoal.wire.messages import (
    Blob,
    Command,
    CommandFinished,
    CommandRefused,
    FileManaged,
    FileRead,
    FileWritten,
    GiveUp,
    Hibernate,
    Hibernated,
    ManageFile,
    ReadFile,
    RollBack,
    RolledBack,
    RunCommand,
    SnapshotTaken,
    StepBegun,
    TakeSnapshot,
    WriteFile,
)

Asked = RunCommand | WriteFile | ReadFile | ManageFile | TakeSnapshot | RollBack | Hibernate
Answer = (
    CommandFinished | CommandRefused | FileWritten | FileRead | FileManaged | SnapshotTaken | RolledBack | Hibernated
)  # fmt: skip

_WORDS: Final[dict[type, str]] = {
    RunCommand: "run", CommandFinished: "run",
    WriteFile: "write", FileWritten: "write",
    ReadFile: "read", FileRead: "read",
    TakeSnapshot: "snapshot", SnapshotTaken: "snapshot",
    RollBack: "rollback", RolledBack: "rollback",
    Hibernate: "hibernate", Hibernated: "hibernate",
}  # fmt: skip


def giving_up(asked: RunCommand) -> GiveUp:
    """Return what tells an executor that nobody waits for this any more."""
    return GiveUp(asked.id, asked.tenant, asked.run, asked.cell, asked.rollout, asked.index, asked.attempt)


def word(message: Asked | Answer | StepBegun) -> str:
    """Return what is done, as `CommandRefused.what` has it; empty where an executor of before refused it."""
    if isinstance(message, ManageFile | FileManaged):
        return str(message.op)
    return message.what if isinstance(message, CommandRefused | StepBegun) else _WORDS[type(message)]


def path_of(asked: Asked) -> str:
    """Return the file that is asked for; empty where none is."""
    return asked.path if isinstance(asked, WriteFile | ReadFile | ManageFile) else ""


def changes(answer: Answer) -> TypeGuard[CommandFinished | FileWritten | FileManaged]:
    """Return whether this tells of what a sandbox is otherwise for: a command's end, a file written or gone."""
    return isinstance(answer, CommandFinished | FileWritten) or (isinstance(answer, FileManaged) and answer.op.changes)


def blob_of(content: bytes) -> Blob:
    """Return what tells this content from any other."""
    return Blob(hashlib.sha256(content).hexdigest(), len(content))


def same(asked: Asked, told: Answer | StepBegun) -> bool:
    """Return whether this was told of what is asked: the same thing to be done, with the same input.

    How long it may take, and how much of its output is kept, may differ. Of what executors of before told, what they
    did not tell counts for the same.
    """
    if word(told) != word(asked):
        return not word(told)
    match told:
        case CommandFinished(command=command, stdin=stdin):
            assert isinstance(asked, RunCommand)
            fed = blob_of(asked.command.stdin) if asked.command.stdin else None
            return _bare(asked.command) == _bare(command) and (not told.step.number or fed == stdin)
        case CommandRefused(command=command, path=path) | StepBegun(command=command, path=path):
            if isinstance(asked, RunCommand):
                return command is None or _bare(asked.command) == _bare(command)
            return path == path_of(asked)
        case FileWritten(path=path, offset=offset, mode=mode, content=content):
            assert isinstance(asked, WriteFile)
            alike = content is None or (content, offset, mode) == (blob_of(asked.data), asked.offset, asked.mode)
            return path == asked.path and alike
        case FileRead(path=path, offset=offset):
            assert isinstance(asked, ReadFile)
            return path == asked.path and (not told.step.number or offset == asked.offset)
        case FileManaged(path=path, to=to, recursive=recursive):
            assert isinstance(asked, ManageFile)
            return (path, to, recursive) == (asked.path, asked.to, asked.recursive)
        case SnapshotTaken(name=name, memory=memory):
            assert isinstance(asked, TakeSnapshot)
            return name == asked.name and (not told.step.number or memory == asked.memory)
        case RolledBack(digest=digest):
            assert isinstance(asked, RollBack)
            return digest == asked.snapshot.digest
    return True


def _bare(command: Command) -> Command:
    return msgspec.structs.replace(command, stdin=b"", timeout_ms=0, output_limit=0)
