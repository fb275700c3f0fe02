"""The sandbox's one persistent shell: its directory, variables and functions stay from command to command."""

import fcntl
import os
import shlex
import signal
import sys
import termios
import time
from collections.abc import Mapping, Set
from typing import Final

from shoal.wire.values import CommandResult
from shoal_executor.drivers.agent import family
from shoal_executor.drivers.agent.commands import Call, Running
from shoal_executor.drivers.agent.programs import PATH, start

_SHELLS: Final = ("/bin/bash", "/usr/bin/bash", "/bin/sh")
_HIGH: Final = 71  # descriptors that nobody counts on, above `_SAID`
_SAID: Final = 70
"""The shell's descriptor of its standard output as it was first: a line may send that elsewhere (`exec > log`)."""
_SAID_SH: Final = 7  # other shells know one digit of a descriptor, and 9 is what people lock with
_KEPT: Final = 65_536
_PAGE: Final = 4_096
_END: Final = b"\n#\0"
_TAKE: Final = b'eval "$_Q"'
_LONGEST: Final = 20  # characters of a code and a process: anybody may write what looks like them
_WAKE: Final = signal.SIGRTMAX
"""Ends a shell's `wait`: the shell has a trap for it, which its children do not inherit."""
_GRACE_S: Final = 1.0
"""How long a command may go on when its time is up and what it ran was killed, before its shell is."""


