"""Runs a command's coroutine so that Ctrl-C, SIGTERM and a closed terminal end it in order, or else end it anyhow."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn

from shoal.cli.exits import Exit
from shoal.cli.output import say

CLEANUP_S: Final = 20.0
"""How long an interrupted command may take to clean up: what it published may be flushed for ten seconds of it."""
LONG_CLEANUP_S: Final = 300.0
"""The same of what has services to stop, or files to write and send."""
_LAST_SIGNAL: Final = 3
_APART_S: Final = 0.5  # signals that come together are one: it must have had time to end by itself


def checkpoint() -> None:
    """Raise CancelledError when this task was cancelled though what it awaited swallowed that, as wait_for may."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def run_interruptibly(
    work: Coroutine[Any, Any, int],
    loop_factory: "Callable[[], asyncio.AbstractEventLoop] | None" = None,
    *,
    cleanup_s: float = CLEANUP_S,
) -> int:
    """Return what the coroutine returns; interrupted, it is cancelled once, and the status is INTERRUPTED.

    It then has `cleanup_s` seconds. When they are over, and at the third signal, the process ends as it is.
    """
    overdue = threading.Timer(cleanup_s, _end, (f"what was interrupted did not end within {cleanup_s:g} s",))
    overdue.daemon = True  # a thread: a loop that stands still, or never gets to its end, is why it is there
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(_run(work, overdue))
    finally:
        overdue.cancel()


async def _run(work: Coroutine[Any, Any, int], overdue: threading.Timer) -> int:
    task = asyncio.ensure_future(work)
    heard, heard_at = 0, float("-inf")

    def interrupt() -> None:
        nonlocal heard, heard_at
        if loop.time() - heard_at < _APART_S:
            return
        heard, heard_at = heard + 1, loop.time()
        if heard == 1:  # once: a second Ctrl-C must not interrupt the cleaning up
            overdue.start()
            task.cancel()
        elif heard == _LAST_SIGNAL:
            _end("interrupted for the third time")

    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if heard:
            return Exit.INTERRUPTED
        raise
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _end(why: str) -> NoReturn:
    """End the process as if killed: whatever it waits for, it has no say any more."""
    try:
        say(f"shoal: {why}: ended without cleaning up")
    finally:
        os._exit(Exit.INTERRUPTED)
