"""A trajectory as rows: one for each step, flat, for whoever learns from it. No I/O."""

import json
from dataclasses import dataclass
from typing import Final

import msgspec

from shoal.client.requests import shown
from shoal.client.results import SandboxOutcome
from shoal.client.steps import step_of
from shoal.machine.ledger import HEDGE
from shoal.wire.asked import Answer, word
from shoal.wire.messages import (
    Blob,
    Command,
    CommandFinished,
    CommandRefused,
    CommandResult,
    FileManaged,
    FileRead,
    FileWritten,
    Hibernated,
    RolledBack,
    RolloutSubmitted,
    SandboxesBegan,
    SandboxesReady,
    SandboxSaved,
    SandboxSlept,
    SnapshotTaken,
)

State = SandboxesBegan | SandboxSaved | SandboxSlept


@dataclass(slots=True)
class TrajectoryStep:
    """One step of one sandbox, and what came of it.

    `attempt` and `step` put a sandbox's rows into order; of a job, whose command travelled with its rollout, step 1 is
    all there is. `kind`: run, session, python, write, read, list, stat, remove, make_dir, rename, snapshot, rollback or
    hibernate. An `offset` of -1: it was appended. `to`: the new path of what was renamed. What list and stat have found
    is `data`, a JSON list of objects. What is not UTF-8 is shown with replacement characters; digests are of the bytes.
    Of an output over its limit, `stdout_dropped` bytes are left out before the last `stdout_tail`. `stdout_blob`,
    `stderr_blob`: the digest of all of it, where here is only the beginning. `error`: why it was not carried out.
    `undone`: a loss has undone it, so that the sandbox went on without it. Times in ms since the epoch by the broker's
    clock. `end`: why the sandbox ended, in its last row, or None while it lives.
    """

    run: str
    rollout: str
    key: str
    template: str
    sandbox: str
    index: int
    attempt: int
    step: int
    id: str
    kind: str
    command: str = ""
    argv: list[str] | None = None
    cwd: str = ""
    env: dict[str, str] | None = None
    user: str = ""
    stdin: str | None = None
    path: str = ""
    offset: int | None = None
    data: str | None = None
    input_digest: str = ""
    input_size: int | None = None
    exit_code: int | None = None
    stdout: str | None = None
    stderr: str | None = None
    stdout_dropped: int = 0
    stderr_dropped: int = 0
    stdout_blob: str = ""
    stderr_blob: str = ""
    timed_out: bool = False
    out_of_memory: bool = False
    disk_full: bool = False
    given_up: bool = False
    error: str = ""
    detail: str = ""
    snapshot: str = ""
    idempotent: bool = True
    undone: bool = False
    asked_ms: int | None = None
    ended_ms: int | None = None
    duration_ms: float | None = None
    end: str | None = None
    to: str = ""
    recursive: bool = False
    stdout_tail: int = 0
    stderr_tail: int = 0


def row_of(request: RolloutSubmitted, answer: Answer, ended_ms: int) -> TrajectoryStep:
    """Return a step of a sandbox as a row."""
    step = answer.step
    row = _row(request, answer.index, answer.attempt, step.number, step_of(answer.id), word(answer))
    row.asked_ms, row.ended_ms = step.asked_ms or None, ended_ms
    row.idempotent = step.idempotent
    match answer:
        case CommandFinished(command=command, result=result, stdin=stdin):
            _command(row, command, stdin)
            _result(row, result)
        case FileWritten(path=path, data=data, offset=offset, content=content):
            row.path, row.offset = path, offset
            _input(row, content)
            if content is not None and content.size == len(data):
                row.data = _text(data)
        case FileRead(path=path, data=data, offset=offset):
            row.path, row.offset, row.data = path, offset, _text(data)
        case FileManaged(op=op, path=path, to=to, recursive=recursive):
            row.path, row.to, row.recursive = path, to, recursive
            if not op.changes:
                row.data = json.dumps([msgspec.structs.asdict(entry) for entry in answer.entries])
                row.detail = "and more" if answer.more else ""
        case SnapshotTaken(snapshot=snapshot, name=name, took_us=took_us):
            row.snapshot, row.detail, row.duration_ms = snapshot.digest, name, took_us / 1000
        case RolledBack(digest=digest) | Hibernated(digest=digest):
            row.snapshot = digest
        case CommandRefused(code=code, detail=detail, path=path):
            row.error, row.detail, row.path = code, detail, path
            if answer.command is not None:
                _command(row, answer.command, None)
    return row


