"""An interpreter that ends on its way into the sandbox: the agent's side of it, with sockets for processes."""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.wire.values import Command, CommandResult
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.commands import Call
from shoal_executor.drivers.agent.interpreter import Interpreter
from shoal_executor.drivers.agent.serial import PATIENCE_S, Serial

CALL = Call(frames.Run(1, Command(python="1"), False, ""))


class Sandbox:
    """Watches nothing by itself: `hear` has the agent look at its interpreter's socket."""

    def __init__(self) -> None:
        self.results: list[CommandResult] = []
        self.not_run_after: list[tuple[Call, float]] = []
        self.copies: list[socket.socket] = []
        self.serial = Serial(self, self._copy)
        self._reacts: dict[int, Callable[[], None]] = {}
        self._here: socket.socket

    def _copy(self) -> Interpreter:
        here, there = socket.socketpair()
        self.copies.append(there)
        self._here = here
        return Interpreter(here, {1: os.open(os.devnull, os.O_RDONLY), 2: os.open(os.devnull, os.O_RDONLY)})

    def hear(self) -> None:
        self._reacts[self._here.fileno()]()

    def close(self) -> None:
        for each in (*self.copies, self._here):
            each.close()

    def watch(self, fd: int, events: int, react: Callable[[], None]) -> None:
        self._reacts[fd] = react

    def unwatch(self, fd: int) -> None:
        del self._reacts[fd]

    def done(self, call: Call, result: CommandResult) -> None:
        assert call is CALL
        self.results.append(result)

    def not_run(self, call: Call, before: Call | None = None, seconds: float = 0.0) -> None:
        assert before is CALL
        self.not_run_after.append((call, seconds))

    def output(self, call: Call, channel: int, data: bytes) -> None:
        raise AssertionError("these interpreters say nothing")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox()
    sandbox.serial.ask(CALL)
    yield sandbox
    sandbox.close()


def ends(sandbox: Sandbox) -> None:
    sandbox.copies[-1].close()
    sandbox.hear()


def test_one_that_ends_before_it_began_is_followed_by_another_that_runs_the_code(sandbox: Sandbox) -> None:
    ends(sandbox)
    assert (len(sandbox.copies), sandbox.results) == (2, [])
    sandbox.copies[-1].sendall(struct.pack(">ii", 77, 0))
    sandbox.hear()
    assert [result.exit_code for result in sandbox.results] == [0]
    (size,) = struct.unpack(">I", sandbox.copies[-1].recv(4))
    assert b'"code": "1"' in sandbox.copies[-1].recv(size)


def test_it_is_told_when_none_of_three_begins(sandbox: Sandbox) -> None:
    for _ in range(3):
        assert sandbox.results == []
        ends(sandbox)
    (result,) = sandbox.results
    assert (len(sandbox.copies), result.exit_code) == (3, 137)
    assert b"the interpreter ended" in result.stderr


def test_one_that_ends_while_it_runs_the_code_ran_it(sandbox: Sandbox) -> None:
    sandbox.copies[-1].sendall(struct.pack(">i", 77))
    sandbox.hear()
    ends(sandbox)
    assert (len(sandbox.copies), [result.exit_code for result in sandbox.results]) == (1, [137])


def test_code_whose_time_is_up_is_not_run_any_more(sandbox: Sandbox) -> None:
    sandbox.serial.cancel(1)
    ends(sandbox)
    assert (len(sandbox.copies), [result.timed_out for result in sandbox.results]) == (1, [True])


def test_a_copy_that_has_not_come_when_the_codes_time_is_up_is_given_up_and_runs_nothing(sandbox: Sandbox) -> None:
    sandbox.serial.expire()
    assert sandbox.serial.deadline is None
    sandbox.hear()
    assert (len(sandbox.copies), [result.timed_out for result in sandbox.results]) == (1, [True])
    with pytest.raises(BrokenPipeError):
        sandbox.copies[-1].sendall(struct.pack(">i", 77))  # what it does before it reads any code


def test_what_waits_longer_than_it_may_itself_take_is_told_what_it_waits_for(sandbox: Sandbox) -> None:
    patient = Call(frames.Run(2, Command(python="2"), False, "b"))
    hasty = Call(frames.Run(3, Command(python="3", timeout_ms=2000), False, "c"))
    began = time.monotonic()
    sandbox.serial.ask(patient)
    sandbox.serial.ask(hasty)
    deadline = sandbox.serial.deadline
    assert deadline is not None
    assert deadline >= began + 2 + PATIENCE_S
    sandbox.serial.look(deadline - 0.001)
    assert sandbox.not_run_after == []
    sandbox.serial.look(deadline)
    ((call, seconds),) = sandbox.not_run_after
    assert call is hasty
    assert seconds >= PATIENCE_S
    sandbox.serial.look(deadline + 1e9)
    assert (len(sandbox.not_run_after), sandbox.serial.deadline, sandbox.results) == (1, None, [])


