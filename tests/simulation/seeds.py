"""`make simulate`: many seeds of the whole cluster; and one seed again, with all that happens in it.

python tests/simulation/seeds.py [--first 0] [--seeds 1000] [--jobs N] [--bugs]
python tests/simulation/seeds.py --trace SEED
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shoal.testing.campaign import Outcome, campaign, commit, python, shrink
from shoal.testing.faults import Faults
from simulation.bugs import PLANTED, Planted
from simulation.cluster import Cluster, Cores, Shape


@dataclass(frozen=True, slots=True)
class Case:
    """One simulation to run."""

    seed: int
    shape: Shape
    faults: Faults
    cores: Cores


def say(text: str) -> None:
    """Tell a person."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(seed: int, cores: Cores | None = None) -> Outcome:
    """Run one seed; whatever it raises is a problem."""
    cluster = Cluster(seed, cores)
    try:
        cluster.run()
    except Exception as error:
        return Outcome(seed, cluster.world.steps, f"{type(error).__name__}: {error}")
    return Outcome(seed, cluster.world.steps, "")


def find(bug: Planted, since: int) -> tuple[int, str] | None:
    """Return the first seed, from `since` on, that finds what is wrong with these cores, and which law it violates.

    None when there is none within the bug's bound. Whatever else is raised is raised: a bug that crashes was not
    found by a law.
    """
    for seed in range(since, bug.within):
        try:
            Cluster(seed, bug.cores).run()
        except AssertionError as error:
            return seed, str(error) or "a core's books do not balance"
    return None


def case_of(seed: int, cores: Cores | None = None) -> Case:
    """Return the case a seed stands for."""
    cluster = Cluster(seed, cores)
    return Case(seed, cluster.shape, cluster.faults, cluster.cores)


def problem_of(case: Case) -> str:
    """Return what is wrong with a case, or nothing."""
    try:
        Cluster(case.seed, case.cores, case.shape, case.faults).run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def smaller(case: Case) -> Iterator[Case]:
    """Yield the case with one fault less or a smaller shape."""
    for faults in case.faults.fewer():
        yield replace(case, faults=faults)
    for shape in case.shape.smaller():
        yield replace(case, shape=shape)


def explain(outcome: Outcome) -> str:
    """Return what a person needs to go after a violation."""
    small = shrink(case_of(outcome.seed), problem_of, smaller)
    return (
        f"\nseed {outcome.seed} at commit {commit()}: {outcome.problem}\n"
        f"  again, with all that happens: {python()} tests/simulation/seeds.py --trace {outcome.seed}\n"
        f"  smallest of {small.tried} tried: {small.case.shape}\n"
        f"  with faults: {small.case.faults}\n"
        f"  fails with: {small.problem}"
    )


def main() -> int:
    """Run what was asked; not zero when a law was violated, or a planted bug not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--bugs", action="store_true", help="look for the planted bugs instead")
    parser.add_argument("--trace", type=int, metavar="SEED", help="run one seed and say what happens")
    options = parser.parse_args()
    if options.trace is not None:
        cluster = Cluster(options.trace)
        cluster.world.trace = say
        say(f"commit {commit()}\n{cluster.shape}\n{cluster.faults}")
        cluster.run()
        say(f"{cluster.world.steps} steps, no violation")
        return 0
    if options.bugs:
        missed = 0
        for name, bug in PLANTED.items():
            found = find(bug, since=0)
            missed += found is None
            how, law = ("NOT FOUND", "") if found is None else (f"after {found[0] + 1} seeds", found[1])
            say(f"{name:40} {how:>16} (bound {bug.within:4}) {law[:80]}")
        return 1 if missed else 0
    failed = campaign(run, options.first, options.seeds, jobs=options.jobs, tell=say)
    for outcome in failed[:3]:
        say(explain(outcome))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
