"""A command under way: its process, its pipes, what it wrote so far."""

import contextlib
import os
import time

from shoal.wire.outputs import LARGEST
from shoal.wire.values import Command, CommandResult
from shoal_executor.drivers.agent import family, frames
from shoal_executor.drivers.agent.programs import PATH, start
from shoal_executor.drivers.kept import Kept


class Call:
    """A command as it was asked. `id` is what its answer is waited for under: none while nobody is there to wait."""

    def __init__(self, asked: frames.Run) -> None:
        self.id: int | None = asked.id
        self.stream = asked.stream
        self.key = asked.key
        self.command = asked.command
        # What has no key can be asked for once only: all of it must fit.
        self.limit = min(asked.command.output_limit, LARGEST if asked.key else frames.IN_FRAME)

    def attach(self, asked: frames.Run) -> None:
        """Somebody waits for it (again)."""
        self.id, self.stream = asked.id, asked.stream

    def detach(self) -> None:
        """Nobody waits for it now."""
        self.id, self.stream = None, False


class Running:
    """One command; `take` keeps of its output what its limit allows, and counts the rest."""

    def __init__(self, call: Call, pid: int, outputs: dict[int, int], stdin: int | None) -> None:
        self.call = call
        self.pid = pid
        self.outputs = outputs
        self.stdin = stdin
        self.input = call.command.stdin
        self.began = time.monotonic()
        timeout = call.command.timeout_ms
        self.deadline: float | None = self.began + timeout / 1000 if timeout else None
        self.timed_out = False
        self.given_up = False
        self.ended = False
        self._kept = {1: Kept(call.limit), 2: Kept(call.limit)}

    def take(self, channel: int, data: bytes) -> bytes:
        """Keep output; returns what of it is to be streamed."""
        return self._kept[channel].take(data)

    @property
    def over(self) -> bool:
        """Whether it is being killed."""
        return self.timed_out or self.given_up

    def expire(self) -> None:
        """Its time is up: end it."""
        self.timed_out = not self.given_up
        self.deadline = None
        self.kill()

    def give_up(self) -> None:
        """Nobody wants it any more: end it as if its time were up."""
        if not self.over:
            self.given_up = True
            self.kill()

    def kill(self) -> None:
        """Kill what it runs; what earlier commands left running lives on."""
        family.end(self.pid)

    def result(self, code: int) -> CommandResult:
        """Return what became of it."""
        out, err = self._kept[1], self._kept[2]
        return CommandResult(
            code if code >= 0 else 128 - code,
            out.content,
            err.content,
            int((time.monotonic() - self.began) * 1e6),
            self.timed_out,
            out.dropped,
            err.dropped,
            disk_full=bool(code) and _disk_full(),
            stdout_tail=out.tail,
            stderr_tail=err.tail,
            given_up=self.given_up,
        )


def _disk_full() -> bool:
    """Return whether nothing more can be written to the sandbox's disk."""
    with contextlib.suppress(OSError):
        disk = os.statvfs("/")
        return disk.f_bavail == 0 or (disk.f_files > 0 and disk.f_favail == 0)
    return False


def spawn(call: Call, env: dict[str, str], user: str, *, few_calls: bool) -> Running:
    """Start a command. Raises OSError when its program, directory or user is not there."""
    command = call.command
    argv = list(command.argv) or ["/bin/sh", "-c", command.line]
    full = {"PATH": PATH, "LANG": "C.UTF-8", **env, **dict(command.env)}
    program = start(argv, full, command.cwd, command.user or user, stdin=bool(command.stdin), few_calls=few_calls)
    if program.stdin is not None:
        os.set_blocking(program.stdin, False)
    return Running(call, program.pid, program.outputs, program.stdin)


def not_started(command: Command, error: OSError) -> CommandResult:
    """Return what is told of a command that could not be started: what a shell says."""
    program = command.argv[0] if command.argv else "/bin/sh"
    if isinstance(error, FileNotFoundError) and error.filename in (program, None):
        return CommandResult(127, stderr=f"command not found in the sandbox: {program}\n".encode())
    return CommandResult(126, stderr=f"{error.filename or program}: {error.strerror}\n".encode())
