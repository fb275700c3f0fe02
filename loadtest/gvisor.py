"""What isolation gvisor costs beside bare runsc, turn by turn in one run. Needs root, runsc and erofs-utils.

    python loadtest/gvisor.py [--rounds 10] [--heap 200MiB] [--json]

Start: a rollout of one sandbox from a memory snapshot with 35 modules imported, from the submission to the end of its
first command, beside `runsc restore` and `runsc exec true` of a container that holds the same interpreter; and beside
a cold rollout that imports the modules. Sleep: a sandbox with a heap of random bytes hibernates and is woken by its
next command, beside `runsc checkpoint`, and `runsc restore` with `runsc exec true`, of a container with the same heap.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import shoal
from shoal.cli.system import LocalSystem
from shoal.wire.messages import Snapshot
from shoal.wire.quantities import parse_bytes
from shoal_executor.drivers import roots
from shoal_executor.drivers.gvisor import runsc
from snapshots import IMPORTS

_MAIN = "import sys; sys.stdout.write('up\\n'); sys.stdout.flush(); sys.stdin.read()"


class Bare:
    """One container without anything of Shoal, and the copies of it that are restored."""

    def __init__(self, place: Path, program: runsc.Runsc, code: str) -> None:
        self._place = place
        self._program = program
        self._count = 0
        root, usr = roots.root_of(Snapshot("host", "host"), place)
        command = ["python3", "-c", f"{code}\n{_MAIN}"]
        config = {
            "ociVersion": "1.0.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": command, "cwd": "/", "env": ["PATH=/usr/bin:/bin"]},
            "root": {"path": str(root), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/usr", "type": "bind", "source": usr, "options": ["ro", "rbind"]},
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "mount", "ipc", "uts")]},
        }
        (place / "config.json").write_text(json.dumps(config))

    def call(self, *words: str) -> None:
        """Call runsc."""
        subprocess.run(self._program.line(*words), check=True, stdout=subprocess.DEVNULL, timeout=120)

    def start(self, *words: str) -> "tuple[str, subprocess.Popen[str]]":
        """Start a container that stays; returns its id, and the process that holds its pipes."""
        self._count += 1
        id = f"bare-{time.monotonic_ns()}-{self._count}"
        line = self._program.line(*words, f"--bundle={self._place}", id)
        return id, subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def kept(self, image: Path) -> float:
        """Start it, checkpoint it when it is up, and return how long that took, in ms."""
        id, process = self.start("run")
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        image.mkdir()
        began = time.perf_counter()
        self.call("checkpoint", f"--image-path={image}", id)
        took = (time.perf_counter() - began) * 1000
        process.communicate(timeout=60)
        self.call("delete", "-force", id)
        return took

    def restored(self, image: Path) -> float:
        """Return how long it takes, in ms, until a copy has run `true`."""
        began = time.perf_counter()
        id, process = self.start("restore", f"--image-path={image}")
        while subprocess.run(
            self._program.line("exec", id, "true"), stderr=subprocess.DEVNULL, check=False, timeout=60
        ).returncode:
            pass
        took = (time.perf_counter() - began) * 1000
        self.call("kill", id, "KILL")
        process.communicate(timeout=60)
        self.call("delete", "-force", id)
        return took


async def first_command(cluster: shoal.Cluster, start: shoal.Snapshot | str, code: str) -> float:
    """Return ms from the submission of a rollout of one to the end of its first command."""
    began = time.perf_counter()
    async with cluster.rollout(start, isolation="gvisor", resources=shoal.Resources(memory="1GiB")) as rollout:
        async for sandbox in rollout.ready():
            if code:
                await sandbox.python(code, check=True)
            else:
                await sandbox.run(["true"], check=True)
        took = (time.perf_counter() - began) * 1000
    await rollout.wait(60)
    return took


async def measure(rounds: int, heap: int) -> dict[str, float]:
    """Measure all of it."""
    found: dict[str, list[float]] = {}
    place = Path(tempfile.mkdtemp(prefix="shoal-gvisor-"))
    try:
        local = LocalSystem(place / "state", port=0, driver="gvisor")
        async with local as system, shoal.connect(system.url) as cluster:
            program = await runsc.find()
            program.root = place / "runsc"
            program.platform = program.platforms[0]
            for name in ("small", "large"):
                (place / name).mkdir()
            small = Bare(place / "small", program, IMPORTS)
            small.kept(place / "image")
            warm = await cluster.build_template("warm-modules", "host", warm=IMPORTS, isolation="gvisor")
            await cluster.prefetch(warm)
            await first_command(cluster, warm, "")
            for _ in range(rounds):
                for name, took in (
                    ("bare", await asyncio.to_thread(small.restored, place / "image")),
                    ("warm", await first_command(cluster, warm, "")),
                    ("cold", await first_command(cluster, "host", IMPORTS)),
                    ("cold_true", await first_command(cluster, "host", "")),
                ):
                    found.setdefault(name, []).append(took)
            code = f"import os\nheap = os.urandom({heap})"
            large = Bare(place / "large", program, code)
            for number in range(max(rounds // 3, 1)):
                image = place / f"large-{number}"
                found.setdefault("bare_checkpoint", []).append(await asyncio.to_thread(large.kept, image))
                found.setdefault("bare_restore", []).append(await asyncio.to_thread(large.restored, image))
                shutil.rmtree(image)
                limits = shoal.Resources(memory=2 * heap + 512 * 1024**2)
                async with cluster.rollout("host", isolation="gvisor", resources=limits) as rollout:
                    (sandbox,) = [each async for each in rollout.ready()]
                    await sandbox.python(code, check=True)
                    began = time.perf_counter()
                    await sandbox.hibernate()
                    found.setdefault("hibernate", []).append((time.perf_counter() - began) * 1000)
                    began = time.perf_counter()
                    await sandbox.run(["true"], check=True)
                    found.setdefault("wake", []).append((time.perf_counter() - began) * 1000)
                    said = await sandbox.python("len(heap)", check=True)
                    if said.stdout != f"{heap}\n":
                        raise SystemExit(f"the heap is not what it was: {said.stdout}")
                await rollout.wait(60)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--heap", type=parse_bytes, default=parse_bytes("200MiB"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ms = asyncio.run(measure(options.rounds, options.heap))
    if options.json:
        print(json.dumps(ms))
        return
    print(f"first command, from a memory snapshot with 35 modules: {ms['warm']:.0f} ms, {ms['warm'] / ms['bare']:.2f} "
          f"times bare runsc restore + exec ({ms['bare']:.0f} ms)")  # fmt: skip
    print(f"cold start and the same imports: {ms['cold']:.0f} ms, {ms['cold'] / ms['warm']:.1f} times as long; "
          f"a cold start alone: {ms['cold_true']:.0f} ms")  # fmt: skip
    print(f"hibernate with the heap: {ms['hibernate']:.0f} ms, {ms['hibernate'] / ms['bare_checkpoint']:.2f} times "
          f"bare runsc checkpoint ({ms['bare_checkpoint']:.0f} ms)")  # fmt: skip
    print(f"wake with it: {ms['wake']:.0f} ms, {ms['wake'] / ms['bare_restore']:.2f} times bare runsc restore + exec "
          f"({ms['bare_restore']:.0f} ms)")  # fmt: skip


if __name__ == "__main__":
    main()
