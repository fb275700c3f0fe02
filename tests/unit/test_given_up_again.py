"""Steps that a trainer gave up are given up again by the one after it, against a scripted cluster."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import pytest

import shoal
from shoal.client import givenup
from shoal.wire.messages import RolloutReleased, RunCommand, StepGivenUp, StepsGivenUp
from unit.client_fabric import Fabric, all_ready
from unit.test_resume import life, one

Way = Callable[[Awaitable[object]], Awaitable[None]]
Operation = Callable[[shoal.Sandbox], Awaitable[object]]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes longer than the first time is told at once."""
    monkeypatch.setattr(givenup, "_SPARE_S", 0.0)
    monkeypatch.setattr(givenup, "_LOOK_S", 0.01)


async def wait_for(step: Awaitable[object]) -> None:
    await asyncio.wait_for(step, 0.1)


async def within(step: Awaitable[object]) -> None:
    async with asyncio.timeout(0.1):
        await step


async def cancelled(step: Awaitable[object]) -> None:
    task = asyncio.ensure_future(step)
    await asyncio.wait({task}, timeout=0.1)
    if not task.cancel():
        return
    with contextlib.suppress(asyncio.CancelledError):
        await task
    raise TimeoutError


def given_up(fabric: Fabric) -> list[StepGivenUp]:
    return [step for message in fabric.heard if isinstance(message, StepsGivenUp) for step in message.steps]


@pytest.mark.parametrize("way", [wait_for, within, cancelled])
async def test_a_step_that_was_given_up_has_no_answer_though_the_log_has_one(way: Way) -> None:
    async def program(run: shoal.Run) -> str:
        sandbox = await one(await run.rollout("host", key="only"))
        try:
            await way(sandbox.run("hold until next"))
        except TimeoutError:
            return (await sandbox.run("next")).stdout  # what was given up comes to its end with it
        return (await sandbox.run("answered")).stdout

    async with Fabric(all_ready) as fabric:
        assert await life(fabric, program) == "next"
        before = dict(fabric.ran)
        assert set(before.values()) == {1}
        assert len(before) == 2
        for _ in range(2):
            assert await life(fabric, program) == "next"
        assert fabric.ran == before
        assert len(given_up(fabric)) == 1  # what is given up again is no news
        (step,) = given_up(fabric)
        assert (step.index, step.attempt, step.id, step.turn) == (0, 0, "#1", 1)


@pytest.mark.parametrize(
    "operation",
    [
        lambda sandbox: sandbox.run("a", session=True),
        lambda sandbox: sandbox.python("a"),
        lambda sandbox: sandbox.files.write("f", b"a" * 1_000_000),
        lambda sandbox: sandbox.files.read("f"),
        lambda sandbox: sandbox.files.list(),
        lambda sandbox: sandbox.snapshot("kept"),
        lambda sandbox: sandbox.fork(2),
        lambda sandbox: sandbox.hibernate(),
    ],
)
async def test_whatever_was_given_up_is_not_asked_again(operation: Operation) -> None:
    async def program(run: shoal.Run, *, silent: bool) -> str:
        sandbox = await one(await run.rollout("host", key="only"))
        fabric.silent = silent
        try:
            await asyncio.wait_for(operation(sandbox), 0.1)
        except TimeoutError:
            fabric.silent = False
            return (await sandbox.run("next")).stdout
        return "answered"

    async with Fabric(all_ready) as fabric:
        assert await life(fabric, lambda run: program(run, silent=True)) == "next"
        before = dict(fabric.ran)
        assert await life(fabric, lambda run: program(run, silent=False)) == "next"
        assert fabric.ran == before


async def test_a_trainer_that_is_ended_has_given_nothing_up() -> None:
    async def program(run: shoal.Run) -> list[str]:
        sandbox = await one(await run.rollout("host", key="only"))
        async with asyncio.TaskGroup() as group:
            them = [group.create_task(sandbox.run(line)) for line in ("hold until next", "hold until last")]
        return [task.result().stdout for task in them]

    async with Fabric(all_ready) as fabric:
        first = asyncio.create_task(life(fabric, program))
        await fabric.until(lambda: len(fabric.held) == 2)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        again = await asyncio.wait_for(life(fabric, program), 10)  # asked once more, they come to their end
        assert again == ["hold until next", "hold until last"]
        assert given_up(fabric) == []


@pytest.mark.parametrize("resumed", [False, True])
async def test_nor_where_its_end_releases_a_rollout(resumed: bool) -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:

        async def trains() -> None:
            async with cluster.resume("grpo-7") as run:
                sandbox = await one(await run.rollout("host", key="only"))
                async with await (run.rollout("host", key="next") if resumed else cluster.rollout("host")):
                    await sandbox.run("hold until next")

        training = asyncio.create_task(trains())
        await fabric.until(lambda: len(fabric.held) == 1)
        training.cancel()
        with pytest.raises(asyncio.CancelledError):
            await training
        await fabric.until(lambda: any(isinstance(message, RolloutReleased) for message in fabric.heard))
        assert given_up(fabric) == []


async def test_of_an_id_each_asking_is_as_it_was() -> None:
    async def program(run: shoal.Run) -> list[str]:
        sandbox = await one(await run.rollout("host", key="only"))
        said: list[str] = []
        for _ in range(3):
            try:
                said.append((await asyncio.wait_for(sandbox.run("hold until next", id="build"), 0.1)).stdout)
            except TimeoutError:
                said.append("late")
        return said

    async with Fabric(all_ready) as fabric:
        told = ["late", "hold until next", "hold until next"]
        assert await life(fabric, program) == told
        assert [(step.id, step.turn) for step in given_up(fabric)] == [("build", 1)]
        before = dict(fabric.ran)
        assert await life(fabric, program) == told
        assert fabric.ran == before


