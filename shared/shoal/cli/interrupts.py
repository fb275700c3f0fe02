"""Runs a command's coroutine so that Ctrl-C, SIGTERM and a closed terminal end it in order."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from shoal.cli.exits import Exit


def checkpoint() -> None:
    """Raise CancelledError when this task was cancelled though what it awaited swallowed that, as wait_for may."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def run_interruptibly(
    work: Coroutine[Any, Any, int], loop_factory: "Callable[[], asyncio.AbstractEventLoop] | None" = None
) -> int:
    """Return what the coroutine returns; interrupted, it is cancelled once, and the status is INTERRUPTED."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_run(work))


async def _run(work: Coroutine[Any, Any, int]) -> int:
    task = asyncio.ensure_future(work)
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted:  # once: a second Ctrl-C must not interrupt the cleaning up
            interrupted = True
            task.cancel()

    loop = asyncio.get_running_loop()
    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        heard.append(signal.SIGHUP)
    for number in heard:
        loop.add_signal_handler(number, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if interrupted:
            return Exit.INTERRUPTED
        raise
    finally:
        for number in heard:
            loop.remove_signal_handler(number)
