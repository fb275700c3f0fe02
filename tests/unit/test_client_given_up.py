"""Sandboxes whose trainer never gets a handle of them, because it gives up waiting, are given back."""

import asyncio

import pytest

import shoal
from shoal.wire.asked import giving_up
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


@pytest.mark.parametrize("session", [False, True])
async def test_a_command_that_nobody_waits_for_is_given_up(session: bool) -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await anext(rollout.ready())
        fabric.silent = True
        running = asyncio.create_task(sandbox.run("sleep 9", session=session))
        await fabric.until(lambda: bool(fabric.commands))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(running, 0.01)
        await fabric.until(lambda: bool(fabric.given_up))
        (command,), (told,) = fabric.commands, fabric.given_up
        assert told == giving_up(command)


async def test_what_an_unwell_callback_leaves_running_is_given_up() -> None:
    def fails(channel: str, data: bytes) -> None:
        raise ValueError(data)

    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await anext(rollout.ready())
        with pytest.raises(ValueError, match="0"):
            await sandbox.run("a", on_output=fails)
        await fabric.until(lambda: bool(fabric.given_up))
        assert [told.id for told in fabric.given_up] == [asked.id for asked in fabric.commands]


async def test_what_can_be_asked_for_again_goes_on() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.resume("a") as run:
            resumed = await anext((await run.rollout("host", key="k")).ready())
            sandbox = await anext((await cluster.rollout("host")).ready())
            assert (await sandbox.run("true")).ok
            waiting = [
                asyncio.create_task(one)
                for one in (
                    resumed.run("hold until go"), sandbox.run("hold until on", id="mine"), sandbox.files.read("none"),
                )
            ]  # fmt: skip
            await fabric.until(lambda: len(fabric.asked) == 4)
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await sandbox.run("on")
            assert (await sandbox.run("hold until on", id="mine")).ok
            assert fabric.ran[f"{sandbox.name}:mine"] == 1
        assert fabric.given_up == []


async def test_a_command_that_had_no_turn_says_who_has_it() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        sandbox = await anext((await cluster.rollout("host")).ready())
        with pytest.raises(
            shoal.Timeout, match=r"'queue' in sandbox r[^ ]*: it waited 32 s for its turn, which command b, 'sl"
        ):
            await sandbox.run("queue", session=True, timeout=2)