class Session:
    """A shell that is fed one command at a time; a line that it prints then says that one is done.

    What a shell reads from a pipe it takes byte by byte, so that whatever it starts finds the rest. Each is a system
    call, which takes 20 to 80 us in gvisor: half of a short command, and 1.3 s for one with a file of 16 KB in it. Bash
    can be told to take a whole command at once, from a file in memory; from the second on, by the shortest line there
    is.
    """

    def __init__(self, env: dict[str, str], user: str, *, few_calls: bool = False) -> None:
        shell = next((path for path in _SHELLS if os.path.exists(path)), _SHELLS[-1])
        full = {"PATH": PATH, "LANG": "C.UTF-8", **env}
        self._file = _file() if shell.endswith("bash") else None
        self._aside = _SAID if self._file is not None else _SAID_SH
        self._size = 0
        self._taught = False
        self._fed = 0
        try:
            fds = (self._file,) if self._file is not None else ()
            program = start([shell], full, "", user, stdin=True, fds=fds, few_calls=few_calls)
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
        self._name = os.urandom(6).hex()
        self._count = 0
        self._code = 0
        self._mark = b""
        self._tail = b""
        self._said: tuple[int, int] | None = None
        self._background = 0
        self._earlier: frozenset[int] = frozenset()
        self._expired = False

    def begin(self, call: Call) -> None:
        """Feed a command to the shell."""
        command = call.command
        self.call = call
        self._running = Running(call, self.pid, {}, None)
        self.deadline = self._running.deadline
        self._count += 1
        mark = f"m{self._name}x{self._count}x"
        self._mark = mark.encode()
        self._tail = b""
        self._said = None
        self._expired = False
        line = command.line or shlex.join(command.argv)
        first = ""
        if self._count == 1:
            first = f"trap : {_WAKE:d}\nexec {self._aside}>&1\n"
        steps = [f"export {name}={shlex.quote(value)}" for name, value in command.env]
        if command.cwd:
            steps.append(f"cd -- {shlex.quote(command.cwd)}")
        steps.append(_after(self._code, f"eval {shlex.quote(line)} </dev/null"))
        # A line of its own: after some errors a shell goes on with its next.
        self._feed(self._placed(f"{first}{' && '.join(steps)}\n{self._ended(mark)}\n".encode()))

    def _ended(self, mark: str) -> str:
        """Return what says that a line is done: its exit code, and which process was the last in the background."""
        says = f"printf '{mark}%d.%d\\\\n' $? ${{!:-0}}"  # the numbers are put in once, before the first of them runs
        return f'eval "{says} >&{self._aside} || {says}"'

    @property
    def unbegun(self) -> Call | None:
        """The call it was given of which it has read nothing; None when its time is up."""
        waits = self._running is not None and not self._running.over
        return self.call if waits and self._unread() >= self._fed else None

    def _feed(self, data: bytes) -> None:
        try:
            self._fed = os.write(self._stdin, data)
        except BrokenPipeError:  # the shell is gone: its end says so
            self._fed = 0

    def _unread(self) -> int:
        return int.from_bytes(fcntl.ioctl(self._stdin, termios.FIONREAD, bytes(4)), sys.byteorder)

    def _placed(self, script: bytes) -> bytes:
        """Put a script where the shell takes it from; returns what is left to be said.

        The variable is emptied first, or `set -a` would hand the script to every program. A comment ends it, because
        `read` may take the last character for a separator; then NUL: what follows is of an earlier script, and without
        it `read` fails. Where even that fails, somebody closed the file: the shell ends, or it would hear nothing more.
        """
        if self._file is None:
            return script
        head, take = b"__s=;", _TAKE
        if not self._taught:
            how = f"read -rd '' -u{self._file} __s||exit;eval \"$__s\""
            head, take = f"__s=;readonly _Q={shlex.quote(how)};".encode(), how.encode()
        try:
            if self._size > _KEPT:  # seldom: it takes longer than to write over it
                os.ftruncate(self._file, _PAGE)
            self._size = self._write(head + script.replace(b"\0", b"") + _END)
            self._taught = True
        except OSError:  # there is no memory for it
            self._size = _KEPT + 1
            self._write(_END)  # for this there is: the first page is kept
            return take + b"\n" + script
        return take + b"\n"

    def _write(self, data: bytes) -> int:
        assert self._file is not None
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], done)
        os.lseek(self._file, 0, os.SEEK_SET)  # the shell's, too
        return done

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
        if self._said is not None:
            return b""
        data = self._tail + data
        at = data.find(self._mark)
        while at >= 0:
            begin = at + len(self._mark)
            end = data.find(b"\n", begin)
            if end < 0 or (said := _numbers(data[begin:end])) is not None:
                break
            at = data.find(self._mark, begin)  # the command shows how the mark is made: its `trap` may
        if at < 0:
            at = len(data) - _overlap(data, self._mark)
            self._tail = data[at:]
        elif end < 0:
            self._tail = data[at:]
        else:
            self._said = said
            self._tail = b""
        return self._running.take(channel, data[:at])

    def complete(self) -> bool:
        """Return whether the mark was seen."""
        return self._said is not None

    def finish(self) -> tuple[Call, CommandResult]:
        """Return the command and its result; the session is free for the next."""
        assert self.call is not None
        assert self._running is not None
        assert self._said is not None
        code, background = self._said
        if self._expired and code == 128 + _WAKE:
            code = 128 + signal.SIGKILL  # as of whatever else is ended at its timeout
        self._code = code
        if background != self._background:  # it left something running, which the ends of later ones spare
            self._background = background
            self._earlier = frozenset(pid for pid, process in family.processes().items() if process.parent == self.pid)
        answer = self.call, self._running.result(code)
        self._reset()
        return answer

    def expire(self) -> None:
        """Kill what the command runs, but not what earlier ones left running.

        The shell goes on, with what it remembers, unless it is itself the one busy: now, or still after `_GRACE_S`. One
        that waits for what an earlier one left is woken.
        """
        assert self._running is not None
        self._running.timed_out = not self._running.given_up
        there = family.processes()
        doomed = family.descendants(there, self.pid, spared=self._earlier)
        last = self._expired or (not doomed and self.pid in there and there[self.pid].busy)
        if not last:
            family.kill(self.pid, _WAKE)
        else:
            # Not stopped before: in gvisor the end of a stopped shell hangs up on all of its group.
            family.kill(self.pid)
            doomed |= self._started_since(there, doomed)
        for pid in doomed:
            family.kill(pid)
        self.deadline = None if last else time.monotonic() + _GRACE_S
        self._expired = True

    def give_up(self) -> None:
        """Nobody wants the command any more: end it as if its time were up."""
        if self._running is not None and not self._running.over:
            self._running.given_up = True
            self.expire()

    def _started_since(self, there: Mapping[int, family.Process], doomed: Set[int]) -> set[int]:
        """Return what the shell, now killed, and what is doomed have started since: it is of their session still."""
        now = family.processes()
        ours = {pid for pid, process in now.items() if process.session == self.pid and pid != self.pid}
        spared = ours & there.keys() - doomed
        return ours - there.keys() - family.descendants(now, *spared)

    def gone(self, code: int) -> tuple[Call, CommandResult] | None:
        """The shell ended; returns the command that ended it, and its result."""
        for fd in (self._stdin, *self.outputs.values()):
            os.close(fd)
        self._forget_file()
        if self.call is None or self._running is None:
            return None
        self._running.take(1, self._tail)  # it was not the mark's beginning
        if self._expired and code == -_WAKE:
            code = -signal.SIGKILL  # what it had become has no such trap
        answer = self.call, self._running.result(code)
        self._reset()
        return answer

    def _reset(self) -> None:
        self.call = None
        self.deadline = None
        self._running = None
        self._said = None  # what is heard in between is nobody's, and completes nothing


def _file() -> int | None:
    """Return a file in memory, out of the way of what commands open; None where there can be none."""
    try:
        made = os.memfd_create("command")
    except OSError:
        return None
    try:
        os.write(made, _END)
        return fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        return None
    finally:
        os.close(made)


def _after(code: int, line: str) -> str:
    """Return the line with `$?` being this code at its beginning: what told of the last one's end has changed it.

    By a function, which removes itself: `(exit 1)` is another process, for which there may be no room. What is before
    `||` may fail under `set -e`.
    """
    return f"{{ __shoal_r() {{ unset -f __shoal_r; return {code}; }}; __shoal_r || {line}\n}}" if code else line


def _overlap(data: bytes, mark: bytes) -> int:
    """Return how many bytes at the end of data could be the beginning of mark."""
    for length in range(min(len(data), len(mark) - 1), 0, -1):
        if mark.startswith(data[len(data) - length :]):
            return length
    return 0


def _numbers(said: bytes) -> tuple[int, int] | None:
    """Return what follows the mark: the exit code, and which process was the last in the background, or 0."""
    code, _, background = said.partition(b".")
    numbers = len(said) < _LONGEST and code.isdigit() and background.isdigit()
    return (int(code), int(background)) if numbers else None
