"""What a trainer is told of a sandbox that was lost: whether it starts again, what can be done; scripted cluster."""

import asyncio

import pytest

import shoal
from shoal.client.choices import OnLost
from shoal.wire.messages import EndReason
from unit.client_fabric import Fabric, all_ready


async def refused_first(fabric: Fabric, sandbox: shoal.Sandbox) -> "asyncio.Task[shoal.CommandResult]":
    """Have an executor tell of the loss before the log does."""
    asking = asyncio.create_task(sandbox.run("gone node_lost"))
    await fabric.until(lambda: bool(fabric.told))
    for _ in range(100):
        await asyncio.sleep(0)
    return asking


async def test_an_executor_that_tells_of_it_first_does_not_say_that_it_starts_again() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", on_lost="restart")
        sandbox = await anext(rollout.ready())
        asking = await refused_first(fabric, sandbox)
        fabric.ended(rollout.id, 0)
        with pytest.raises(shoal.SandboxLost) as lost:
            await asking
        assert lost.value.restarting
        assert "it is being started again, empty: take it from ready()" in str(lost.value)
        with pytest.raises(shoal.SandboxLost) as lost:
            await sandbox.files.read("f")
        assert lost.value.restarting
        fabric.ready(rollout.id, 0, attempt=1)
        again = await anext(rollout.ready())
        assert (again.index, again.attempt, again.lost) == (0, 1, False)


async def test_an_executor_that_tells_of_it_last_says_what_the_log_said() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", on_lost="restart", max_attempts=1)
        sandbox = await anext(rollout.ready())
        asking = await refused_first(fabric, sandbox)
        fabric.ended(rollout.id, 0)
        with pytest.raises(shoal.SandboxLost) as lost:
            await asking
        assert not lost.value.restarting
        assert "it was started once" in str(lost.value)


async def test_where_the_log_says_nothing_it_is_lost_all_the_same() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect(), answer_grace=0.1) as cluster:
        rollout = await cluster.rollout("host", on_lost="restart")
        sandbox = await anext(rollout.ready())
        with pytest.raises(shoal.SandboxLost) as lost:
            await sandbox.run("gone node_lost")
        assert not lost.value.restarting
        assert str(lost.value).endswith("; ask for another")


async def test_a_log_that_is_gone_is_told_of_while_its_word_is_awaited() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", on_lost="restart")
        asking = await refused_first(fabric, await anext(rollout.ready()))
        rollout.broken(shoal.LogGone("memory", "it was made anew"))
        with pytest.raises(shoal.LogGone):
            await asking


@pytest.mark.parametrize("policy", ["restart", "resume"])
async def test_when_it_may_not_be_started_any_more_that_is_said(policy: OnLost) -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", on_lost=policy, max_attempts=2)
        sandbox = await anext(rollout.ready())
        fabric.ended(rollout.id, 0)
        fabric.ready(rollout.id, 0, attempt=1)
        while sandbox.ended is None and sandbox.attempt == 0:
            await asyncio.sleep(0.01)
        if policy == "restart":
            sandbox = await anext(rollout.ready())
        fabric.ended(rollout.id, 0, attempt=1)
        await asyncio.wait_for(_end_of(sandbox), 10)
        with pytest.raises(shoal.SandboxLost) as lost:
            await sandbox.run("a")
        text = str(lost.value)
        assert "it was started 2 times, the most that max_attempts= allows: retries= allows more" in text
        assert text.endswith("; `await sandbox.resume()` brings it back")
        assert "on_lost" not in text


async def test_one_that_never_started_cannot_be_brought_back() -> None:
    async with Fabric() as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", on_lost="fail", max_attempts=1)
        await fabric.until(lambda: rollout.id in fabric.requests)
        fabric.ended(rollout.id, 0, reason=EndReason.START_FAILED)
        sandbox = await anext(rollout.ready())
        with pytest.raises(
            shoal.SandboxLost, match=r"could not be started.*; it was started once, .* retries= allows more$"
        ):
            await sandbox.run("a")


async def test_without_a_policy_all_that_can_be_done_is_said() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", on_lost="fail")
        sandbox = await anext(rollout.ready())
        with pytest.raises(shoal.SandboxLost, match=r"on_lost='restart' or 'resume', retries=$"):
            await sandbox.run("gone node_lost")


async def _end_of(sandbox: shoal.Sandbox) -> None:
    while sandbox.ended is None:
        await asyncio.sleep(0.01)
