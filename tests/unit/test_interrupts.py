"""What ends a command in order."""

import asyncio
import os
import signal
import subprocess
import sys

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


def _ended(work: str, cleanup_s: float, signals: int) -> "subprocess.CompletedProcess[str]":
    """Return how a process ends that interrupts itself so often, and whose `work` then swallows each cancellation."""
    program = f"""
import asyncio, os, signal
from shoal.cli.interrupts import run_interruptibly
async def work():
    for _ in range({signals}):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.6)  # those that come together are one
    return 0
async def deaf():
    within = asyncio.ensure_future(work())
    while True:
        try:
            {work}
        except asyncio.CancelledError:
            pass
run_interruptibly(deaf(), cleanup_s={cleanup_s})
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "work", ["await asyncio.sleep(3600)", "await asyncio.sleep(0.2); __import__('time').sleep(3600)"]
)
def test_a_command_that_does_not_end_after_an_interrupt_is_ended(work: str) -> None:
    ended = _ended(work, cleanup_s=0.5, signals=1)
    assert ended.returncode == Exit.INTERRUPTED
    assert "did not end within 0.5 s" in ended.stderr


def test_the_third_signal_ends_the_process() -> None:
    ended = _ended("await asyncio.sleep(3600)", cleanup_s=3000, signals=3)
    assert ended.returncode == Exit.INTERRUPTED
    assert "third time" in ended.stderr