def job_of(
    request: RolloutSubmitted, outcome: SandboxOutcome, result: CommandResult | None, ended_ms: int
) -> TrajectoryStep:
    """Return the one command of a job as a row."""
    commands = request.spec.commands
    command = commands[outcome.index if len(commands) > 1 else 0]
    row = _row(request, outcome.index, outcome.attempt, 1, "", "run")
    _command(row, command, None)
    row.ended_ms, row.end = ended_ms, str(outcome.reason)
    if result is not None:
        _result(row, result)
    else:
        row.error, row.detail = str(outcome.reason), outcome.detail
    return row


def state_of(request: RolloutSubmitted, state: State | SandboxesReady, index: int, time_ms: int) -> TrajectoryStep:
    """Return what is told of a sandbox, and was no step of it, as a row: for people."""
    kind = _STATES[type(state)]
    row = _row(request, index, state.attempt, 0, "", kind)
    row.ended_ms = time_ms
    match state:
        case SandboxesBegan(node=node, digest=digest) | SandboxesReady(node=node, digest=digest):
            row.snapshot, row.detail = digest, f"on {node}, by {state.executor}, isolation {state.isolation}"
        case SandboxSaved(snapshot=snapshot, steps=steps):
            spans = ", ".join(f"{first}-{first + count - 1}" if count > 1 else f"{first}" for first, count in steps)
            row.snapshot, row.detail = snapshot.digest, f"with steps {spans}" if spans else "with no step"
        case SandboxSlept(snapshot=snapshot, preempted=preempted):
            row.snapshot, row.detail = snapshot.digest, "it made room for others" if preempted else ""
    return row


_STATES: Final[dict[type, str]] = {
    SandboxesReady: "began",
    SandboxesBegan: "began",
    SandboxSaved: "kept",
    SandboxSlept: "slept",
}


def _row(
    request: RolloutSubmitted, index: int, attempt: int, number: int, id: str, kind: str
) -> TrajectoryStep:  # fmt: skip
    name = f"{request.rollout}-{index}"
    place = (request.run, request.rollout, request.key, request.spec.template, name, index)
    return TrajectoryStep(*place, attempt & (HEDGE - 1), number, id, kind)


def _command(row: TrajectoryStep, command: Command, stdin: Blob | None) -> None:
    row.kind = "python" if command.python else "session" if command.session else "run"
    row.command, row.argv = shown(command), list(command.argv) or None
    row.cwd, row.env, row.user = command.cwd, dict(command.env) or None, command.user
    _input(row, stdin)
    if command.stdin:
        row.stdin = _text(command.stdin)


def _input(row: TrajectoryStep, content: Blob | None) -> None:
    if content is not None:
        row.input_digest, row.input_size = content.digest, content.size


def _result(row: TrajectoryStep, result: CommandResult) -> None:
    row.exit_code, row.stdout, row.stderr = result.exit_code, _text(result.stdout), _text(result.stderr)
    row.stdout_tail = 0 if result.stdout_blob else result.stdout_tail
    row.stderr_tail = 0 if result.stderr_blob else result.stderr_tail
    row.stdout_dropped, row.stderr_dropped = result.stdout_dropped, result.stderr_dropped
    row.stdout_blob = result.stdout_blob.digest if result.stdout_blob else ""
    row.stderr_blob = result.stderr_blob.digest if result.stderr_blob else ""
    row.timed_out, row.out_of_memory, row.disk_full = result.timed_out, result.out_of_memory, result.disk_full
    row.given_up = result.given_up
    row.duration_ms = result.duration_us / 1000


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
