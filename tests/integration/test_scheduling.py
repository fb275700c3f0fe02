"""Gangs, quotas, priorities, deadlines and draining on a real system with real sandboxes."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import shoal
from shoal.cli.system import LocalSystem
from shoal.wire.messages import ExecutorLeft

pytestmark = [pytest.mark.broker, pytest.mark.sandbox]

SLOTS = 4

keeps = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mkfs.erofs") is None,
    reason="sandboxes sleep as root only, and with mkfs.erofs of erofs-utils",
)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[LocalSystem]:
    async with LocalSystem(tmp_path / "state", port=0, slots=SLOTS) as system:
        yield system


async def until_waiting(rollout: shoal.Rollout, reason: str) -> shoal.RolloutStatus:
    async with asyncio.timeout(30):
        while reason not in (status := rollout.status()).waiting_reason:
            await asyncio.sleep(0.05)
    return status


async def live(rollout: shoal.Rollout, n: int) -> list[shoal.Sandbox]:
    found = []
    async for sandbox in rollout.ready():
        found.append(sandbox)
        if len(found) == n:
            break
    return found


async def test_a_gang_waits_for_all_of_its_room(system: LocalSystem) -> None:
    async with shoal.connect(system.url) as cluster, cluster.rollout("host", n=2) as first:
        await live(first, 2)
        async with cluster.rollout("host", n=3, gang=True, command="true") as gang:
            status = await until_waiting(gang, "at once")
            assert (status.waiting, status.waiting_reason) == (3, "waiting for 3 slots of 256 MiB at once")
            assert status.ready == 0
            await first.release()
            assert [each.reason async for each in gang.outcomes()] == [shoal.EndReason.SUCCEEDED] * 3


async def test_a_quota_and_a_deadline_to_start(system: LocalSystem) -> None:
    async with shoal.connect(system.url, tenant="acme") as cluster:
        await cluster.limit_tenant("acme", shoal.Limits(sandboxes=2, waiting=3))
        async with cluster.rollout("host", n=3, start_within="1s") as rollout:
            await until_waiting(rollout, "quota of 2 sandboxes is used up")
            with pytest.raises(shoal.QueueFull) as full:
                await cluster.rollout("host", n=3)
            assert full.value.retry_after >= 1
            await live(rollout, 2)
            async with asyncio.timeout(30):
                while not rollout.status().ended:
                    await asyncio.sleep(0.05)
            assert rollout.status().counts == {shoal.EndReason.NOT_STARTED: 1}


@keeps
async def test_what_makes_room_comes_back_as_it_was(system: LocalSystem) -> None:
    async with shoal.connect(system.url) as cluster, cluster.rollout("host", n=SLOTS) as calm:
        sandboxes = await live(calm, SLOTS)
        for sandbox in sandboxes:
            await sandbox.files.write("kept", sandbox.name.encode())
        async with cluster.rollout("host", n=1, command="true", priority=5) as urgent:
            assert [each.reason async for each in urgent.outcomes()] == [shoal.EndReason.SUCCEEDED]
        for sandbox in sandboxes:
            assert await sandbox.files.read("kept") == sandbox.name
        kinds = [type(event.message).__name__ async for event in cluster.events()]
        assert "PreemptRequested" in kinds
        assert calm.status().ended == 0


async def test_a_sandbox_has_its_lifetime(system: LocalSystem) -> None:
    async with shoal.connect(system.url) as cluster, cluster.rollout("host", n=2, lifetime="500ms") as rollout:
        outcomes = [each async for each in rollout.outcomes()]
        assert [(each.reason, each.detail) for each in outcomes] == [
            (shoal.EndReason.TIMED_OUT, "its lifetime was up")
        ] * 2


@keeps
async def test_a_node_is_drained_and_used_again(system: LocalSystem) -> None:
    async with shoal.connect(system.url) as cluster, cluster.rollout("host", n=1) as rollout:
        (sandbox,) = await live(rollout, 1)
        await sandbox.files.write("kept", b"it")
        await cluster.drain("local", hibernate=True)
        async with asyncio.timeout(30):
            while [node.state for node in await cluster.nodes()] != ["drained"]:
                await asyncio.sleep(0.1)
            while not [event async for event in cluster.events() if isinstance(event.message, ExecutorLeft)]:
                await asyncio.sleep(0.1)  # it leaves by itself, and comes back when it is wanted
        other = await cluster.submit("host", command="true")
        reading = asyncio.create_task(sandbox.files.read("kept"))
        await asyncio.sleep(0.5)
        assert not reading.done()
        await cluster.undrain("local")
        assert await reading == "it"
        attached = await cluster.attach(other)
        assert [each.reason async for each in attached.outcomes()] == [shoal.EndReason.SUCCEEDED]


async def test_a_full_disk_is_a_reason_of_its_own(system: LocalSystem) -> None:
    async with shoal.connect(system.url) as cluster:
        limits = shoal.Resources(disk="4MiB")
        command = "head -c 8388608 /dev/zero > big"
        (outcome,) = await cluster.map("host", [command], resources=limits)
        assert (outcome.reason, outcome.infrastructure) == (shoal.EndReason.DISK_FULL, False)


async def test_what_one_cell_has_no_room_for_runs_in_another(tmp_path: Path) -> None:
    async with (
        LocalSystem(tmp_path / "state", port=0, cells=3, driver="simulated", nodes=3, slots=4) as system,
        shoal.connect(system.url) as cluster,
        cluster.rollout("host", n=12) as rollout,
    ):
        sandboxes = await live(rollout, 12)
        assert len({sandbox.executor for sandbox in sandboxes}) == 3
        results = [await sandbox.run("true") for sandbox in sandboxes]
        assert all(result.ok for result in results)
        queued = await cluster.rollout("host", n=12, command="true")
        await rollout.release()
        assert (await queued.wait(30)).succeeded == 12


async def test_every_cell_has_its_executor_and_all_keep_a_quota_together(tmp_path: Path) -> None:
    async with (
        LocalSystem(tmp_path / "state", port=0, cells=2, driver="simulated", nodes=3) as system,
        shoal.connect(system.url, tenant="acme") as cluster,
    ):
        nodes = await cluster.nodes()
        assert sorted((node.executor, node.node) for node in nodes) == [
            ("local", "local-0"), ("local", "local-1"), ("local-cell1", "local-cell1"),
        ]  # fmt: skip
        await cluster.limit_tenant("acme", shoal.Limits(sandboxes=5))
        rollouts = [await cluster.rollout("host", n=4, run=f"run{number}") for number in range(12)]
        async with asyncio.timeout(30):
            while sum(rollout.status().ready for rollout in rollouts) < 5:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert sum(rollout.status().ready for rollout in rollouts) == 5
        for rollout in rollouts:
            await rollout.cancel()
