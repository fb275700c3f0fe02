"""The processes of the sandbox, and which of them are a command's."""

import contextlib
import os
import signal
from collections.abc import Mapping, Set
from typing import Final, NamedTuple

_LOOKS: Final = 8
"""How often it is looked for what was started meanwhile: who starts processes all the time must not keep the agent."""


class Process(NamedTuple):
    """A process: its parent, its group, its session, and what it is doing, as a letter of proc(5)."""

    parent: int
    group: int
    session: int
    state: str

    @property
    def busy(self) -> bool:
        """Whether it is at work, and waits for nothing."""
        return self.state == "R"

    @property
    def ended(self) -> bool:
        """Whether all that is left of it is its status."""
        return self.state in "ZX"


def processes() -> dict[int, Process]:
    """Return every process."""
    found: dict[int, Process] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                state, parent, group, session, *_ = file.read().rpartition(b")")[2].split()
                found[int(entry)] = Process(int(parent), int(group), int(session), state.decode())
    return found


def descendants(there: Mapping[int, Process], *pids: int, spared: Set[int] = frozenset()) -> set[int]:
    """Return all that descend from these processes, but for those that are spared and what descends from them."""
    children: dict[int, list[int]] = {}
    for child, process in there.items():
        if child not in spared:
            children.setdefault(process.parent, []).append(child)
    found: set[int] = set()
    ask = [*pids]
    while ask:
        born = children.pop(ask.pop(), [])
        found.update(born)
        ask += born
    return found


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a process a signal, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def end(leader: int) -> None:
    """Kill the first process of a session, what descends from it, and what is of its session or of one of theirs.

    Its group alone is not all of it: `timeout`, and a shell with job control, make groups of their own.
    """
    killed = {leader}
    for _ in range(_LOOKS):
        there = processes()
        found = {pid for pid, process in there.items() if process.session in killed or process.parent in killed}
        found |= descendants(there, *found)
        fresh = {pid for pid in found if not there[pid].ended} - killed
        # By groups: what is forked meanwhile is killed, too. No group has processes of two sessions.
        for group in {leader, *(there[pid].group for pid in fresh)}:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if not fresh:
            return
        killed |= fresh
