"""Replay on a real broker with services that are killed: every decision verified, states told, demand tried again."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.archive import open as open_archive
from shoal.cli import statefile
from shoal.cli.exits import Exit
from shoal.cli.system import LocalSystem
from shoal.replay.rebuilding import rebuild
from shoal.replay.services import services

pytestmark = pytest.mark.broker


async def run(*arguments: str, url: str = "") -> tuple[int, list[dict[str, Any]], str]:
    """Run a command with --json; return its status, what it printed, and what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "shoal.cli", *arguments, "--json"], capture_output=True, text=True,
        timeout=90, env={**environment, **({"SHOAL_URL": url} if url else {})}, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


async def busy(cluster: shoal.Cluster, state: Path) -> None:
    """Have rollouts of two tenants' kinds happen while services are killed."""
    await cluster.limit_tenant(cluster.tenant, shoal.Limits(sandboxes=150))

    async def one(number: int) -> None:
        rollout = await cluster.rollout(
            "host", n=20, run=f"u{number % 3}", command="work", on_lost="restart", max_attempts=20,
            min_ready=10 if number % 2 else 0,
        )  # fmt: skip
        assert (await rollout.wait(60)).succeeded == 20

    async def kill() -> None:
        for name in ("scheduler", "placement", "scheduler"):
            await asyncio.sleep(0.7)
            running = statefile.read(state)
            assert running is not None
            pid = running.services[name]["pid"]
            assert isinstance(pid, int)
            os.kill(pid, signal.SIGKILL)

    killing = asyncio.create_task(kill())
    for number in range(0, 60, 10):
        await asyncio.gather(*(one(each) for each in range(number, number + 10)))
    await killing
    await one(61)


async def test_a_recording_is_verified_rebuilt_tried_otherwise_and_sent_again(tmp_path: Path) -> None:
    archive = tmp_path / "all.shoal"
    async with LocalSystem(tmp_path / "state", port=0, driver="simulated", nodes=30, slots=4, cells=2) as system:
        async with shoal.connect(system.url) as cluster:
            await busy(cluster, tmp_path / "state")
        status, _, said = await run("export", "-o", str(archive), url=system.url)
        assert status == Exit.OK, said

        status, (verdict,), said = await run("replay", "verify", str(archive))
        assert (status, verdict["equal"]) == (Exit.OK, True), verdict
        assert verdict["folded"].keys() == {
            "scheduler.0", "scheduler.1", "placement.0", "placement.1", "snapshot",
        }  # fmt: skip
        assert sum(verdict["compared"].values()) > 300
        status, (verdict,), _ = await run("replay", "verify", "live", url=system.url)
        assert verdict["equal"]

        status, (verdict,), _ = await run("replay", "verify", str(archive), "--set", "placement.policy=random")
        assert status == Exit.DIVERGED
        divergence = verdict["divergence"]
        assert divergence["partition"].startswith("placement")
        assert divergence["differs"]
        assert divergence["causes"][0]["type"] in ("PlaceRequested", "SlotsReleased", "Tick", "ExecutorJoined")

        status, (state,), said = await run("state", "placement", "--cell", "1", "--from", str(archive))
        assert status == Exit.OK, said
        async with open_archive(archive) as history:
            found = await rebuild(history, services()["placement"], 1, checkpoints=False)
        assert state["sequence"] == found.sequence
        assert len(state["state"]["executors"][0]["nodes"]) == 15
        changes = await run("state", "scheduler", "--diff", "1h", "100ms", "--from", str(archive))
        assert changes[0] == Exit.OK
        assert changes[1]

        status, (found_,), said = await run(
            "replay", "whatif", str(archive), "--set", "nodes*=2", "--set", "tenant.default.sandboxes=0"
        )
        assert status == Exit.OK, said
        assert found_["recorded"]["sandboxes"] == found_["simulated"]["sandboxes"] == 61 * 20
        assert found_["changed"]["full_p99_s"] < found_["simulated"]["full_p99_s"]

        status, _, said = await run("replay", "load", str(archive), "--onto", system.url)
        assert status == Exit.USAGE
        assert "--force" in said
    async with LocalSystem(tmp_path / "other", port=0, driver="simulated", nodes=10, slots=200) as other:
        onto = ("--onto", other.url, "--speed", "20x", "--scale", "2", "--run", "shadow")
        status, (loaded,), said = await run("replay", "load", str(archive), *onto)
        assert status == Exit.OK, said
        assert (loaded["rollouts"], loaded["sandboxes"]) == (122, 2 * 61 * 20)
        async with shoal.connect(other.url) as cluster, asyncio.timeout(60):
            while sum(info.ended for info in await cluster.rollouts(run="shadow")) < 2 * 61 * 20:
                await asyncio.sleep(0.2)


async def test_what_cannot_be_replayed_is_said(tmp_path: Path) -> None:
    missing = tmp_path / "missing.shoal"
    for command in ("verify", "whatif"):
        status, _, said = await run("replay", command, str(missing))
        assert status == Exit.INPUT
        assert str(missing) in said
    status, _, said = await run("replay", "verify", str(missing), "--set", "order=fifo")
    assert status == Exit.USAGE
    assert "scheduler.order=fifo" in said
    status, _, said = await run("state", "--at", "1h", "--diff", "1h", "2h", "--from", str(missing))
    assert status == Exit.USAGE
