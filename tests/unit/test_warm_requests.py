"""Requests for copies of a warm interpreter: those of sandboxes that have ended, and more than there is room for.

Each in a process of its own, which forks.
"""

import subprocess
import sys

BEGIN = """
import json, os, signal, socket, struct, threading
from shoal_executor.drivers.agent import interpreter, served
asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
"""
WARM = """
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if os.fork() == 0:
    served.time.sleep = lambda _: theirs.send(b"slept")
    ours.close()
    asking.close()
    served.warm(theirs, {})
ours.send(json.dumps({"code": "", "filter": "", "requests": asked.fileno()}).encode())
assert ours.recv(100) == b"ready"
def dead(size=0):
    "A request of a sandbox whose control group is gone; returns what came of it."
    told_r, told_w = os.pipe()
    gone_r, gone_w = os.pipe()
    request = {"namespaces": 0, "env": {"A": "x" * size}}
    socket.send_fds(asking, [json.dumps(request).encode()], [told_w, told_w, told_w, gone_r])
    os.close(told_w)
    said = b""
    while data := os.read(told_r, 4096):
        said += data
    return said
"""


def run(code: str) -> str:
    """Run it; returns what it says."""
    command = [sys.executable, "-c", BEGIN + code]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nobody_waits_for_requests_of_those_that_have_ended() -> None:
    run(f"""{WARM}
for _ in range(8):  # there are two spares: the third request waits for what follows the first
    assert b"cannot enter the sandbox: OSError(9" in dead()
ours.setblocking(False)
try:
    raise SystemExit(ours.recv(100))
except BlockingIOError:
    pass
""")


def test_a_request_may_have_a_large_environment() -> None:
    run(f"""{WARM}
assert b"OSError(9" in dead(150_000)  # it was read whole
""")


def test_a_spare_that_ends_without_a_request_is_not_replaced_at_full_speed() -> None:
    run(f"""{WARM}
warm = int(open("/proc/thread-self/children").read())
spares = open(f"/proc/{{warm}}/task/{{warm}}/children").read().split()
assert len(spares) == 2
os.kill(int(spares[0]), signal.SIGKILL)
assert ours.recv(100) == b"slept"
""")


def test_an_agent_waits_for_no_room() -> None:
    run("""
try:
    while True:
        asking.send(b"a request of another", socket.MSG_DONTWAIT)
except BlockingIOError:
    pass
made = interpreter.Interpreter.copied(asking, [], frozenset(), {"A": "\\u00e9"}, "")
while (data := socket.recv_fds(asked, 65536, 32))[0] == b"a request of another":
    pass
assert json.loads(data[0])["env"]["A"] == "\\u00e9" and len(data[1]) == 3 + 7
pid, status = os.waitpid(-1, 0)
assert status == 0
""")