def test_one_whose_children_have_its_socket_is_given_up_when_it_was_killed(sandbox: Sandbox) -> None:
    program = subprocess.Popen(["sleep", "1000"])
    sandbox.copies[-1].sendall(struct.pack(">i", program.pid))
    sandbox.hear()
    with sandbox.copies[-1].dup():
        sandbox.serial.expire()
        assert sandbox.serial.deadline is not None
        assert program.wait() == -signal.SIGINT
        sandbox.serial.expire()
        ends(sandbox)
    assert [(result.exit_code, result.timed_out) for result in sandbox.results] == [(137, True)]


IMPORTS_FIRST = f"""#!/bin/sh
exec {sys.executable} "$1" "import linecache
$2"
"""
"""A Python that behaves as 3.13: it imports a module before the first line of `-c`."""


@pytest.fixture
def cold() -> Iterator[Callable[[dict[str, str]], Interpreter]]:
    """Starts interpreters, and ends them whatever became of their test: some run what never ends."""
    pids: list[int] = []

    def start(env: dict[str, str]) -> Interpreter:
        started = Interpreter.cold(env, "")
        pids.append(started.ours)
        return started

    yield start
    for pid in pids:
        with contextlib.suppress(ChildProcessError):  # it has been waited for, and the number may be another's
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def said(interpreter: Interpreter, code: str) -> str:
    """Return what this code writes there."""
    interpreter.begin(Call(frames.Run(1, Command(python=code), False, "")))
    while not interpreter.complete():
        assert select.select([interpreter.control], [], [], 20)[0], "nothing is heard of it"
        assert interpreter.listen(), os.read(interpreter.outputs[2], 4096)
    interpreter.take(1, os.read(interpreter.outputs[1], 4096))
    answer = interpreter.finish()[1]
    interpreter.gone(0)
    os.waitpid(interpreter.pid, 0)
    return answer.stdout.decode()


@pytest.fixture(params=["as it is", "imports first"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where to look for programs: with the machine's own python3, and with one that behaves as 3.13."""
    if request.param == "as it is":
        return os.environ["PATH"]
    python = tmp_path / "bin/python3"
    python.parent.mkdir()
    python.write_text(IMPORTS_FIRST)
    python.chmod(0o755)
    return f"{python.parent}:{os.environ['PATH']}"


@pytest.mark.parametrize("text", ["raise SystemExit(3)", "while True: pass"], ids=["ends", "endless"])
def test_it_takes_its_modules_from_its_own_library_and_the_codes_from_the_home_too(
    tmp_path: Path, cold: Callable[[dict[str, str]], Interpreter], path: str, text: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("ast", "json", "linecache", "os", "socket", "struct", "token", "types", "typing"):
        (home / f"{name}.py").write_text(text)
    (home / "own.py").write_text("said = 'own'")
    interpreter = cold({"HOME": str(home), "PATH": path})
    assert said(interpreter, "import own; print(own.said)") == "own\n"


SEEN = "import os, sys; print(sys.path.count(''), sys.path[0] == '', os.environ.get('PYTHONSAFEPATH'))"


@pytest.mark.parametrize(
    ("env", "seen"),
    [({}, "1 True None"), ({"PYTHONSAFEPATH": ""}, "1 True None"), ({"PYTHONSAFEPATH": "1"}, "0 False 1")],
)
def test_code_looks_for_modules_in_the_home_first_unless_its_environment_says_otherwise(
    tmp_path: Path, cold: Callable[[dict[str, str]], Interpreter], path: str, env: dict[str, str], seen: str
) -> None:
    interpreter = cold({"HOME": str(tmp_path), "PATH": path, **env})
    assert said(interpreter, SEEN) == seen + "\n"


def test_one_that_never_begins_is_killed_when_the_codes_time_is_up(
    tmp_path: Path, cold: Callable[[dict[str, str]], Interpreter]
) -> None:
    waits = tmp_path / "python3"
    waits.write_text("#!/bin/sh\ntrap '' INT\necho on\nwhile :; do sleep 0.05; done\n")
    waits.chmod(0o755)
    interpreter = cold({"HOME": "/", "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    interpreter.begin(CALL)
    assert select.select([interpreter.outputs[1]], [], [], 20)[0]
    interpreter.expire()
    assert interpreter.deadline is not None
    interpreter.expire()
    assert not interpreter.deadline
    assert os.waitpid(interpreter.ours, 0)[1] == signal.SIGKILL
    answer = interpreter.gone(137)
    assert answer is not None
    assert answer[1].timed_out
