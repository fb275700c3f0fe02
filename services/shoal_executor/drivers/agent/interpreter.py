"""The sandbox's one interpreter, as its agent feeds it: its variables and imports stay from command to command."""

import contextlib
import json
import os
import signal
import socket
import struct
import time
from typing import Final

from shoal.wire.values import CommandResult
from shoal_executor.drivers.agent.commands import Call, Running
from shoal_executor.drivers.agent.programs import PATH, account, start

with open(os.path.join(os.path.dirname(__file__), "served.py"), encoding="utf-8") as _file:
    SERVED: Final = _file.read()
"""Read when this is imported: the agent is far from its files by the time it needs it."""
_NAMES: Final = ("python3", "python")
_INTERRUPTED_S: Final = 1.0
"""How long code may take to end by KeyboardInterrupt when its time is up, before its interpreter is killed."""
_MAIN: Final = (
    "import sys\n"
    "path = sys.path[:]\n"
    "sys.path[:] = [place for place in path if place]\n"
    "space = {{'__name__': 'shoal'}}\n"
    "with open({text}, 'rb') as source: exec(compile(source.read(), '<shoal>', 'exec'), space)\n"
    "import os, socket\n"
    "if {ours}: del os.environ[{safe!r}]\n"
    "sys.path[:] = path if not {ours} or path[:1] == [''] else ['', *path]\n"
    "space[{what!r}](socket.socket(fileno={control}), space['namespace']())\n"
)
_SAFE: Final = "PYTHONSAFEPATH"
_NAMESPACES: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
_LENGTH: Final = struct.Struct(">I")
_CODE: Final = struct.Struct(">i")


def find(env: dict[str, str]) -> str:
    """Return the image's Python. Raises FileNotFoundError."""
    for name in _NAMES:
        for directory in env.get("PATH", PATH).split(":"):
            path = os.path.join(directory, name)
            if os.access(path, os.X_OK) and not os.path.isdir(path):
                return path
    raise FileNotFoundError(2, "the image has no python3 to run this in", "python3")


def first(env: dict[str, str], text: int, what: str, control: int) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment to start an interpreter with.

    It reads what it runs first from `text`, and calls `what` of that with its socket, `control`. All this takes nothing
    of where it is, the sandbox's home: a `types.py` there is not what it means. From 3.13 on Python imports modules
    before the first line of `-c`, so that place comes to its path only afterwards. Before 3.11 it is there at once.
    """
    ours = not env.get(_SAFE)
    main = _MAIN.format(text=text, what=what, control=control, ours=ours, safe=_SAFE)
    return ["-c", main], {**env, _SAFE: "1"} if ours else env


def source(text: str = SERVED) -> int:
    """Return a descriptor of a file in memory that holds what the interpreter runs first."""
    fd = os.memfd_create("served", 0)
    with open(os.dup(fd), "wb") as file:
        file.write(text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _send(requests: socket.socket, data: bytes, fds: list[int]) -> None:
    """Send a request for a copy; where many wait for theirs, a child waits for room: the agent has others to serve."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
    try:
        requests.sendmsg([data], rights, socket.MSG_DONTWAIT)  # socket.send_fds forgets its flags
    except BlockingIOError:
        if os.fork() == 0:
            try:
                requests.sendmsg([data], rights)
            finally:
                os._exit(0)


