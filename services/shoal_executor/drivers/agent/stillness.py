"""All processes of the sandbox, stopped and let go on again. Called by its first process, which is spared."""

import contextlib
import os
import signal
import time
from typing import Final

_WITHIN_S: Final = 5.0
_SHARED: Final = "/dev/shm"  # noqa: S108 - looked at, never written
_DELETED: Final = " (deleted)"
_IN_MEMORY: Final = ("/memfd:", "/dev/zero", "/dev/shm/", "/SYSV")  # noqa: S108 - as above
_NAMED: Final = 5  # processes whose names are told


def stop() -> list[int]:
    """Stop every other process, and return those that were not stopped before. Raises OSError after 5 s."""
    before = {pid for pid, (state, _) in _states().items() if state == "T"}
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGSTOP)  # in Linux a fork that is under way fails and comes again: none escapes
    until = time.monotonic() + _WITHIN_S
    states = _states()
    while moving := _moving(states):
        if time.monotonic() > until:
            go_on([pid for pid in states if pid not in before])
            raise OSError(0, "a process of the sandbox does not stop")
        time.sleep(0.0005)
        # gVisor lets one escape that was being forked. And one that waited for what it had vforked does not hear of the
        # signal afterwards, nor of another while that one is pending: SIGCONT takes it back.
        for pid in moving:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGSTOP)
        states = _states()
    return [pid for pid in states if pid not in before]


def _moving(states: dict[int, tuple[str, int]]) -> list[int]:
    """Return who does not stand still. One that waits for what it has vforked does, when that does."""
    still = {pid for pid, (state, _) in states.items() if state in "TtZX"}
    vforked = {parent for pid, (_, parent) in states.items() if pid in still}
    return [pid for pid, (state, _) in states.items() if pid not in still and not (state == "D" and pid in vforked)]


def go_on(stopped: list[int]) -> None:
    """Let these processes go on."""
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def holding(spared: int) -> str:
    """Return what would be lost if only the disk were kept, in words for people; a process may be spared."""
    names: list[str] = []
    for pid, (state, _) in _states().items():
        if pid != spared and state not in "ZX":
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
                names.append(file.read().strip())
    found = [f"running processes ({', '.join(sorted(names)[:_NAMED])})"] if names else []
    with contextlib.suppress(OSError):
        found += [f"files in {_SHARED}"] if os.listdir(_SHARED) else []
    with contextlib.suppress(OSError), open("/proc/sysvipc/shm") as file:
        found += ["shared memory"] if len(file.readlines()) > 1 else []
    return " and ".join(found)


def unkeepable() -> str:
    """Return what a checkpoint of all memory has no place for, in words for people: files of the disk that are open

    or mapped, and deleted. Those in memory (memfd, /dev/shm) are kept.
    """
    disk = os.stat("/").st_dev
    for pid in ("1", *map(str, _states())):
        try:
            with open(f"/proc/{pid}/comm") as file:
                name = file.read().strip()
            places = [f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))]
        except OSError:
            continue  # it has just ended
        gone: list[str] = []
        for place in places:
            with contextlib.suppress(OSError):
                path = os.readlink(place)
                if path.endswith(_DELETED) and os.stat(place).st_dev == disk:
                    gone.append(path)
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as file:
            paths = [line.rstrip("\n").split(None, 5)[-1] for line in file if line.endswith(f"{_DELETED}\n")]
            gone += [path for path in paths if not path.startswith(_IN_MEMORY)]
        if gone:
            return f"{name} (process {pid}) has {gone[0].removesuffix(_DELETED)} open, which was deleted"
    return ""


def _states() -> dict[int, tuple[str, int]]:
    """Return the state and the parent of every process but the first."""
    states: dict[int, tuple[str, int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and entry != "1":
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                states[int(entry)] = fields[0].decode(), int(fields[1])
    return states
