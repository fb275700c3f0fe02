"""One live sandbox: run commands in it, read and write its files, release it."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from shoal.client import snapshots
from shoal.client.errors import (
    BadRequest,
    CommandFailed,
    FileError,
    RolledBack,
    ShoalError,
    SnapshotError,
    sandbox_error,
)
from shoal.client.fold import Ready
from shoal.client.link import Answer, OutputSink
from shoal.client.presence import Presence
from shoal.client.requests import MOST_BYTES, PIECE, CommandLike, command, shown, whole_number
from shoal.client.results import CommandResult
from shoal.client.snapshots import Snapshot
from shoal.wire import subjects
from shoal.wire.codec import encode
from shoal.wire.messages import (
    Command,
    CommandFinished,
    CommandRefused,
    EndReason,
    FileRead,
    FileWritten,
    Hibernate,
    OnLost,
    ReadFile,
    RollBack,
    RunCommand,
    TakeSnapshot,
    WriteFile,
)

if TYPE_CHECKING:
    from shoal.client.rollout import Rollout

FILE_TIMEOUT_S: Final = 60.0
_MOST_ID: Final = 200

Head = tuple[str, str, str, int, str, int, int]
"""What every request begins with."""
Request = RunCommand | WriteFile | ReadFile | TakeSnapshot | RollBack | Hibernate


class Sandbox:
    """A sandbox of a rollout. Its `name` is `<rollout>-<index>`.

    Every operation raises SandboxLost when the platform lost it, and SandboxEnded when it ended otherwise; also one
    that was under way. Where it is resumed after a loss, the operation under way or the next one raises SandboxResumed,
    once, if anything was undone by it. While it sleeps or is being resumed, operations wait until it is there again.
    """

    def __init__(self, rollout: "Rollout", where: Ready) -> None:
        self.rollout = rollout
        self.index = where.index
        self.isolation = where.isolation
        self.name = f"{rollout.id}-{where.index}"
        self.presence = Presence(self.name, where, self._wake)
        self.ready_ms: float | None = None
        """Ms from submission to readiness, by the broker's clock."""
        self.first_command_ms: float | None = None
        """Ms from submission to the end of its first command, by the broker's clock."""
        self.files = Files(self)
        self._reason: EndReason | None = None
        self._session = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Sandbox {self.name} on {self.node or 'no node'}{f', {self._reason}' if self._reason else ''}>"

    @property
    def attempt(self) -> int:
        """How often it was started before."""
        return self.presence.attempt

    @property
    def node(self) -> str:
        """Where it runs; empty while it runs nowhere."""
        return self.presence.node

    @property
    def executor(self) -> str:
        """Who takes commands for it; empty while it runs nowhere."""
        return self.presence.executor

    @property
    def asleep(self) -> bool:
        """Whether it sleeps: all of it is kept, it occupies nothing, and its next command wakes it."""
        return self.presence.asleep

    @property
    def ended(self) -> EndReason | None:
        """Why it ended, or None while it lives."""
        return self._reason

    @property
    def lost(self) -> bool:
        """Whether the platform lost it: what happened in it says nothing."""
        return self._reason is not None and self._reason.infrastructure

    async def run(
        self,
        what: CommandLike,
        *,
        timeout: float | str | None = None,  # noqa: ASYNC109 - the command's, kept by the sandbox
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        user: str = "",
        output_limit: int | str | None = None,
        session: bool = False,
        on_output: OutputSink | None = None,
        check: bool = False,
        id: str | None = None,
    ) -> CommandResult:
        """Run a command to its end: a str is a line for a shell, a list of str a program and its arguments.

        timeout: seconds, or such as "30s"; what exceeds it is killed, and the result says `timed_out`. output_limit:
        bytes of each stream, at most 256 KiB. session: run it in the sandbox's one persistent shell. on_output: called
        in the event loop with "stdout" or "stderr" and bytes as they come. check: raise CommandFailed unless it exits
        with 0. id: makes a repetition harmless; the sandbox runs an id once and answers the same ever after.

        Raises BadRequest, SandboxLost, SandboxEnded, CommandFailed, or Timeout when no answer comes.
        """
        wire = command(
            what,
            timeout=timeout,
            cwd=cwd,
            env=env,
            stdin=stdin,
            user=user,
            output_limit=output_limit,
            session=session,
        )
        return await self._run(wire, id, on_output, check)

    async def python(
        self,
        code: str,
        *,
        timeout: float | str | None = None,  # noqa: ASYNC109 - the code's, kept by the sandbox
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        output_limit: int | str | None = None,
        on_output: OutputSink | None = None,
        check: bool = False,
        id: str | None = None,
    ) -> CommandResult:
        """Run Python code in the sandbox's one interpreter, whose variables and imports stay from call to call.

        It is the image's own Python; a template's warm interpreter where it has one. What the code prints is stdout,
        and so is the repr of a last expression; an exception is a traceback on stderr and exit code 1. What exceeds its
        timeout is interrupted as by Ctrl-C, and killed with its state a second later. Else as `run`.
        """
        if not isinstance(code, str) or not code.strip():
            raise BadRequest("code", "it is empty; write Python, such as 'x = 1'")
        wire = command("true", timeout=timeout, cwd=cwd, env=env, output_limit=output_limit)
        wire = msgspec.structs.replace(wire, line="", argv=(), python=code)
        return await self._run(wire, id, on_output, check)

    async def _run(self, wire: Command, id: str | None, on_output: OutputSink | None, check: bool) -> CommandResult:
        def message(head: Head) -> RunCommand:
            return RunCommand(*head, wire, on_output is not None)

        if len(encode(message(self.head(id)))) > MOST_BYTES:
            raise BadRequest(
                "stdin" if wire.stdin else "command", "it is too long for one message; write a file and use it"
            )
        within = wire.timeout_ms / 1000 + self.rollout.link.grace_s if wire.timeout_ms else None
        if wire.session:  # the shell takes one line at a time: only then does its time run
            async with self._session:
                answer = await self.ask(message, within, f"command {shown(wire)!r}", id, on_output)
        else:
            answer = await self.ask(message, within, f"command {shown(wire)!r}", id, on_output)
        if not isinstance(answer, CommandFinished):
            raise self.unexpected(answer)
        self.presence.done(shown(wire))
        result = CommandResult.of(answer.result)
        if check and not result.ok:
            raise CommandFailed(self.name, shown(wire), result)
        return result

    async def snapshot(self, name: str | None = None, *, memory: bool | None = None) -> Snapshot:
        """Keep it as it is now, under a name if one is given; its processes stand still for some milliseconds.

        What is kept is the disk, and what its processes have in memory where the driver can; memory=True insists on
        that. Raises SnapshotError, when the sandbox goes on as it was; BadRequest, SandboxLost, SandboxEnded, Timeout.
        """
        return await snapshots.take(self, name, memory)

    async def fork(self, n: int = 1, *, timeout: float | str | None = None) -> "list[Sandbox]":  # noqa: ASYNC109 - the forks', kept by the cluster
        """Return n running copies of it as it is now, on whatever nodes; it goes on itself.

        They are a rollout of their own, of the same run and with the same limits: `fork(...)[0].rollout.release()`
        gives all of them back. timeout bounds that rollout. Raises as `snapshot`, and as `Cluster.rollout`.
        """
        return await snapshots.fork(self, n, timeout)

    async def rollback(self, snapshot: Snapshot) -> None:
        """Make it what a snapshot holds; what happened in it since is gone, and commands under way are cut off.

        Raises SnapshotError, when it goes on as it was; SandboxLost when it could not be brought back.
        """
        await snapshots.roll_back(self, snapshot)

    async def hibernate(self) -> None:
        """Let it sleep: all of it is kept, its slot is free for others, and its next command wakes it, anywhere.

        Raises SnapshotError, when it goes on as it was: with code `busy` while a command is under way, `unsupported`
        where it has something in memory that its driver cannot keep. Idempotent.
        """
        await snapshots.hibernate(self)

    async def release(self) -> None:
        """Give it back. Idempotent."""
        if self._reason is None:
            await self.rollout.release_one(self.index)
            self.ended_by(EndReason.RELEASED)

    # --- the rollout's side

    def ended_by(self, reason: EndReason, detail: str = "", *, restarting: bool = False) -> None:
        """Note its end; what is under way fails."""
        if self._reason is not None:
            return
        self._reason = reason
        self.presence.ended(lambda: sandbox_error(self.name, reason, detail, restarting=restarting))

    async def write_piece(self, path: str, data: bytes, offset: int, mode: int) -> None:
        """Write one piece of a file."""

        def message(head: Head) -> WriteFile:
            return WriteFile(*head, path, data, offset, mode)

        answer = await self.ask(message, FILE_TIMEOUT_S, f"writing {path!r}")
        if not isinstance(answer, FileWritten):
            raise self.unexpected(answer, path)
        self.presence.done(f"writing {path}")

    async def read_piece(self, path: str, offset: int) -> FileRead:
        """Read one piece of a file."""

        def message(head: Head) -> ReadFile:
            return ReadFile(*head, path, offset, PIECE)

        answer = await self.ask(message, FILE_TIMEOUT_S, f"reading {path!r}")
        if not isinstance(answer, FileRead):
            raise self.unexpected(answer, path)
        return answer

    def head(self, id: str | None) -> Head:
        """Return what every request begins with; id makes a repetition harmless."""
        if id is not None and not 0 < len(id) <= _MOST_ID:
            raise BadRequest("id", f"write 1 to {_MOST_ID} characters")
        # Executors know commands by id alone: the sandbox's name keeps one trainer's "step-1" from another's.
        full = f"{self.name}.{self.attempt}:{id if id is not None else '~' + secrets.token_hex(8)}"
        rollout = self.rollout
        return (full, rollout.tenant, rollout.run, rollout.cell, rollout.id, self.index, self.attempt)

    async def ask(
        self,
        make: Callable[[Head], Request],
        within_s: float | None,
        what: str,
        id: str | None = None,
        on_output: OutputSink | None = None,
    ) -> Answer:
        """Send a request to the sandbox's executor, once it is there, and wait for its answer so long."""
        presence, link = self.presence, self.rollout.link
        what = f"{what} in sandbox {self.name}"
        while True:
            await presence.here()
            message = make(self.head(id))
            subject = subjects.executor_command(self.executor, self.rollout.tenant)
            answer = await link.ask(subject, message, message.id, within_s, what, presence.pending, on_output)
            if not isinstance(answer, CommandRefused) or answer.code != "asleep":
                return answer
            presence.slept(answer.attempt, link.grace_s)
            if isinstance(message, Hibernate):
                return answer

    def _wake(self, attempt: int) -> "asyncio.Future[None]":
        return asyncio.ensure_future(self.rollout.want(self.index, attempt))

    def unexpected(self, answer: Answer, path: str | None = None) -> ShoalError:
        """Return the error that an answer of another kind than was hoped for stands for."""
        if not isinstance(answer, CommandRefused):
            return BadRequest("id", f"{answer.id!r} was used for another kind of operation; choose another one")
        match answer.code:
            case "sandbox_gone":
                # An executor that knows nothing of it was restarted without it.
                reason = self._reason or answer.reason or EndReason.NODE_LOST
                if reason.infrastructure and self._reason is None and self.rollout.spec.on_lost is OnLost.RESUME:
                    return self.presence.lost(reason, answer.detail, told=True, attempt=answer.attempt)
                self.ended_by(reason, answer.detail)
                return sandbox_error(self.name, reason, answer.detail)
            case "file_error":
                return FileError(self.name, path or "", answer.detail)
            case "unsupported" | "snapshot_failed" | "busy":
                return SnapshotError(self.name, answer.code, answer.detail)
            case "rolled_back":
                return RolledBack(self.name)
            case "answer_gone":
                return BadRequest(
                    "id", f"this command ran before and its answer is no longer kept: {answer.detail}; `shoal events`"
                )
            case _:
                return BadRequest("command" if path is None else "path", answer.detail)


class Files:
    """The files of a sandbox. A relative path is relative to where its commands run."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def write(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file, with the directories it needs; large ones in pieces. Raises FileError."""
        content = data.encode() if isinstance(data, str) else bytes(data)
        _path(path)
        whole_number(mode, "mode", 0, 0o7777)
        for offset in range(0, max(len(content), 1), PIECE):
            await self._sandbox.write_piece(path, content[offset : offset + PIECE], offset, mode)

    async def read(self, path: str) -> str:
        """Return a file as UTF-8 text. Raises FileError; also when it is no such text."""
        content = await self.read_bytes(path)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise FileError(self._sandbox.name, path, f"it is not UTF-8 ({error.reason}); use read_bytes") from error

    async def read_bytes(self, path: str) -> bytes:
        """Return a file's bytes; large ones come in pieces. Raises FileError."""
        _path(path)
        pieces: list[bytes] = []
        offset = 0
        while True:
            piece = await self._sandbox.read_piece(path, offset)
            pieces.append(piece.data)
            offset += len(piece.data)
            if piece.eof or not piece.data:
                return b"".join(pieces)


def _path(path: str) -> None:
    if not isinstance(path, str) or not path or "\0" in path:
        raise BadRequest("path", f"{path!r} is not a path")
