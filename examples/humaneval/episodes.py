"""What one sandbox does with its candidates: write, run the benchmark's tests, check, and fix until they pass."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import shoal
from candidates import Candidate, Problem

VERDICT: Final = "verdict"
TEST_SECONDS: Final = 20.0
TIMED_OUT: Final = "timed out"


@dataclass(slots=True)
class Episode:
    """One sandbox's tries at one problem, in order."""

    problem: str
    passed: list[bool] = field(default_factory=list)
    reference_passed: bool | None = None
    reference_failed: str = ""
    """How it failed, where it did."""
    commands: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def solved(self) -> bool:
        """Whether some candidate passed."""
        return any(self.passed)


async def play(sandbox: shoal.Sandbox, problem: Problem, order: list[Candidate]) -> Episode:
    """Try the candidates in this order, all in the one sandbox, until one passes the benchmark's own tests."""
    episode = Episode(problem.task_id)
    for candidate in order:
        program = problem.program(candidate.source) + f"open({VERDICT!r}, 'w').write('passed')\n"
        await sandbox.files.write("solution.py", program)
        result = await sandbox.run(f"rm -f {VERDICT}; exec python3 -I solution.py", timeout=TEST_SECONDS)
        try:
            verdict = await sandbox.files.read(VERDICT)
        except shoal.FileError:
            verdict = "failed"
        episode.commands += 3
        passed = result.ok and verdict == "passed"
        episode.passed.append(passed)
        if candidate.is_reference:
            episode.reference_passed = passed
        if passed:
            return episode
        kind = _kind(result)
        episode.failures[kind] += 1
        if candidate.is_reference:
            episode.reference_failed = kind
    return episode


def _kind(result: shoal.CommandResult) -> str:
    if result.timed_out:
        return TIMED_OUT
    if result.out_of_memory:
        return "out of memory"
    lines = result.stderr.strip().splitlines()
    name = lines[-1].partition(":")[0].strip() if lines else ""
    return name if name.isidentifier() else f"exit code {result.exit_code}"