class Interpreter:
    """One interpreter. `pid` is 0 until it has said its own; `ours`: whether it is the agent's child."""

    def __init__(self, control: socket.socket, outputs: dict[int, int], ours: int = 0) -> None:
        control.setblocking(False)
        for fd in outputs.values():
            os.set_blocking(fd, False)
        self.outputs = outputs
        self.control = control
        self.pid = 0
        self.ours = ours
        self.call: Call | None = None
        self.deadline: float | None = None
        self._running: Running | None = None
        self._to_say = b""
        self._heard = b""
        self._status: int | None = None
        self._interrupted = False

    @classmethod
    def cold(cls, env: dict[str, str], user: str, *, few_calls: bool = False) -> "Interpreter":
        """Start the image's own Python. Raises OSError where it has none."""
        full = {"PATH": PATH, "LANG": "C.UTF-8", **env}
        here, there = socket.socketpair()
        text = source()
        try:
            fds = (text, there.fileno())
            argv, its = first(full, text, "serve", there.fileno())
            program = start([find(full), *argv], its, "", user, stdin=False, fds=fds, few_calls=few_calls)
        except BaseException:
            here.close()
            raise
        finally:
            os.close(text)
            there.close()
        return cls(here, program.outputs, program.pid)

    @classmethod
    def copied(
        cls, requests: socket.socket, cgroups: list[int], capabilities: frozenset[int], env: dict[str, str], user: str
    ) -> "Interpreter":
        """Ask the template's warm interpreter for a copy of itself. Raises OSError."""
        uid, gid, home = account(user) if user else (0, 0, "/root")
        full = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": home, **env}
        if not os.path.isdir(home):
            home = "/"
        here, there = socket.socketpair()
        out_r, out_w = os.pipe2(os.O_CLOEXEC)
        err_r, err_w = os.pipe2(os.O_CLOEXEC)
        given = [there.fileno(), out_w, err_w]
        opened: list[int] = []
        try:
            for name in _NAMESPACES:
                fd = os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
                opened.append(fd)
            asked = {
                "namespaces": len(opened), "capabilities": sorted(capabilities), "uid": uid, "gid": gid, "env": full,
                "home": home,
            }  # fmt: skip
            _send(requests, json.dumps(asked, ensure_ascii=False).encode(), [*given, *opened, *cgroups])
        except BaseException:
            here.close()
            for fd in (out_r, err_r):
                os.close(fd)
            raise
        finally:
            there.close()
            for fd in (*given[1:], *opened):
                os.close(fd)
        return cls(here, {1: out_r, 2: err_r})

    @property
    def unbegun(self) -> Call | None:
        """The call it was given of which nothing was run, for it has not said its pid yet; None when its time is up."""
        waits = self._running is not None and not self._running.over
        return self.call if waits and not self.pid and not self.ours else None

    def begin(self, call: Call) -> None:
        """Give it code."""
        command = call.command
        self.call = call
        self._running = Running(call, self.pid, {}, None)
        self.deadline = self._running.deadline
        self._status = None
        self._interrupted = False
        asked = {"code": command.python, "cwd": command.cwd, "env": dict(command.env)}
        body = json.dumps(asked).encode()
        self._to_say = _LENGTH.pack(len(body)) + body
        self.say()

    def say(self) -> bool:
        """Send what is left of the request; returns whether there is more to send when there is room."""
        with contextlib.suppress(BlockingIOError, OSError):  # it is gone: its end says so
            while self._to_say:
                self._to_say = self._to_say[self.control.send(self._to_say) :]
        return bool(self._to_say)

    def listen(self) -> bool:
        """Take its words; returns False when it has ended."""
        try:
            data = self.control.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._heard += data
        while len(self._heard) >= _CODE.size:
            (number,) = _CODE.unpack_from(self._heard)
            self._heard = self._heard[_CODE.size :]
            if not self.pid:
                self.pid = number
            elif self.call is not None:
                self._status = number
        return bool(data)

    def take(self, channel: int, data: bytes) -> bytes:
        """Keep output; returns what of it is within the code's limit. What comes in between is nobody's."""
        return self._running.take(channel, data) if self._running is not None else b""

    def complete(self) -> bool:
        """Return whether the code is done, and its output all there to be read."""
        return self._status is not None

    def finish(self) -> tuple[Call, CommandResult]:
        """Return the call and its result; the interpreter is free for the next."""
        assert self.call is not None
        assert self._running is not None
        assert self._status is not None
        answer = self.call, self._running.result(self._status)
        self._reset()
        return answer

    def expire(self) -> None:
        """Interrupt the code; if it does not end by that, kill it with all its state. Give up a copy yet to come."""
        assert self._running is not None
        self._running.timed_out = not self._running.given_up
        pid = self.pid or self.ours
        last = self._interrupted or not pid
        self.deadline = None if last else time.monotonic() + _INTERRUPTED_S
        self._interrupted = True
        with contextlib.suppress(ProcessLookupError):
            if pid:
                os.kill(pid, signal.SIGKILL if last else signal.SIGINT)
        if last and not self.ours:
            with contextlib.suppress(OSError):
                self.control.shutdown(socket.SHUT_RDWR)  # an end that is heard, whoever else has its socket

    def give_up(self) -> None:
        """Nobody wants the code any more: end it as if its time were up."""
        if self._running is not None and not self._running.over:
            self._running.given_up = True
            self.expire()

    def gone(self, code: int) -> tuple[Call, CommandResult] | None:
        """It ended; returns the call that ended it, and its result."""
        self.control.close()
        for fd in self.outputs.values():
            os.close(fd)
        if self.call is None or self._running is None:
            return None
        self._running.take(2, b"the interpreter ended; the next code finds a new one\n")
        answer = self.call, self._running.result(code)
        self._reset()
        return answer

    def _reset(self) -> None:
        self.call = None
        self.deadline = None
        self._running = None
        self._status = None
