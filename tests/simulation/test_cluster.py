"""Some hundreds of seeds of the whole cluster, and the simulator itself tried with planted bugs."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.testing.campaign import campaign, shrink
from simulation.bugs import PLANTED
from simulation.cluster import Cluster
from simulation.seeds import case_of, find, problem_of, run, smaller

SEEDS = 400


def test_every_law_holds_under_every_seed() -> None:
    assert campaign(run, 0, SEEDS, tell=lambda _: None) == []


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    assert find(PLANTED[bug], PLANTED[bug].since) is not None


def test_a_violation_is_made_smaller() -> None:
    bug = PLANTED["placement: frees slots too early"]
    found = find(bug, bug.since)
    assert found is not None
    case = case_of(found[0], bug.cores)
    small = shrink(case, problem_of, smaller, most=60)
    assert small.problem
    assert problem_of(small.case)
    assert small.tried > 1
    assert sum(vars_of(small.case.shape)) <= sum(vars_of(case.shape))


def vars_of(shape: object) -> list[int]:
    return [
        getattr(shape, name) for name in ("cells", "executors", "nodes", "slots", "replicas", "rollouts", "largest")
    ]


def digest(first: int, count: int) -> str:
    """Return a digest of everything that happened in some seeds, and of every state at their ends."""
    found = hashlib.blake2b()
    for seed in range(first, first + count):
        cluster = Cluster(seed)
        cluster.run()
        for partition in cluster.partitions:
            for entry in partition.log.entries:
                found.update(repr(entry).encode())
            for replica in partition.replicas:
                found.update(replica.core.dump())
    return found.hexdigest()


def test_history_and_states_depend_on_nothing_but_the_seed() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from simulation.test_cluster import digest; print(digest(0, 12))"
    )
    tests = str(Path(__file__).resolve().parents[1])
    digests = {
        subprocess.run(
            [sys.executable, "-c", program, tests], capture_output=True, check=True, timeout=100, text=True,
            env={**os.environ, "PYTHONHASHSEED": hashing},
        ).stdout.strip()
        for hashing in ("0", "1", "4242")
    }  # fmt: skip
    assert digests == {digest(0, 12)}
