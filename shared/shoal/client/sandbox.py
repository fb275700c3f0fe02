"""One live sandbox: run commands in it, read and write its files, release it."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from shoal.client import givenup, outputs, refusals, replaying, returning, snapshots
from shoal.client.belonging import Live
from shoal.client.choices import Differing, Undone
from shoal.client.errors import (
    BadRequest,
    CommandFailed,
    SandboxResumed,
    ShoalError,
    sandbox_error,
)
from shoal.client.files import Files as Files
from shoal.client.fold import Ready
from shoal.client.pending import OutputSink
from shoal.client.presence import Presence
from shoal.client.replaying import Replay
from shoal.client.requests import MOST_BYTES, CommandLike, command, sendable, shown, truth
from shoal.client.results import CommandResult
from shoal.client.snapshots import Snapshot
from shoal.client.steps import Steps, diverged, own
from shoal.client.story import Story, order
from shoal.client.streaming import Streamed, say_again, sink
from shoal.wire import subjects
from shoal.wire.asked import Answer, Asked, same
from shoal.wire.codec import encode
from shoal.wire.messages import (
    Command,
    CommandFinished,
    CommandRefused,
    EndReason,
    Hibernate,
    RunCommand,
)

if TYPE_CHECKING:
    from shoal.client.rollout import Rollout

Head = tuple[str, str, str, int, str, int, int]
"""What every request begins with."""


class Sandbox(Live):
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
        self.steps = Steps(self.name, self.presence, rollout.policy)
        self.since_s = monotonic()
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
        idempotent: bool = True,
        id: str | None = None,
    ) -> CommandResult:
        """Run a command to its end: a str is a line for a shell, a list of str a program and its arguments.

        The shell is /bin/sh, which often knows no `[[ ]]` and no arrays; with session=True it is bash, where the image
        has that.

        timeout: seconds, or such as "30s"; what exceeds it is killed, and the result says `timed_out`. output_limit:
        bytes kept of each stream, half of them its beginning and half its end, 64 KiB unless told otherwise and at most
        16 MiB; `stdout_dropped` counts what is left out. Beyond 256 KiB they are kept as a blob, and fetched. session:
        run it in the sandbox's one persistent shell, where cwd and env stay set for later lines; no stdin, no user.
        on_output: called in the event loop with "stdout" or "stderr" and bytes as they come, the first up to the limit;
        what is written while the sandbox's executor is started again may be left out, the result has it. check: raise
        CommandFailed unless it exits with 0. idempotent: whether it may be carried out again where a loss has undone
        it. id: makes a repetition harmless; the sandbox runs an id once and answers the same ever after, also when it
        slept or was lost meanwhile, unless that has undone it. Cancelled (`asyncio.wait_for`, a TaskGroup, Ctrl-C), a
        command without an id is killed in the sandbox, too; one with an id, or in a run that is resumed, goes on, and
        asking again gets what came of it. A trainer of such a run that went on, and is started again, gets no answer
        to that step before it cancels it again.

        Raises BadRequest, SandboxLost, SandboxEnded, CommandFailed, TrajectoryDiverged where the id stands for another
        command, NotIdempotent, OutputGone, PlatformTimeout when no answer comes, or a plain Timeout when another
        command has the shell (with python: the interpreter) for 20 s longer than this one may take.
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
        return await self.execute(wire, id, on_output, check=check, idempotent=idempotent)

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
        idempotent: bool = True,
        id: str | None = None,
    ) -> CommandResult:
        """Run Python code in the sandbox's one interpreter, whose variables and imports stay from call to call.

        It is the image's own Python; a template's warm interpreter where it has one. What the code prints is stdout,
        and so is the repr of a last expression; an exception is a traceback on stderr and exit code 1. What exceeds its
        timeout is interrupted as by Ctrl-C, and killed with its state a second later. Else as `run`.
        """
        if not isinstance(code, str) or not code.strip():
            raise BadRequest("code", "it is empty; write Python, such as 'x = 1'")
        sendable(code, "code")
        wire = command("true", timeout=timeout, cwd=cwd, env=env, output_limit=output_limit)
        wire = msgspec.structs.replace(wire, line="", argv=(), python=code)
        return await self.execute(wire, id, on_output, check=check, idempotent=idempotent)

    async def execute(
        self, wire: Command, id: str | None, on_output: OutputSink | None = None, *, check: bool, idempotent: bool
    ) -> CommandResult:
        """Run a command as it travels."""
        truth(idempotent, "idempotent")
        sink(on_output)

        def message(head: Head) -> RunCommand:
            return RunCommand(*head, wire, on_output is not None, idempotent)

        if len(encode(message(self.head("")))) > MOST_BYTES:
            raise BadRequest(
                "stdin" if wire.stdin else "command", "it is too long for one message; write a file and use it"
            )
        within = wire.timeout_ms / 1000 + self.rollout.link.grace_s if wire.timeout_ms else None
        streamed = Streamed(on_output) if on_output is not None else None
        async with self.step(id) as step:
            if wire.session:  # the shell takes one line at a time: only then does its time run
                async with self._session:
                    answer = await self.ask(message, within, f"command {shown(wire)!r}", step, streamed)
            else:
                answer = await self.ask(message, within, f"command {shown(wire)!r}", step, streamed)
            if not isinstance(answer, CommandFinished):
                raise self.unexpected(answer)
            self.done(answer, shown(wire))
            result = await outputs.whole(self.rollout, self.name, answer)
        if streamed is not None:
            streamed.end(result)
        if check and not result.ok:
            raise CommandFailed(self.name, shown(wire), result)
        return result

    async def snapshot(
        self, name: str | None = None, *, memory: bool | None = None, id: str | None = None
    ) -> Snapshot:  # fmt: skip
        """Keep it as it is now, under a name if one is given; its processes stand still for some milliseconds.

        What is kept is the disk, and what its processes have in memory where the driver can; memory=True insists on
        that. id as in `run`, here and in what follows. Raises SnapshotError, when the sandbox goes on as it was;
        BadRequest, SandboxLost, SandboxEnded, PlatformTimeout.
        """
        return await snapshots.take(self, name, memory, id)

    async def fork(
        self, n: int = 1, *, timeout: float | str | None = None, id: str | None = None  # noqa: ASYNC109 - the forks', kept by the cluster
    ) -> "list[Sandbox]":  # fmt: skip
        """Return n running copies of it as it is now, on whatever nodes; it goes on itself.

        They are a rollout of their own, of the same run and with the same limits: `fork(...)[0].rollout.release()`
        gives all of them back, and so does giving up waiting; not in a run that is resumed: there the same step gets
        them. timeout bounds that rollout. Raises as `snapshot`, and as `Cluster.rollout`.
        """
        return await snapshots.fork(self, n, timeout, id)

    async def rollback(self, snapshot: Snapshot, *, id: str | None = None) -> None:
        """Make it what a snapshot holds; what happened in it since is gone, and commands under way are cut off.

        Raises SnapshotError, when it goes on as it was; SandboxLost when it could not be brought back.
        """
        await returning.roll_back(self, snapshot, id)

    async def hibernate(self, *, id: str | None = None) -> None:
        """Let it sleep: all of it is kept, its slot is free for others, and its next command wakes it, anywhere.

        Raises SnapshotError, when it goes on as it was: with code `busy` while a command is under way, `unsupported`
        where it has something in memory that its driver cannot keep. Idempotent.
        """
        await snapshots.hibernate(self, id)

    async def resume(
        self,
        *,
        timeout: float | str | None = None,  # noqa: ASYNC109 - the new rollout's, kept by the cluster
        diverged: Differing = "raise",
        not_idempotent: Undone = "raise",
        id: str | None = None,
    ) -> Replay:
        """Bring it back when it is gone (lost, released, out of time), in a new sandbox, a rollout of its own.

        That starts from its last snapshot, or anew where it has none, and what was done after that is done again in the
        same order, and compared: exit codes, outputs, files that were read. diverged: "raise" ReplayDiverged at the
        first that gives something else, or "report" all of them. A step marked idempotent=False is never done again.
        not_idempotent: "raise" ReplayStopped there, or take what is "recorded" of it and go on. timeout bounds the new
        rollout. Raises BadRequest for one that lives; else as `Cluster.rollout` and `run`.
        """
        return await replaying.resume(self, timeout, diverged, not_idempotent, id)

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
        advice = self.rollout.after_loss(self.index, reason)
        self.presence.ended(lambda: sandbox_error(self.name, reason, detail, restarting=restarting, advice=advice))

    def step(self, id: str | None) -> AbstractAsyncContextManager[str]:
        """Return what is entered to ask for the next step: it has its id. Raises BadRequest, NotConnected."""
        return givenup.asking(self, id)

    async def story(self) -> Story:
        """Return what was done in it, as far as its trajectory tells: all that its present attempt has behind it."""
        record = await self.rollout.remember()
        if not self.presence.lives:
            return record.story(self.index)
        return await record.known(self.index, self.attempt, self.rollout.link.grace_s)

    def head(self, id: str) -> Head:
        """Return what every request begins with. A step keeps its id whatever becomes of its sandbox meanwhile."""
        rollout = self.rollout
        return (f"{self.name}:{id}", rollout.tenant, rollout.run, rollout.cell, rollout.id, self.index, self.attempt)

    async def told(self, id: str, make: Callable[[Head], Asked]) -> tuple[str, Answer | None]:
        """Return under which id to ask, and the answer that the log has already."""
        if self.rollout.record is None and (own(id) or not order(self.attempt)):
            return id, None
        if self.presence.away and not self.presence.asleep:
            await self.presence.here()  # only then can be said what is undone
        story, attempt = await self.story(), self.attempt
        record = await self.rollout.remember()
        return await self.steps.find(record, story, story.last(attempt), id, lambda name: make(self.head(name)))

    async def ask(
        self,
        make: Callable[[Head], Asked],
        within_s: float | None,
        what: str,
        id: str,
        on_output: OutputSink | None = None,
    ) -> Answer:
        """Return what the log has for a step; else ask the sandbox's executor, once it is there, for so long."""
        presence, link = self.presence, self.rollout.link
        what = f"{what} in sandbox {self.name}"
        try:
            while True:
                attempt = self.attempt
                name, told = await self.told(id, make)
                if told is not None:
                    say_again(told, on_output)
                    return told
                await presence.here()
                if self.attempt != attempt and self.rollout.record is not None:
                    continue  # what it was meanwhile may have it behind it
                asked = make(self.head(name))
                subject = subjects.executor_command(self.executor, self.rollout.tenant)
                ours = own(id)
                answer = await link.ask(subject, asked, within_s, what, presence.pending, on_output, ours=ours)
                if isinstance(answer, CommandRefused) and answer.code == "asleep":
                    presence.slept(answer.attempt, link.grace_s)
                    if isinstance(asked, Hibernate):
                        return answer
                elif isinstance(answer, CommandRefused) and answer.code == "answer_gone" and not self.rollout.record:
                    await self.rollout.remember()
                elif not same(asked, answer):
                    raise diverged(self.name, asked, answer)
                else:
                    await refusals.log_has_it(self, answer)
                    return answer
        except SandboxResumed:
            self.steps.undone()
            raise

    def done(self, answer: Answer, what: str) -> None:
        """Note that something was done in it."""
        if answer.attempt == self.attempt:  # else it is in what this attempt began as
            self.presence.done(answer.step.number, what)

    def _wake(self, attempt: int) -> "asyncio.Future[None]":
        return asyncio.ensure_future(self.rollout.want(self.index, attempt))

    def unexpected(self, answer: Answer, path: str | None = None) -> ShoalError:
        """Return the error that an answer of another kind than was hoped for stands for."""
        assert isinstance(answer, CommandRefused)  # it is the answer to the same question
        return refusals.error(self, answer, path)
