"""Connections to the broker are cut, stalled and slow while 256 real sandboxes work: nothing is lost or doubled."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

import shoal
from chaos.audit import Account
from chaos.proxy import Proxy
from shoal.bus.ending import end
from shoal.bus.jetstream import JetStreamBus
from shoal.cli.system import LocalSystem

pytestmark = [
    pytest.mark.broker,
    pytest.mark.sandbox,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

JOBS = 256
HANDS = 24
STEPS = 12
STALL_S = 17.0  # two pings of five seconds stay unanswered, and a third would be sent


class ProxiedSystem(LocalSystem):
    """A system whose parts, and whose clients, reach the broker through a proxy."""

    proxy: Proxy
    direct: str
    """The broker's own address."""

    async def _start_broker(self) -> None:
        await super()._start_broker()
        self.direct = self._running.url
        port = urlsplit(self.direct).port
        assert port is not None
        self.proxy = await Proxy(port).__aenter__()
        self._running.url = f"nats://127.0.0.1:{self.proxy.port}"

    async def _stop(self) -> None:
        await super()._stop()
        await self.proxy.__aexit__(None, None, None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProxiedSystem]:
    system = ProxiedSystem(tmp_path_factory.mktemp("connections"), port=0)
    async with system:
        yield system


async def jobs(cluster: shoal.Cluster, run: str) -> shoal.Rollout:
    commands = [f"sleep 0.1; echo {number}" for number in range(JOBS)]
    return await cluster.rollout("host", n=JOBS, commands=commands, run=run, timeout="5m")


async def collect(rollout: shoal.Rollout) -> None:
    """Take all outcomes and compare them with what was asked."""
    said = [(outcome.index, outcome.stdout) async for outcome in rollout.outcomes()]
    assert sorted(said) == [(number, f"{number}\n") for number in range(JOBS)]
    assert (await rollout.wait()).succeeded == JOBS


async def work(sandbox: shoal.Sandbox, steps: int) -> None:
    """Run commands of which each can tell how often all before it ran."""
    for step in range(1, steps + 1):
        result = await sandbox.run("echo >> steps; wc -l < steps", id=f"step-{step}", timeout=60)
        assert result.stdout.strip() == str(step)


async def audit(system: ProxiedSystem, job: str, hands: str, steps: int) -> None:
    """Look into the log itself, past the proxy."""
    bus = await JetStreamBus.connect(system.direct)
    try:
        async with asyncio.timeout(60):
            for rollout, n in ((job, JOBS), (hands, HANDS)):
                while len((await Account(rollout).read(bus)).cleared) < n:
                    await asyncio.sleep(0.2)
        (await Account(job).read(bus)).check_jobs(JOBS)
        (await Account(hands).read(bus)).check_released(HANDS, steps)
    finally:
        await bus.close()


@asynccontextmanager
async def working(system: ProxiedSystem, run: str, steps: int = STEPS) -> AsyncIterator[None]:
    """A trainer whose rollouts are under way meanwhile; at the end they are waited for and accounted for."""
    async with shoal.connect(system.url) as cluster:
        hands = await cluster.rollout("host", n=HANDS, run=run, timeout="5m")
        sandboxes = [sandbox async for sandbox in hands.ready()]
        job = await jobs(cluster, run)
        tasks = [asyncio.create_task(collect(job))]
        tasks += [asyncio.create_task(work(sandbox, steps)) for sandbox in sandboxes]
        try:
            yield
            async with asyncio.timeout(150):
                await asyncio.gather(*tasks)
                await hands.release()
                assert (await hands.wait()).counts == {shoal.EndReason.RELEASED: HANDS}
        finally:
            await end(*tasks)
        await audit(system, job.id, hands.id, steps)


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
async def test_connections_are_cut_again_and_again(system: ProxiedSystem, reset: bool) -> None:
    cuts = system.proxy.cuts
    async with working(system, f"cut-{reset}", steps=60):
        for _ in range(20):
            await asyncio.sleep(0.3)
            system.proxy.cut(reset=reset)
    assert system.proxy.cuts - cuts > 40


async def test_a_stall_longer_than_any_ping_is_waited_for(system: ProxiedSystem) -> None:
    accepted = system.proxy.accepted
    async with working(system, "stall"):
        await asyncio.sleep(0.3)
        system.proxy.stall()
        passed = system.proxy.passed
        await asyncio.sleep(STALL_S)
        assert system.proxy.passed == passed
        assert system.proxy.accepted > accepted, "somebody noticed, and tried anew"
        system.proxy.go_on()  # what was sent before comes late, after or before its copies


async def test_a_stall_that_ends_in_a_cut(system: ProxiedSystem) -> None:
    async with working(system, "stall-cut"):
        await asyncio.sleep(0.3)
        system.proxy.stall()
        await asyncio.sleep(3)
        system.proxy.cut()
        system.proxy.go_on()


async def test_a_slow_network_that_is_cut(system: ProxiedSystem) -> None:
    system.proxy.delay_s = 0.05
    try:
        async with working(system, "slow"):
            for _ in range(5):
                await asyncio.sleep(0.7)
                system.proxy.cut()
    finally:
        system.proxy.delay_s = 0.0
