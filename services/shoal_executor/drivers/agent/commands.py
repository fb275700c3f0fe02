"""A command under way: its process, its pipes, what it wrote so far."""

import contextlib
import os
import signal
import subprocess
import time
from typing import Final, NamedTuple

from shoal.wire.outputs import LARGEST
from shoal.wire.values import CommandResult
from shoal_executor.drivers.agent import frames

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


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
    """One command; `take` keeps its output up to the limit and counts the rest."""

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
        self.ended = False
        self._kept = {1: bytearray(), 2: bytearray()}
        self._dropped = {1: 0, 2: 0}

    def take(self, channel: int, data: bytes) -> bytes:
        """Keep what still fits; returns that part."""
        room = self.call.limit - len(self._kept[channel])
        kept = data[: max(room, 0)]
        self._kept[channel] += kept
        self._dropped[channel] += len(data) - len(kept)
        return kept

    def kill(self) -> None:
        """Kill its process group; what earlier commands left running lives on."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def result(self, code: int) -> CommandResult:
        """Return what became of it."""
        return CommandResult(
            code if code >= 0 else 128 - code,
            bytes(self._kept[1]),
            bytes(self._kept[2]),
            int((time.monotonic() - self.began) * 1e6),
            self.timed_out,
            self._dropped[1],
            self._dropped[2],
            disk_full=bool(code) and _disk_full(),
        )


def _disk_full() -> bool:
    """Return whether nothing more can be written to the sandbox's disk."""
    with contextlib.suppress(OSError):
        disk = os.statvfs("/")
        return disk.f_bavail == 0 or (disk.f_files > 0 and disk.f_favail == 0)
    return False


def account(user: str) -> tuple[int, int, str]:
    """Return uid, gid and home of a user of the image, by name or number. Raises OSError where there is none."""
    with contextlib.suppress(OSError), open("/etc/passwd", encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.rstrip("\n").split(":")
            if len(fields) >= 6 and user in (fields[0], fields[2]):
                return int(fields[2]), int(fields[3]), fields[5]
    if user.isdigit() and int(user) < 65_536:
        return int(user), int(user), "/"
    raise OSError(0, "no such user in the sandbox", user)


class Program(NamedTuple):
    """A program that runs, which the agent reaps: our ends of its standard output (1), error (2) and perhaps input."""

    pid: int
    outputs: dict[int, int]
    stdin: int | None


def start(
    argv: list[str], env: dict[str, str], cwd: str, user: str, *, stdin: bool, fds: tuple[int, ...] = ()
) -> Program:
    """Start a program as a session of its own, with these descriptors besides the usual three.

    `stdin`: whether there is something to be written to it. Raises OSError naming the program or directory that is not
    there.
    """
    uid, gid, home = account(user) if user else (0, 0, "/root")
    full = {**env, "HOME": env.get("HOME", home)}
    place = os.path.join(full["HOME"], cwd) if cwd else full["HOME"]
    if not cwd and not os.path.isdir(place):
        place = "/"
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for _ in (1, 2):
            read, write = os.pipe2(os.O_CLOEXEC)
            ours.append(read)
            theirs.append(write)
            os.set_blocking(read, False)
        if stdin:
            read, write = os.pipe2(os.O_CLOEXEC)
            ours.append(write)
            theirs.append(read)
        else:
            theirs.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        process = subprocess.Popen(
            argv,
            stdin=theirs[2],
            stdout=theirs[0],
            stderr=theirs[1],
            cwd=place,
            env=full,
            start_new_session=True,
            restore_signals=True,
            user=uid or None,
            group=gid or None,
            extra_groups=[] if uid else None,
            pass_fds=fds,
        )
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    process.returncode = 0  # the agent reaps
    # When memory runs out the kernel ends commands first, never the agent.
    with contextlib.suppress(OSError):
        score = os.open(f"/proc/{process.pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(score, b"1000")
        finally:
            os.close(score)
    return Program(process.pid, {1: ours[0], 2: ours[1]}, ours[2] if stdin else None)


def spawn(call: Call, env: dict[str, str], user: str) -> Running:
    """Start a command. Raises OSError when its program, directory or user is not there."""
    command = call.command
    argv = list(command.argv) or ["/bin/sh", "-c", command.line]
    full = {"PATH": PATH, "LANG": "C.UTF-8", **env, **dict(command.env)}
    program = start(argv, full, command.cwd, command.user or user, stdin=bool(command.stdin))
    if program.stdin is not None:
        os.set_blocking(program.stdin, False)
    return Running(call, program.pid, program.outputs, program.stdin)
