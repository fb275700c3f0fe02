"""A trainer killed with -9 at random points of a run, and started again: every command is carried out exactly once.

    python loadtest/resume.py [--sandboxes 32] [--commands 20] [--kills 10] [--executor] [--seed 1] [--json]

Real zygote sandboxes. Each command depends on what the one before it returned, and counts itself in a file inside its
sandbox. The trainer is a process of its own that keeps nothing: it is killed whenever so many commands have ended as a
seeded draw says, and started again. At the end its result has to be that of a run that nobody disturbed, and every
counter has to say that each command ran once. With --executor the executor is killed, too, at half of the points.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import uvloop

import shoal
from shoal.cli import statefile
from shoal.cli.system import LocalSystem
from shoal.wire.messages import CommandFinished

_WITHIN_S = 600.0


def say(text: str) -> None:
    """Tell a person."""
    print(text, file=sys.stderr, flush=True)


# --- the trainer: this is all there is of it


async def train(url: str, run: str, sandboxes: int, commands: int) -> dict[str, Any]:
    """Run the chain of dependent commands in every sandbox; return what came of each, by the sandbox's index."""

    async def chain(sandbox: shoal.Sandbox) -> dict[str, Any]:
        said = "start"
        for number in range(commands):
            line = f"echo {number} >> count; sleep 0.0$((RANDOM % 6)); echo {said} | sha256sum | cut -c1-16"
            said = (await sandbox.run(["bash", "-c", line], check=True)).stdout.strip()
        return {"said": said, "count": await sandbox.files.read("count")}

    async with shoal.connect(url) as cluster, cluster.resume(run) as resumed:
        rollout = await resumed.rollout("host", sandboxes, key="only", timeout="30m")
        found = {sandbox.index: sandbox async for sandbox in rollout.ready()}
        results = await asyncio.gather(*(chain(found[index]) for index in range(sandboxes)))
    return {str(index): result for index, result in enumerate(results)}


# --- who kills it


class Trainer:
    """The trainer's process, whichever it is now."""

    def __init__(self, url: str, run: str, arguments: argparse.Namespace, result: Path) -> None:
        given = ("--sandboxes", str(arguments.sandboxes), "--commands", str(arguments.commands))
        self._command = [sys.executable, __file__, "--trainer", url, run, str(result), *given]
        self._process: subprocess.Popen[bytes] | None = None
        self.started = 0

    def start(self) -> None:
        """Start it, as if for the first time."""
        self.started += 1
        self._process = subprocess.Popen(self._command)

    def kill(self) -> bool:
        """Kill it with -9; returns whether it was there to be killed."""
        assert self._process is not None
        if self._process.poll() is not None:
            return False
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        return True

    async def end(self) -> None:
        """Wait until it has done its work."""
        assert self._process is not None
        status = await asyncio.to_thread(self._process.wait, _WITHIN_S)
        if status:
            raise RuntimeError(f"the trainer ended with status {status}")


async def once(url: str, state: Path, run: str, arguments: argparse.Namespace, points: list[int]) -> dict[str, Any]:
    """Have a trainer do the whole run, killed when so many commands have ended; return its result and its time."""
    result = state / f"{run}.json"
    trainer = Trainer(url, run, arguments, result)
    began = time.perf_counter()
    trainer.start()
    killed = executors = 0
    try:
        async with shoal.connect(url) as watcher, aclosing(watcher.events(run, follow=True, since="1h")) as events:
            done: set[str] = set()
            for number, point in enumerate(points):
                while len(done) < point:
                    message = (await anext(events)).message
                    if isinstance(message, CommandFinished):
                        done.add(message.id)
                await asyncio.sleep(random.random() / 5)
                if arguments.executor and number % 2:
                    executors += kill_executor(state)
                if trainer.kill():
                    killed += 1
                    trainer.start()
        await trainer.end()
    finally:
        trainer.kill()
    return {
        "result": json.loads(result.read_text()),
        "seconds": time.perf_counter() - began,
        "killed": killed,
        "executors": executors,
        "replay_s": await replay(url, run, arguments),
    }


def kill_executor(state: Path) -> int:
    """Kill the executor with -9: its sandboxes outlive it, and it comes back."""
    running = statefile.read(state)
    pid = running.services["executor"]["pid"] if running is not None else None
    if not isinstance(pid, int):
        return 0
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


async def replay(url: str, run: str, arguments: argparse.Namespace) -> float:
    """Return how long a trainer takes for which everything is recorded; then give the sandboxes back."""
    began = time.perf_counter()
    await train(url, run, arguments.sandboxes, arguments.commands)
    took = time.perf_counter() - began
    async with shoal.connect(url) as cluster:
        for info in await cluster.rollouts(run=run):
            await cluster.cancel(info.rollout)
    return took


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do it undisturbed and disturbed, and compare."""
    source = random.Random(arguments.seed)
    random.seed(arguments.seed)
    steps = arguments.sandboxes * arguments.commands
    # Not in the last quarter: a trainer that has ended cannot be killed.
    points = sorted(source.sample(range(steps * 3 // 4), arguments.kills))
    with tempfile.TemporaryDirectory(prefix="shoal-resume-") as place:
        state = Path(place)
        async with LocalSystem(state, port=0) as system:
            calm = await once(system.url, state, "calm", arguments, [])
            say(f"undisturbed: {steps} commands in {calm['seconds']:.1f} s; replayed in {calm['replay_s']:.2f} s")
            wild = await once(system.url, state, "wild", arguments, points)
    say(f"killed {wild['killed']} times, at {points}: {wild['seconds']:.1f} s; replayed in {wild['replay_s']:.2f} s")
    counter = "".join(f"{number}\n" for number in range(arguments.commands))
    wrong = [index for index, found in wild["result"].items() if found["count"] != counter]
    return {
        "sandboxes": arguments.sandboxes,
        "commands": arguments.commands,
        "seed": arguments.seed,
        "points": points,
        "killed": wild["killed"],
        "executors_killed": wild["executors"],
        "undisturbed_s": round(calm["seconds"], 2),
        "disturbed_s": round(wild["seconds"], 2),
        "replay_s": round(wild["replay_s"], 3),
        "each_once": not wrong,
        "not_once": wrong,
        "same_result": wild["result"] == calm["result"],
    }


def main() -> int:
    """Parse arguments; be the trainer, or who kills it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sandboxes", type=int, default=32)
    parser.add_argument("--commands", type=int, default=20, help="in each sandbox, each depending on the one before")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--executor", action="store_true", help="kill the executor, too, at every second point")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trainer", nargs=3, metavar=("URL", "RUN", "RESULT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trainer:
        url, run, result = arguments.trainer
        found = uvloop.run(train(url, run, arguments.sandboxes, arguments.commands))
        Path(result).write_text(json.dumps(found))
        return 0
    report = uvloop.run(measure(arguments))
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:<18} {value}")
    return 0 if report["each_once"] and report["same_result"] and report["killed"] == arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())