async def test_what_was_done_again_after_a_loss_is_answered() -> None:
    async def program(run: shoal.Run, *, lose: bool) -> list[str]:
        rollout = await run.rollout("host", key="only", on_lost="resume")
        sandbox = await one(rollout)
        said = [(await sandbox.run("a")).stdout]
        if lose:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sandbox.run("hold until late"), 0.1)
            await sandbox.run("b")
            fabric.held.clear()
            fabric.saved(rollout.id, 0, "s1", ((1, 1),))
            fabric.ended(rollout.id, 0)
            fabric.ready(rollout.id, 0, attempt=1, digest="s1")
            await fabric.until(lambda: sandbox.attempt == 1)
            with pytest.raises(shoal.SandboxResumed):
                await sandbox.run("c")
        both = await asyncio.gather(sandbox.run("hold until late"), sandbox.run("late"))
        return said + [each.stdout for each in both]

    async with Fabric(all_ready) as fabric:
        told = ["a", "hold until late", "late"]
        assert await life(fabric, lambda run: program(run, lose=True)) == told
        assert [(step.id, step.attempt) for step in given_up(fabric)] == [("#2", 0)]
        before = dict(fabric.ran)
        assert await asyncio.wait_for(life(fabric, lambda run: program(run, lose=False)), 10) == told
        assert fabric.ran == before


async def leaves(run: shoal.Run) -> None:
    sandbox = await one(await run.rollout("host", key="only"))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(sandbox.run("hold until next"), 0.1)
    await sandbox.run("next")


async def waits(run: shoal.Run) -> str:
    sandbox = await one(await run.rollout("host", key="only"))
    return (await sandbox.run("hold until next")).stdout


@pytest.mark.usefixtures("soon")
async def test_a_trainer_that_does_not_give_it_up_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    async with Fabric(all_ready) as fabric:
        await life(fabric, leaves)
        with caplog.at_level(logging.WARNING, "shoal.client"):
            waiting = asyncio.create_task(life(fabric, waits))
            while not caplog.messages:
                await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        (rollout,) = fabric.requests
        assert f"step #1 of sandbox {rollout}-0 waits to be given up" in caplog.messages[0]
        assert "diverged='live'" in caplog.messages[0]


@pytest.mark.usefixtures("soon")
async def test_where_it_may_diverge_it_gets_what_came_of_it() -> None:
    async with Fabric(all_ready) as fabric:
        await life(fabric, leaves)
        before = dict(fabric.ran)
        assert await asyncio.wait_for(life(fabric, waits, diverged="live"), 10) == "hold until next"
        assert fabric.ran == before


async def test_a_connection_that_is_closed_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(givenup, "_LOOK_S", 0.01)
    async with Fabric(all_ready) as fabric:
        await life(fabric, leaves)
        async with shoal.connect(bus=fabric.connect()) as cluster, cluster.resume("grpo-7") as run:
            waiting = asyncio.create_task(waits(run))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        with pytest.raises(shoal.NotConnected):
            await asyncio.wait_for(waiting, 10)


@pytest.mark.parametrize("end", ["rollout", "sandbox", "cancel", "another"])
async def test_it_is_told_before_whatever_follows(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(givenup, "_TOGETHER", 1)

    async def program(run: shoal.Run) -> None:
        rollout = await run.rollout("host", key="only")
        sandbox = await one(rollout)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.gather(sandbox.run("hold until a"), sandbox.run("hold until b"))
        assert given_up(fabric) == []
        if end == "rollout":
            await rollout.release()
        elif end == "sandbox":
            await sandbox.release()
        elif end == "cancel":
            await rollout.cancel()
        else:
            await run.rollout("host", key="next")

    async with Fabric(all_ready) as fabric:
        await life(fabric, program)
        await fabric.until(lambda: not isinstance(fabric.heard[-1], StepsGivenUp))
        assert [step.id for step in given_up(fabric)] == ["#1", "#2"]
        kinds = [type(message) for message in fabric.heard]
        assert kinds.count(StepsGivenUp) == 2
        if end == "rollout":
            assert kinds.index(RolloutReleased) > kinds.index(StepsGivenUp) + 1


async def test_what_cannot_be_told_is_told_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def program(run: shoal.Run) -> None:
        sandbox = await one(await run.rollout("host", key="only"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(sandbox.run("hold until a"), 0.1)
        link = sandbox.rollout.link
        with monkeypatch.context() as patched:
            patched.setattr(link, "publish", _full)
            with pytest.raises(shoal.StreamFull):
                await sandbox.run("b")
        assert all(command.command.line != "b" for command in fabric.commands)
        await sandbox.run("c")

    async with Fabric(all_ready) as fabric:
        await life(fabric, program)
        assert [step.id for step in given_up(fabric)] == ["#1"]


async def _full(*_: object) -> None:
    raise shoal.StreamFull("SHOAL_ROLLOUT_0", "it is full")


async def test_in_a_run_that_is_not_resumed_nothing_is_told_of_it() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        sandbox = await one(await cluster.rollout("host"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(sandbox.run("hold until a"), 0.1)
        await sandbox.run("b")
        assert given_up(fabric) == []
        assert len([each for each in fabric.asked if isinstance(each, RunCommand)]) == 2
