"""The sandbox's one persistent shell: its directory, variables and functions stay from command to command."""

import contextlib
import fcntl
import os
import shlex
import signal
from typing import Final

from shoal.wire.values import CommandResult
from shoal_executor.drivers.agent.commands import PATH, Call, Running, start

_SHELLS: Final = ("/bin/bash", "/usr/bin/bash", "/bin/sh")
_HIGH: Final = 60  # descriptors that nobody counts on
_KEPT: Final = 65_536


class Session:
    """A shell that is fed one command at a time; a line that it prints then says that one is done.

    What a shell reads from a pipe it takes byte by byte, so that whatever it starts finds the rest. Each is a system
    call, which takes 30 to 80 us in gvisor: half of a short command, and 1.3 s for one with a file of 16 KB in it. Bash
    can be told to take a whole command at once, from a file in memory.
    """

    def __init__(self, env: dict[str, str], user: str) -> None:
        shell = next((path for path in _SHELLS if os.path.exists(path)), _SHELLS[-1])
        full = {"PATH": PATH, "LANG": "C.UTF-8", **env}
        self._file = _file() if shell.endswith("bash") else None
        self._size = 0
        try:
            program = start([shell], full, "", user, stdin=True, fds=(self._file,) if self._file is not None else ())
        except OSError:
            self._forget_file()
            raise
        assert program.stdin is not None
        self.pid = self.ours = program.pid
        self._stdin = program.stdin
        self.outputs = program.outputs
        self.call: Call | None = None
        self.deadline: float | None = None
        self._running: Running | None = None
        self._mark = b""
        self._tail = b""
        self._code: bytes | None = None

    def begin(self, call: Call) -> None:
        """Feed a command to the shell."""
        command = call.command
        self.call = call
        self._running = Running(call, self.pid, {}, None)
        self.deadline = self._running.deadline
        mark = f"m{os.urandom(6).hex()}"
        self._mark = mark.encode()
        self._tail = b""
        self._code = None
        line = command.line or shlex.join(command.argv)
        steps = [f"export {name}={shlex.quote(value)}" for name, value in command.env]
        if command.cwd:
            steps.append(f"cd -- {shlex.quote(command.cwd)}")
        steps.append(f"eval {shlex.quote(line)} </dev/null")
        # A line of its own: after some errors a shell goes on with its next.
        end = f"printf {mark}%d\\\\n $?\n"
        with contextlib.suppress(BrokenPipeError):  # the shell is gone: its end says so
            os.write(self._stdin, self._shortened(" && ".join(steps).encode()) + b"\n" + end.encode())

    def _shortened(self, script: bytes) -> bytes:
        """Return a line that has the shell carry out a script: one that takes it from the file, or the script itself.

        The variable is emptied first, or `set -a` would hand the script to every program. A comment ends it, because
        `read` may take the last character for a separator; then NUL: what follows is of an earlier script, and without
        it `read` fails, which with `set -e` would be the shell's end.
        """
        if self._file is None:
            return script
        data = b"__s=;" + script.replace(b"\0", b"") + b"\n#\0"
        try:
            if self._size > _KEPT:  # seldom: it takes longer than to write over it
                os.ftruncate(self._file, 0)
            self._size = len(data)
            done = 0
            while done < len(data):
                done += os.pwrite(self._file, data[done:], done)
            os.lseek(self._file, 0, os.SEEK_SET)  # the shell's, too
        except OSError:  # there is no memory for it
            return script
        return f"read -rd '' -u{self._file} __s;eval \"$__s\"".encode()

    def _forget_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def take(self, channel: int, data: bytes) -> bytes:
        """Keep output, less the mark; returns what of it is the command's own and within its limit."""
        if self._running is None:
            return b""
        if channel != 1:  # what was written to it before the mark is there when the mark is
            return self._running.take(channel, data)
        if self._code is not None:
            return b""
        data = self._tail + data
        at = data.find(self._mark)
        if at < 0:
            hold = _overlap(data, self._mark)
            self._tail = data[len(data) - hold :]
            return self._running.take(channel, data[: len(data) - hold])
        end = data.find(b"\n", at)
        if end < 0:
            self._tail = data[at:]
            return self._running.take(channel, data[:at])
        self._code = data[at + len(self._mark) : end]
        self._tail = b""
        return self._running.take(channel, data[:at])

    def complete(self) -> bool:
        """Return whether the mark was seen."""
        return self._code is not None

    def finish(self) -> tuple[Call, CommandResult]:
        """Return the command and its result; the session is free for the next."""
        assert self.call is not None
        assert self._running is not None
        assert self._code is not None
        answer = self.call, self._running.result(int(self._code) if self._code.isdigit() else 0)
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
        self._forget_file()
        if self.call is None or self._running is None:
            return None
        answer = self.call, self._running.result(code)
        self._reset()
        return answer

    def _reset(self) -> None:
        self.call = None
        self.deadline = None
        self._running = None


def _file() -> int | None:
    """Return a file in memory, out of the way of what commands open; None where there can be none."""
    try:
        made = os.memfd_create("command")
    except OSError:
        return None
    try:
        return fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        return None
    finally:
        os.close(made)


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
