"""What ends a command in order."""

import asyncio
import os
import signal

import pytest

from shoal.cli.exits import Exit
from shoal.cli.interrupts import run_interruptibly


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_what_runs_and_what_it_made_is_cleared_away(number: signal.Signals) -> None:
    cleared = False

    async def work() -> int:
        nonlocal cleared
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            cleared = True
        return Exit.OK

    before = signal.signal(signal.SIGHUP, lambda *_: None)  # where it is not heard, this process goes on
    try:
        assert run_interruptibly(asyncio.wait_for(work(), 20)) == Exit.INTERRUPTED
    finally:
        signal.signal(signal.SIGHUP, before)
    assert cleared


def test_a_closed_terminal_is_nothing_to_who_was_started_with_nohup() -> None:
    async def work() -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(3):  # a loop hears of signals between its turns
            await asyncio.sleep(0)
        return Exit.OK

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_interruptibly(work()) == Exit.OK
    finally:
        signal.signal(signal.SIGHUP, before)
