"""An interpreter that ends on its way into the sandbox: the agent's side of it, with sockets for processes."""

import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from shoal.wire.values import Command, CommandResult
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.commands import Call
from shoal_executor.drivers.agent.interpreter import Interpreter
from shoal_executor.drivers.agent.serial import Serial

CALL = Call(frames.Run(1, Command(python="1"), False, ""))


class Sandbox:
    """Watches nothing by itself: `hear` has the agent look at its interpreter's socket."""

    def __init__(self) -> None:
        self.results: list[CommandResult] = []
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

    def not_started(self, call: Call, error: OSError) -> None:
        raise AssertionError(error)

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
