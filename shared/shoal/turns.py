"""How a process takes its turns on a core: a busy one waits for its turn instead of interrupting whoever runs.

A process that is woken by a message usually interrupts whoever runs. While there is little to do that is right: what it
does is short, and somebody waits for it. But busy processes that pass each other messages interrupt each other
thousands of times a second, and each finds cold caches. Under SCHED_BATCH (sched(7)) they wait until a core is free,
messages gather meanwhile, and are taken together. Beside sandboxes that compute it would make a message wait for
milliseconds, so whoever is not busy goes back.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

_LOOK_S: Final = 1.0
_BUSY: Final = 0.25
_CALM: Final = 0.1
"""Of one core, over a second."""


class Turns:
    """Says when a process begins or ends to be busy, by its processor time."""

    def __init__(self) -> None:
        self._busy = False
        self._last: tuple[float, float] | None = None

    def look(self, now_s: float, used_s: float) -> bool | None:
        """Return whether it is busy, where that has changed; None where not, and at the first look."""
        last, self._last = self._last, (now_s, used_s)
        if last is None or now_s <= last[0]:
            return None
        share = (used_s - last[1]) / (now_s - last[0])
        busy = share >= (_CALM if self._busy else _BUSY)
        if busy == self._busy:
            return None
        self._busy = busy
        return busy


async def take_turns() -> None:
    """See to the turns of this process, whose loop runs in its main thread, until cancelled.

    What it starts while it is busy waits its turn for good, so this is not for who starts sandboxes. Does nothing where
    the kernel has no such turns or forbids it, or where somebody chose a policy for this process.
    """
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    await _see_to(time.process_time, lambda: (0,))


async def give_turns(pid: int) -> None:
    """See to the turns of a process with threads that starts no others, until it ends. As `take_turns`."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(pid) == os.SCHED_OTHER:
            await _see_to(lambda: used_s(pid), lambda: map(int, os.listdir(f"/proc/{pid}/task")))


async def _see_to(used: Callable[[], float], threads: Callable[[], Iterable[int]]) -> None:
    turns = Turns()
    with contextlib.suppress(OSError):  # not permitted, or it ended
        while True:
            busy = turns.look(time.monotonic(), used())
            if busy is not None:
                policy = os.SCHED_BATCH if busy else os.SCHED_OTHER
                for thread in threads():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setscheduler(thread, policy, os.sched_param(0))
            await asyncio.sleep(_LOOK_S)


def used_s(pid: int) -> float:
    """Return the processor time that a process used so far, in seconds. Raises OSError where there is none."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
