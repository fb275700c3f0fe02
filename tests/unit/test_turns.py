"""Busy processes wait for their turn, and nothing else does."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.turns import Turns, give_turns, take_turns, used_s


def test_a_process_is_busy_from_a_quarter_of_a_core_and_calm_below_a_tenth() -> None:
    turns = Turns()
    shares = [0.0, 0.2, 0.25, 0.9, 0.1, 0.09, 0.2, 0.3]
    said: list[bool | None] = [turns.look(0.0, 0.0)]
    used = 0.0
    for second, share in enumerate(shares, 1):
        used += share
        said.append(turns.look(float(second), used))
    assert said == [None, None, None, True, None, None, False, None, True]


def test_the_first_look_says_nothing_and_two_at_once_say_nothing() -> None:
    turns = Turns()
    assert turns.look(5.0, 100.0) is None  # since when that is, nobody knows
    assert turns.look(5.0, 101.0) is None
    assert turns.look(7.0, 102.0) is True


def _compute(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def _busy_and_calm(policy: int) -> list[int]:
    """Return under which policy this process runs when it is busy, and when it is calm, if it ran under this."""
    os.sched_setscheduler(0, policy, os.sched_param(0))

    async def look() -> list[int]:
        seen = []
        turns = asyncio.create_task(take_turns())
        for _ in range(30):
            _compute(0.3)
            await asyncio.sleep(0.01)
            if os.sched_getscheduler(0) != policy:
                break
        seen.append(os.sched_getscheduler(0))
        for _ in range(100):
            await asyncio.sleep(0.1)
            if os.sched_getscheduler(0) == policy:
                break
        seen.append(os.sched_getscheduler(0))
        turns.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await turns
        return seen

    return asyncio.run(look())


def _in_a_process(tmp_path: Path, call: str) -> str:
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_turns\n{call}\n"
    )
    return subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_a_busy_process_waits_for_its_turn_and_a_calm_one_does_not(tmp_path: Path) -> None:
    said = _in_a_process(tmp_path, "print(test_turns._busy_and_calm(os.SCHED_OTHER))")
    assert said == str([os.SCHED_BATCH, os.SCHED_OTHER])


def test_a_policy_that_somebody_chose_stays(tmp_path: Path) -> None:
    said = _in_a_process(tmp_path, "print(test_turns._busy_and_calm(os.SCHED_IDLE))")
    assert said == str([os.SCHED_IDLE] * 2)


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.05)


async def test_all_threads_of_another_process_take_their_turns_until_it_ends() -> None:
    program = """
import sys, threading
def compute():
    while True: pass
threading.Thread(target=compute, daemon=True).start()
print(flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout
        assert process.stdin
        process.stdout.readline()
        watching = asyncio.create_task(give_turns(process.pid))
        threads = [int(thread) for thread in os.listdir(f"/proc/{process.pid}/task")]
        assert len(threads) == 2
        try:
            await _until(lambda: all(os.sched_getscheduler(thread) == os.SCHED_BATCH for thread in threads))
            assert used_s(process.pid) > 0
        finally:
            process.stdin.close()
            process.wait(10)
        async with asyncio.timeout(10):
            await watching


async def test_who_has_ended_has_no_turns() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(10)
    await give_turns(process.pid)
    with pytest.raises(OSError):
        used_s(process.pid)
