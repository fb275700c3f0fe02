"""Trainers that are killed again and again, as the load test does it, smaller; and nodes that are lost meanwhile."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shoal
from chaos.test_kill import kill_node
from shoal.cli.system import LocalSystem

pytestmark = [pytest.mark.broker, pytest.mark.sandbox]

SCRIPT = Path(__file__).parents[2] / "loadtest" / "resume.py"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("variant", [[], ["--executor"]], ids=["trainer", "trainer and executor"])
def test_every_command_is_carried_out_once_however_often_its_trainer_is_killed(variant: list[str]) -> None:
    sizes = ["--sandboxes", "8", "--commands", "8", "--kills", "5"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *sizes, *variant, "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["each_once"], report["same_result"], report["killed"]) == (True, True, 5)
    assert report["executors_killed"] >= (1 if variant else 0)


N, STEPS = 8, 25


async def trainer(url: str) -> list[list[str]]:
    """Have every sandbox count what was done in it; return what each step of each said."""

    async def chain(sandbox: shoal.Sandbox) -> list[str]:
        lines = (f"echo {number} >> count; sleep 0.05; cat count" for number in range(STEPS))
        return [(await sandbox.run(line, check=True)).stdout for line in lines]

    async with shoal.connect(url) as cluster, cluster.resume("lost") as run:
        rollout = await run.rollout(
            "host", N, key="only", on_lost="resume", checkpoint_every=0.15, timeout="5m", max_attempts=9
        )  # fmt: skip
        found = {sandbox.index: sandbox async for sandbox in rollout.ready()}
        return await asyncio.gather(*(chain(found[index]) for index in range(N)))


@pytest.mark.timeout(240)
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mkfs.erofs") is None,
    reason="snapshots of live sandboxes need root, and mkfs.erofs of erofs-utils",
)
async def test_across_the_loss_of_a_node_what_a_sandbox_has_behind_it_was_done_once(tmp_path: Path) -> None:
    async with LocalSystem(tmp_path, port=0) as system, asyncio.timeout(200):
        working = asyncio.create_task(trainer(system.url))
        async with shoal.connect(system.url) as cluster:
            events = cluster.events("lost", follow=True, since="1h")
            async for event in events:
                if getattr(event.message, "commands", 0) >= STEPS // 2:  # a snapshot of one that is half way
                    break
            await events.aclose()
        await kill_node(tmp_path)
        while True:
            try:
                said = await working
                break
            except shoal.SandboxResumed:  # this trainer gives up at that; the next one goes on
                working = asyncio.create_task(trainer(system.url))
        counted = ["".join(f"{number}\n" for number in range(last + 1)) for last in range(STEPS)]
        assert said == [counted] * N
        async with shoal.connect(system.url) as cluster:
            rows = [row async for row in cluster.trajectory("lost")]
        assert {row.attempt for row in rows} == {0, 1}
        for index in range(N):
            kept = [row.id for row in rows if row.index == index and not row.undone]
            assert kept == [f"#{number}" for number in range(1, STEPS + 1)]
