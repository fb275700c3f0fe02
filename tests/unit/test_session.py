"""A shell session where bash cannot be told of a file, and where there is no bash."""

import contextlib
import errno
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.wire.messages import Command
from shoal_executor.drivers.agent import family, frames, session
from shoal_executor.drivers.agent.commands import Call
from shoal_executor.drivers.agent.session import Session


class Shell:
    """A session that is fed and heard as the agent does."""

    def __init__(self) -> None:
        self.session = Session({"HOME": "/"}, "")

    def begin(self, line: str) -> None:
        """Feed a line."""
        self.session.begin(Call(frames.Run(1, Command(line=line, session=True), stream=False)))

    def hear(self, word: bytes) -> None:
        """Wait until the line under way has said this."""
        heard = b""
        while word not in heard:
            ready, _, _ = select.select([self.session.outputs[1]], [], [], 10)
            assert ready, f"{word!r} is not heard of the shell"
            heard += self.session.take(1, os.read(self.session.outputs[1], 65_536))

    def carry_out(self, line: str) -> tuple[int, bytes]:
        """Return the exit code and the output of a line."""
        self.begin(line)
        return self.end()

    def end(self) -> tuple[int, bytes]:
        """Return the exit code and the output of the line under way."""
        channels = {fd: channel for channel, fd in self.session.outputs.items()}
        while not self.session.complete():
            ready, _, _ = select.select([*channels], [], [], 10)
            assert ready, "nothing is heard of the shell"
            for fd in ready:
                self.session.take(channels[fd], os.read(fd, 65_536))
        _, result = self.session.finish()
        return result.exit_code, result.stdout

    def close(self) -> None:
        """End it, and what its lines left running."""
        family.end(self.session.pid)
        with contextlib.suppress(ChildProcessError):  # it has been waited for
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
        assert shell.carry_out("echo $?") == (0, b"4\n")
    finally:
        shell.close()


def runs(*argv: str) -> bool:
    """Return whether any process has these arguments."""
    told = b"".join(f"{word}\0".encode() for word in argv)
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/cmdline", "rb") as file:
            if file.read() == told:
                return True
    return False


@pytest.fixture
def background(shell: Shell) -> Iterator[int]:
    """A process that an earlier line of the session left running."""
    code, said = shell.carry_out("sleep 1235 > /dev/null 2>&1 & (sleep 0); echo $!")
    assert code == 0
    pid = int(said)
    yield pid
    os.kill(pid, signal.SIGKILL)  # which fails unless it is there


def test_a_line_that_starts_one_after_the_other_ends_with_its_shell(shell: Shell, background: int) -> None:
    shell.begin("while :; do sh -c 'echo on; exec sleep 1236'; done")
    shell.hear(b"on\n")
    shell.session.expire()
    shell.hear(b"on\n")  # the next
    assert shell.session.deadline is not None
    shell.session.expire()
    assert not shell.session.deadline
    assert os.waitpid(shell.session.pid, 0)[1] == signal.SIGKILL
    while runs("sleep", "1236"):
        pass
    os.kill(background, 0)


def test_what_earlier_lines_left_running_outlives_one_whose_time_is_up(shell: Shell, background: int) -> None:
    assert shell.carry_out("x=5; sleep 0") == (0, b"")
    shell.begin("sleep 1237 & sh -c 'echo on; exec sleep 1236'")
    shell.hear(b"on\n")
    shell.session.expire()
    assert shell.end() == (137, b"on\n")
    status, said = shell.carry_out("echo $x; jobs -p")  # a shell names one that was killed until it has heard of it
    assert (status, said.split()[:2]) == (0, [b"5", str(background).encode()])
    while runs("sleep", "1237"):
        pass


def test_a_shell_that_is_itself_busy_is_killed_at_once_and_what_it_left_running_is_not(
    shell: Shell, background: int
) -> None:
    shell.begin("echo on; while :; do :; done")
    shell.hear(b"on\n")
    shell.session.expire()
    assert os.waitpid(shell.session.pid, 0)[1] == signal.SIGKILL
    os.kill(background, 0)


@pytest.mark.parametrize("path", ["/bin/bash", "/bin/sh"])
def test_a_shell_that_waits_for_what_an_earlier_line_left_running_is_woken(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(session, "_SHELLS", (path,))
    shell = Shell()
    try:
        code, said = shell.carry_out("x=5; sleep 1238 > /dev/null 2>&1 & echo $!")
        assert code == 0
        shell.begin("echo on; wait")
        shell.hear(b"on\n")
        while family.processes()[shell.session.pid].busy:
            pass  # it does not wait yet
        shell.session.expire()
        shell.end()
        assert shell.carry_out(f"kill {int(said)} && echo $x") == (0, b"5\n")
    finally:
        shell.close()


def test_who_knows_the_mark_cannot_say_with_it_what_is_no_exit_code(shell: Shell) -> None:
    shell.begin("while :; do :; done")  # what it says is said here
    forged = shell.session._mark + b"9" * 5000 + b".0\n"
    assert shell.session.take(1, forged) == forged
    assert not shell.session.complete()


@pytest.mark.parametrize("path", ["/bin/bash", "/bin/sh"])
def test_a_line_that_sends_the_output_elsewhere_has_an_end(
    monkeypatch: pytest.MonkeyPatch, path: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "_SHELLS", (path,))
    shell = Shell()
    try:
        assert shell.carry_out(f"x=5; exec > {tmp_path}/log") == (0, b"")
        assert shell.carry_out("echo $x; false") == (1, b"")
        assert shell.carry_out("echo $?") == (0, b"")
        assert (tmp_path / "log").read_text() == "5\n1\n"
    finally:
        shell.close()


def test_whatever_else_is_open_a_line_is_read() -> None:
    taken = [os.open("/dev/null", os.O_RDONLY)]
    while taken[-1] < session._SAID - 1:
        taken.append(os.dup(taken[0]))
    try:
        shell = Shell()
        try:
            assert shell.carry_out("true") == (0, b"")
            assert shell.carry_out("echo hi") == (0, b"hi\n")
        finally:
            shell.close()
    finally:
        for fd in taken:
            os.close(fd)


def test_what_is_heard_between_lines_is_the_end_of_none(shell: Shell) -> None:
    assert shell.carry_out("echo one") == (0, b"one\n")
    assert shell.session.take(1, b"late") == b""
    assert not shell.session.complete()
    assert shell.carry_out("echo two") == (0, b"two\n")
