"""Two of each service: kill -9 and SIGSTOP of whoever leads, and of the executor, change nothing in the result."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

import shoal
from shoal.bus.jetstream import JetStreamBus
from shoal.cli.system import LocalSystem
from shoal.runtime.lease import TTL_S, Record
from shoal.wire.streams import LEASE_BUCKET

pytestmark = [pytest.mark.broker, pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]

N = 256
PARTITIONS = ["scheduler.0", "placement.0", "snapshot"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[LocalSystem, Path]]:
    state = tmp_path_factory.mktemp("standbys")
    async with LocalSystem(state, port=0, replicas=2) as system:
        yield system, state


async def leader(bus: JetStreamBus, partition: str) -> Record:
    """Return who leads, as soon as somebody does."""
    async with asyncio.timeout(30):
        while True:
            entry = await bus.get(LEASE_BUCKET, partition)
            record = msgspec.json.decode(entry.value, type=Record) if entry else Record()
            if record.owner.id:
                return record
            await asyncio.sleep(0.05)


async def rollout_through(cluster: shoal.Cluster, run: str, midway: "asyncio.Event") -> None:
    """Run N commands in N sandboxes; sets midway when some are done, and checks that each came once."""
    commands = [f"sleep 0.1; echo {number}" for number in range(N)]
    rollout = await cluster.rollout("host", n=N, commands=commands, run=run, timeout="5m")
    said: list[tuple[int, str]] = []
    async with asyncio.timeout(200):
        async for outcome in rollout.outcomes():
            said.append((outcome.index, outcome.stdout))
            if len(said) == 20:
                midway.set()
        summary = await rollout.wait()
    assert sorted(said) == [(number, f"{number}\n") for number in range(N)]
    assert summary.succeeded == N


@pytest.mark.timeout(240)
@pytest.mark.parametrize("partition", PARTITIONS)
async def test_a_standby_takes_over_from_a_killed_leader(system: tuple[LocalSystem, Path], partition: str) -> None:
    running, _ = system
    bus = await JetStreamBus.connect(running.url)
    try:
        async with shoal.connect(running.url) as cluster:
            midway = asyncio.Event()
            through = asyncio.create_task(rollout_through(cluster, f"kill-{partition.split('.')[0]}", midway))
            await midway.wait()
            before = await leader(bus, partition)
            os.kill(before.owner.pid, signal.SIGKILL)
            async with asyncio.timeout(30):
                while (now := await leader(bus, partition)).owner.id == before.owner.id:
                    await asyncio.sleep(0.02)
            assert now.epoch == before.epoch + 1
            await through
    finally:
        await bus.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("partition", PARTITIONS)
async def test_a_leader_that_was_paused_for_longer_than_its_lease_and_wakes_up(
    system: tuple[LocalSystem, Path], partition: str, tmp_path: Path
) -> None:
    running, _ = system
    template = tmp_path / "template"
    template.mkdir(mode=0o755)
    bus = await JetStreamBus.connect(running.url)
    try:
        async with shoal.connect(running.url) as cluster:
            run = f"pause-{partition.split('.')[0]}"
            midway = asyncio.Event()
            through = asyncio.create_task(rollout_through(cluster, run, midway))
            await midway.wait()
            before = await leader(bus, partition)
            os.kill(before.owner.pid, signal.SIGSTOP)
            try:
                other = await cluster.submit(f"dir:{template}", n=1, run=run)  # something new for each service
                async with asyncio.timeout(30):
                    while (now := await leader(bus, partition)).owner.id == before.owner.id:
                        await asyncio.sleep(0.02)
                await asyncio.sleep(TTL_S)
            finally:
                os.kill(before.owner.pid, signal.SIGCONT)
            assert now.epoch == before.epoch + 1
            await through
            await rollout_through(cluster, f"{run}-after", asyncio.Event())
            late = await cluster.attach(other)
            assert [sandbox.index async for sandbox in late.ready()] == [0]
            await late.release()
            assert (await leader(bus, partition)).owner.id == now.owner.id  # the one that woke up stands by
            os.kill(before.owner.pid, 0)
    finally:
        await bus.close()


@pytest.mark.timeout(240)
async def test_a_node_that_was_silent_for_too_long_has_its_orphans_destroyed(
    system: tuple[LocalSystem, Path],
) -> None:
    running, state = system
    from shoal.cli import statefile

    found = statefile.read(state)
    assert found is not None
    pid = int(found.services["executor"]["pid"])
    async with shoal.connect(running.url) as cluster:
        kept = await cluster.rollout("host", n=3, run="silent", timeout="5m", on_lost="restart")
        lost = await cluster.rollout("host", n=2, run="silent", timeout="5m", on_lost="fail")
        first = [sandbox async for sandbox in kept.ready()]
        assert len([sandbox async for sandbox in lost.ready()]) == 2
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(60):
                summary = await lost.wait()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert summary.lost == 2
        async with asyncio.timeout(60):
            second = [sandbox async for sandbox in kept.ready()]
            assert all(sandbox.attempt > 0 for sandbox in second)
            assert {sandbox.attempt for sandbox in first} == {0}
            for sandbox in second:
                assert (await sandbox.run("echo well")).stdout == "well\n"
            while (await cluster.nodes())[0].live != 3:  # the five orphans are gone
                await asyncio.sleep(0.1)
        await kept.release()
