"""Many seeds, and what to do with one that fails: name it, make it smaller, and say how to see it again."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from shoal import host

Case = TypeVar("Case")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one seed: `problem` is empty when every law held."""

    seed: int
    steps: int
    problem: str


@dataclass(frozen=True, slots=True)
class Shrunk(Generic[Case]):
    """The smallest case that still fails, as far as it was tried."""

    case: Case
    problem: str
    tried: int


def shrink(
    case: Case, fails: Callable[[Case], str], smaller: Callable[[Case], Iterator[Case]], most: int = 400
) -> Shrunk[Case]:
    """Return a smaller case that fails: `fails` says why, or nothing; `smaller` yields what to try instead of one."""
    problem, tried = fails(case), 1
    again = True
    while again and tried < most:
        again = False
        for other in smaller(case):
            tried += 1
            found = fails(other)
            if found:
                case, problem, again = other, found, True
                break
            if tried >= most:
                break
    return Shrunk(case, problem, tried)


def campaign(
    run: Callable[[int], Outcome],
    first: int,
    seeds: int,
    *,
    jobs: int | None = None,
    tell: Callable[[str], None] = print,
) -> list[Outcome]:
    """Run seeds in as many processes as there are cores; returns those that failed. Tells how it goes every second."""
    jobs = jobs or host.cores()
    began = told = time.monotonic()
    done = steps = 0
    failed: list[Outcome] = []
    with ProcessPoolExecutor(jobs) as pool:
        for outcome in pool.map(run, range(first, first + seeds), chunksize=max(1, min(50, seeds // (4 * jobs)))):
            done += 1
            steps += outcome.steps
            if outcome.problem:
                failed.append(outcome)
                tell(f"seed {outcome.seed}: {outcome.problem}")
            now = time.monotonic()
            if now - told >= 1 or done == seeds:
                told = now
                rate, pace = done / (now - began), steps / (now - began)
                tell(f"{done:,} of {seeds:,} seeds, {rate:.0f} seeds/s, {pace:,.0f} steps/s, {len(failed)} violations")
    return failed


def commit() -> str:
    """Return the commit this runs from, with a mark where the checkout differs from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            timeout=10,
            check=True,
            text=True,
        )
        return found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def python() -> str:
    """Return the interpreter, as a person would type it."""
    return os.path.relpath(sys.executable)
