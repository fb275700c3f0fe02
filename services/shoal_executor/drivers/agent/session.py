"""The sandbox's one persistent shell: its directory, variables and functions stay from command to command."""

import contextlib
import os
import shlex
import signal
import subprocess
from typing import Final

from shoal.wire.values import CommandResult
from shoal_executor.drivers.agent.commands import PATH, Call, Running, start

_SHELLS: Final = ("/bin/bash", "/usr/bin/bash", "/bin/sh")


class Session:
    """A shell that is fed one command at a time; a line it prints by itself on both streams says when one is done."""

    def __init__(self, env: dict[str, str], user: str) -> None:
        shell = next((path for path in _SHELLS if os.path.exists(path)), _SHELLS[-1])
        full = {"PATH": PATH, "LANG": "C.UTF-8", **env}
        process = start([shell], full, "", user, subprocess.PIPE)
        process.returncode = 0  # the agent reaps
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.pid = self.ours = process.pid
        self._stdin = os.dup(process.stdin.fileno())
        self.outputs = {1: os.dup(process.stdout.fileno()), 2: os.dup(process.stderr.fileno())}
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        for fd in self.outputs.values():
            os.set_blocking(fd, False)
        self.call: Call | None = None
        self.deadline: float | None = None
        self._running: Running | None = None
        self._mark = b""
        self._tail = {1: b"", 2: b""}
        self._seen: dict[int, bytes] = {}

    def begin(self, call: Call) -> None:
        """Feed a command to the shell."""
        command = call.command
        self.call = call
        self._running = Running(call, self.pid, {}, None)
        self.deadline = self._running.deadline
        mark = os.urandom(16).hex()
        self._mark = mark.encode()
        self._tail = {1: b"", 2: b""}
        self._seen = {}
        line = command.line or shlex.join(command.argv)
        steps = [f"export {name}={shlex.quote(value)}" for name, value in command.env]
        if command.cwd:
            steps.append(f"cd -- {shlex.quote(command.cwd)}")
        steps.append(f"eval {shlex.quote(line)} </dev/null")
        script = " && ".join(steps) + f"\n__shoal=$?; printf '{mark}%d\\n' $__shoal; printf '{mark}\\n' >&2\n"
        with contextlib.suppress(BrokenPipeError):  # the shell is gone: its end says so
            os.write(self._stdin, script.encode())

    def take(self, channel: int, data: bytes) -> bytes:
        """Keep output, less the mark; returns what of it is the command's own and within its limit."""
        if self._running is None or channel in self._seen:
            return b""
        data = self._tail[channel] + data
        at = data.find(self._mark)
        if at < 0:
            hold = _overlap(data, self._mark)
            self._tail[channel] = data[len(data) - hold :]
            return self._running.take(channel, data[: len(data) - hold])
        end = data.find(b"\n", at)
        if end < 0:
            self._tail[channel] = data[at:]
            return self._running.take(channel, data[:at])
        self._seen[channel] = data[at + len(self._mark) : end]
        self._tail[channel] = b""
        return self._running.take(channel, data[:at])

    def complete(self) -> bool:
        """Return whether both streams showed the mark."""
        return len(self._seen) == 2

    def finish(self) -> tuple[Call, CommandResult]:
        """Return the command and its result; the session is free for the next."""
        assert self.call is not None
        assert self._running is not None
        code = self._seen[1]
        answer = self.call, self._running.result(int(code) if code.isdigit() else 0)
        self._reset()
        return answer

    def expire(self) -> None:
        """Kill what the command runs; the shell goes on, with what it remembers, unless it is itself the one busy."""
        assert self._running is not None
        self._running.timed_out = True
        self.deadline = None
        children = _descendants(self.pid)
        for pid in children or [self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def gone(self, code: int) -> tuple[Call, CommandResult] | None:
        """The shell ended; returns the command that ended it, and its result."""
        for fd in (self._stdin, *self.outputs.values()):
            os.close(fd)
        if self.call is None or self._running is None:
            return None
        answer = self.call, self._running.result(code)
        self._reset()
        return answer

    def _reset(self) -> None:
        self.call = None
        self.deadline = None
        self._running = None


def _overlap(data: bytes, mark: bytes) -> int:
    """Return how many bytes at the end of data could be the beginning of mark."""
    for length in range(min(len(data), len(mark) - 1), 0, -1):
        if mark.startswith(data[len(data) - length :]):
            return length
    return 0


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                parents.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(entry))
    found: list[int] = []
    ask = [pid]
    while ask:
        children = parents.get(ask.pop(), [])
        found += children
        ask += children
    return found
