"""Processes of this machine: told apart by start time, and tied to their parent's life."""

import asyncio
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None)


def tied(number: int) -> Callable[[], None]:
    """Return what a child calls before its exec, so that it gets this signal when its parent's thread ends."""
    parent = os.getpid()

    def before_exec() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the signal was arranged
            os._exit(1)

    return before_exec


_PASSED_ON: Final = frozenset(
    f"SHOAL_{name}"
    for name in (
        "LOG_LEVEL", "GVISOR_PLATFORM", "BLOB_CACHE", "SLOTS", "MEMORY", "OVERCOMMIT", "CPU", "DISK", "LABELS",
        "PARALLEL", "POOL", "POOL_MEMORY", "TUNE_HOST", "SEED", "START_MS", "COMMAND_MS", "START_FAILURES",
        "COMMAND_FAILURES",
    )
)  # fmt: skip
"""What an executor may be told by whoever starts all of it. How services find each other and their places is not."""


def spawn(argv: Sequence[str], log: Path, death_signal: int) -> "subprocess.Popen[bytes]":
    """Start a service in a session of its own, its output appended to log. Raises OSError."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SHOAL_") or name in _PASSED_ON  # all else it is told by flags
    }
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment,
            start_new_session=True,  # a Ctrl-C is for whoever supervises it
            preexec_fn=tied(death_signal),
        )


async def ended(pid: int) -> None:
    """Wait until a process has ended, zombie or not."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(handle, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def how_it_ended(status: int) -> str:
    """Return a process's status as people say it."""
    if status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    return f"ended with status {status}"
