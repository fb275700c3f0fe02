"""All processes of a peer, whatever became of their parents: found by a mark in their environment, and their children.

Services detach themselves, and their parents end; what they were started with stays with them.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from shoal_loadtest.measure.processes import pss

MARK: Final = "LOADTEST_PEER"
"""The variable that names whose a process is."""
_GRACE_S: Final = 5.0


def marked(mark: str) -> set[int]:
    """Return the processes that were started with this mark, and all children of those."""
    wanted = f"{MARK}={mark}".encode()
    parents: dict[int, int] = {}
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if fields[0] == "Z":
                continue
            parents[pid] = int(fields[1])
            if wanted in (path / "environ").read_bytes().split(b"\0"):
                found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def pss_mib(pids: Iterable[int]) -> float:
    """Return the memory of processes together, in MiB: what they share is counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += pss(psutil.Process(pid))
    return total / 1024**2


def end_all(mark: str) -> list[int]:
    """End whatever is left with this mark: asked first, killed after a moment; returns what was left."""
    left = sorted(marked(mark))
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + _GRACE_S
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while marked(mark) and time.monotonic() < until:
            time.sleep(0.05)
    return left
