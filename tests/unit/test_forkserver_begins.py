"""What a fork server has done to itself before it forks, and what it does with a clone that it cannot map.

Each in a process of its own: the fork server's has one thread, its signals and its descriptors to itself.
"""

import subprocess
import sys

import pytest

BEGIN = """
import os, signal, socket, sys, time
from shoal_executor.drivers import kernel
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.agent import heed_signals
from shoal_executor.drivers.zygote import becoming, server
from shoal_executor.drivers.zygote.rehearsal import rehearse
def descriptors():
    return {int(each) for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}")}
"""


def run(code: str, **how: object) -> str:
    """Run it; returns what it says."""
    command = [sys.executable, "-c", BEGIN + code]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_rehearsal_leaves_nothing() -> None:
    run("""
before = descriptors()
heed_signals()
rehearse()
assert descriptors() == before, descriptors() - before
assert signal.set_wakeup_fd(-1) == -1
""")


def test_the_rehearsal_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    run("""
heard = []
tell = server.frames.pack
frames.pack = lambda message: heard.append(message) or tell(message)
heed_signals()
rehearse()
done = [each for each in heard if isinstance(each, frames.Done)]
assert len(done) == 32 and {each.result.exit_code for each in done} == {126}, heard[-3:]
""")


def test_no_module_that_wants_a_word_after_a_fork_is_there() -> None:
    run("""
assert "random" not in sys.modules and "pyseccomp" not in sys.modules and "logging" not in sys.modules
assert len(os.listdir("/proc/self/task")) == 1
""")


def test_what_comes_later_is_out_of_the_way() -> None:
    run("""
for number in (5, 9, 31):
    os.dup2(0, number)
becoming._take_first_descriptors()
assert set(range(32)) <= descriptors(), descriptors()
assert os.open("/dev/null", os.O_RDONLY) == 32
""")


def test_a_clone_that_cannot_be_mapped_is_ended() -> None:
    run("""
control, _driver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
class Entrance:
    def prepare(self, order, link, lifeline, others):
        return lifeline
    def become(self, lifeline):
        os.read(lifeline, 1)
server._FLAGS = kernel.NEWUSER
made = server.Server(control, listener, False, 1.0, Entrance())
made._map = b"no map"
link, _ = socket.socketpair()
before = descriptors()
try:
    made._fork(frames.Order("it"), [link.fileno()])
    raise SystemExit("it was mapped")
except OSError as error:
    print(error)
assert descriptors() == before
for _ in range(1000):
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid:
        break
    time.sleep(0.01)
assert pid and os.WTERMSIG(status) == signal.SIGKILL, (pid, status)
assert not made._sandboxes and not made._names
""")


def test_an_order_that_does_not_come_whole_is_refused_and_the_next_is_heard() -> None:
    run("""
control, driver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
driver.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
made = server.Server(control, listener, False, 1.0, None)
before = descriptors()
def heard(order, count):
    driver.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(memoryview(fds(count))))] if count else [])
    made._obey()
    assert descriptors() == before
    return frames.events.decode(driver.recv(65536)) if select.select([driver], [], [], 0)[0] else None
def fds(count):
    return array.array("i", [0] * count)
import array, select
for count in (0, 4, 6):  # a link, two layers, two groups
    said = heard(frames.encode(frames.Order("it", layers=2, groups=2)), count)
    assert (said.kind, said.name) == ("failed", "it") and f"of 5 descriptors {count} came" in said.detail, said
for broken in (frames.encode(frames.Order("it", env=(("A", "x" * frames.LARGEST_ORDER),))), b"no order"):
    assert heard(broken, 1) is None
said = heard(frames.encode(frames.Order("it", where=True)), 0)
assert (said.kind, said.name) == ("where", "it")
""")
