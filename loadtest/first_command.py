"""How long from submitting one sandbox to its command's result, against a bare bubblewrap start of the same command.

    python loadtest/first_command.py [--rounds 60] [--json]

Both take turns on the same machine, in one run: one rollout of n=1 through the whole system (client, broker, scheduler,
placement, executor, real sandbox and back), then one `bwrap --unshare-all` over an overlay of the same root that was
mounted beforehand. The figure that means something is the ratio of the medians. Needs root and bubblewrap.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import shoal
from shoal.cli.system import LocalSystem


def overlay_root(base: Path) -> Path:
    """Mount an overlay over an image with the host's /usr, as a `host` sandbox has it; returns its root."""
    image = base / "image"
    for name in ("usr", "proc", "dev", "tmp", "etc", "root"):
        (image / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (image / name).symlink_to(f"usr/{name}")
    upper, work, root = base / "upper", base / "work", base / "root"
    for path in (upper, work, root):
        path.mkdir()
    options = f"lowerdir={image},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True, timeout=10)
    return root


def bare_start(root: Path, command: list[str]) -> float:
    """Start the command in a fresh bubblewrap sandbox and wait for its end; returns ms."""
    line = ["bwrap", "--unshare-all", "--die-with-parent", "--bind", str(root), "/", "--ro-bind", "/usr", "/usr"]
    line += ["--proc", "/proc", "--dev", "/dev", "--", *command]
    began = time.perf_counter()
    subprocess.run(line, check=True, timeout=10, stdin=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


async def through_shoal(cluster: shoal.Cluster, command: list[str]) -> tuple[float, float]:
    """Run the command in a rollout of one; returns first_command_ms (the broker's clock) and the client's wall ms."""
    began = time.perf_counter()
    rollout = await cluster.rollout("host", n=1, command=command, run="first-command")
    async for outcome in rollout.outcomes():
        wall = (time.perf_counter() - began) * 1000
        if outcome.first_command_ms is None or outcome.result is None or not outcome.result.ok:
            raise SystemExit(f"the command failed: {outcome}")
        return outcome.first_command_ms, wall
    raise SystemExit("the rollout ended without an outcome")


async def measure(rounds: int, command: list[str], report: bool) -> dict[str, object]:
    """Alternate both ways; returns medians in ms and their ratio."""
    ours: list[float] = []
    walls: list[float] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory(prefix="shoal-first-command-") as scratch:
        base = Path(scratch)
        root = overlay_root(base)
        try:
            async with LocalSystem(base / "state", port=0) as system, shoal.connect(system.url) as cluster:
                for turn in range(rounds + 5):
                    first, wall = await through_shoal(cluster, command)
                    await asyncio.sleep(0.05)  # the machine is idle when the next one begins
                    other = await asyncio.to_thread(bare_start, root, command)
                    await asyncio.sleep(0.05)
                    if turn >= 5:
                        ours.append(first)
                        walls.append(wall)
                        bare.append(other)
                    if report:
                        print(f"\r{turn + 1}/{rounds + 5}", end="", file=sys.stderr, flush=True)
        finally:
            subprocess.run(["umount", str(root)], check=True, timeout=10)
    return {
        "command": command,
        "rounds": rounds,
        "first_command_ms": statistics.median(ours),
        "client_wall_ms": statistics.median(walls),
        "bwrap_ms": statistics.median(bare),
        "ratio": statistics.median(ours) / statistics.median(bare),
        "wall_ratio": statistics.median(walls) / statistics.median(bare),
    }


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("command", nargs="*", default=["true"])
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("bwrap") is None:
        raise SystemExit("this comparison mounts an overlay and runs bwrap: run it as root, with bubblewrap installed")
    figures = asyncio.run(measure(options.rounds, options.command or ["true"], sys.stderr.isatty()))
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            "\n".join(
                f"{name:>18}  {value:.2f}" if isinstance(value, float) else f"{name:>18}  {value}"
                for name, value in figures.items()
            )
        )


if __name__ == "__main__":
    main()
