"""Sandboxes whose trainer never gets a handle of them, because it gives up waiting, are given back."""

import asyncio

import pytest

import shoal
from shoal.wire.messages import RolloutQueued, RolloutReleased, RolloutSubmitted
from unit.client_fabric import Fabric, all_ready


def copies_wait(fabric: Fabric, request: RolloutSubmitted) -> None:
    """Whatever starts from a snapshot waits for room."""
    if request.spec.template == "host":
        all_ready(fabric, request)
    else:
        fabric.say(request.rollout, RolloutQueued(request.rollout, request.spec.n, 0, "the cluster is full"))


def released(fabric: Fabric) -> list[str]:
    return [message.rollout for message in fabric.heard if isinstance(message, RolloutReleased)]


async def copy_of(fabric: Fabric, rollout: str) -> str:
    """Return the rollout that was started beside this one, once whoever did waits for its sandboxes."""
    await fabric.until(lambda: len(fabric.requests) == 2)
    for _ in range(100):
        await asyncio.sleep(0)
    (copy,) = fabric.requests.keys() - {rollout}
    return copy


async def give_up(task: "asyncio.Task[object]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_forks_that_nobody_waits_for_any_more() -> None:
    async with Fabric(copies_wait) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await anext(rollout.ready())
        forking = asyncio.create_task(sandbox.fork(64))
        copy = await copy_of(fabric, rollout.id)
        fabric.ready(copy, 3, 4)  # some are there
        await give_up(forking)
        await fabric.until(lambda: bool(released(fabric)))
        assert released(fabric) == [copy]
        assert (await sandbox.run("go on")).ok


async def test_forks_of_a_run_that_is_resumed_stay_to_be_found() -> None:
    async with Fabric(copies_wait) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.resume("a") as run:
            rollout = await run.rollout("host", key="k")
            sandbox = await anext(rollout.ready())
            forking = asyncio.create_task(sandbox.fork(2, id="fork"))
            copy = await copy_of(fabric, rollout.id)
            await give_up(forking)
            fabric.ready(copy, 0, 1)
            forks = await sandbox.fork(2, id="fork")
            assert {fork.rollout.id for fork in forks} == {copy}
            assert released(fabric) == []


@pytest.mark.parametrize("started", [False, True])
async def test_a_sandbox_brought_back_that_nobody_waits_for_any_more(started: bool) -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await anext(rollout.ready())
        await sandbox.run("a")
        fabric.ended(rollout.id, 0)
        fabric.concluded(rollout.id)
        await rollout.wait(10)
        if started:
            fabric.silent = True  # it is there, and what is to be done again is not answered
        else:
            fabric.script = lambda fabric, request: fabric.say(
                request.rollout, RolloutQueued(request.rollout, 1, 0, "the cluster is full")
            )
        resuming = asyncio.create_task(sandbox.resume())
        copy = await copy_of(fabric, rollout.id)
        await give_up(resuming)
        await fabric.until(lambda: bool(released(fabric)))
        assert released(fabric) == [copy]


async def test_what_a_replay_stopped_at_is_in_hand_and_stays() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await anext(rollout.ready())
        await sandbox.run("pay", idempotent=False)
        fabric.ended(rollout.id, 0)
        fabric.concluded(rollout.id)
        await rollout.wait(10)
        with pytest.raises(shoal.ReplayStopped) as told:
            await sandbox.resume()
        assert (await told.value.replay.sandbox.run("go on")).ok
        assert released(fabric) == []
