"""A shell session where bash cannot be told of a file, and where there is no bash."""

import contextlib
import errno
import os
import select
import signal
from collections.abc import Iterator

import pytest

from shoal.wire.messages import Command
from shoal_executor.drivers.agent import frames, session
from shoal_executor.drivers.agent.commands import Call
from shoal_executor.drivers.agent.session import Session


class Shell:
    """A session that is fed and heard as the agent does."""

    def __init__(self) -> None:
        self.session = Session({"HOME": "/"}, "")

    def carry_out(self, line: str) -> tuple[int, bytes]:
        """Return the exit code and the output of a line."""
        self.session.begin(Call(frames.Run(1, Command(line=line, session=True), stream=False)))
        channels = {fd: channel for channel, fd in self.session.outputs.items()}
        while not self.session.complete():
            ready, _, _ = select.select([*channels], [], [], 10)
            assert ready, "nothing is heard of the shell"
            for fd in ready:
                self.session.take(channels[fd], os.read(fd, 65_536))
        _, result = self.session.finish()
        return result.exit_code, result.stdout

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.session.pid, signal.SIGKILL)
        os.waitpid(self.session.pid, 0)
        self.session.gone(137)


@pytest.fixture
def shell() -> Iterator[Shell]:
    made = Shell()
    yield made
    made.close()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """While something is in this set, no memory is left for files: only what is there can be written over."""
    told: set[str] = set()
    write = os.pwrite

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if told and at + len(data) > len(session._END):
            raise OSError(errno.ENOSPC, "no space left")
        return write(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return told


def test_without_memory_for_a_file_a_command_is_read_from_the_pipe(shell: Shell, full: set[str]) -> None:
    full.add("from the first command on")
    assert shell.carry_out("x=5; echo one; false") == (1, b"one\n")
    assert shell.carry_out("set -eu; echo $x") == (0, b"5\n")
    full.clear()
    assert shell.carry_out("echo $x again") == (0, b"5 again\n")
    full.add("later")
    assert shell.carry_out("echo $x; (exit 3) || true") == (0, b"5\n")
    full.clear()
    assert shell.carry_out("set +e; (exit 3)") == (3, b"")


def test_a_file_that_has_become_large_is_cut(shell: Shell) -> None:
    for size in (200_000, 3, 200_000, 3):
        assert shell.carry_out(f": {'x' * size}; echo {size}") == (0, f"{size}\n".encode())
    assert shell.session._file is not None
    assert os.fstat(shell.session._file).st_size < 10_000


def test_other_shells_read_from_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_SHELLS", ("/bin/sh",))
    shell = Shell()
    try:
        assert shell.carry_out("cd /usr; x=5; echo 'a b'") == (0, b"a b\n")
        assert shell.carry_out('echo "$x $PWD"; (exit 4)') == (4, b"5 /usr\n")
    finally:
        shell.close()
