"""What a loss undid, told to each trainer of a sandbox, whoever else asked for what in it; a scripted cluster."""

import asyncio
import contextlib

import shoal
from shoal.wire.messages import SandboxSaved, Snapshot
from unit.client_fabric import Fabric, all_ready


def lose(fabric: Fabric, rollout: str) -> None:
    fabric.ended(rollout, 0)
    fabric.ready(rollout, 0, attempt=1, digest="s1")


async def heard(sandbox: shoal.Sandbox) -> shoal.SandboxResumed | None:
    """Return what the next command is told of the loss, if anything, once the log has told of it."""
    while sandbox.attempt == 0:
        await asyncio.sleep(0)
    try:
        await sandbox.run("next")
    except shoal.SandboxResumed as error:
        return error
    return None


async def test_a_command_that_its_trainer_gave_up_hides_no_loss_of_another() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", on_lost="resume")
        sandbox = await anext(rollout.ready())
        given_up = asyncio.create_task(sandbox.run("hold until second"))
        await fabric.until(lambda: bool(fabric.held))
        given_up.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await given_up
        await sandbox.run("first")
        await sandbox.run("second")  # ends the one that was given up, too
        assert len(fabric.told) == 3
        fabric.saved(rollout.id, 0, "s1", ((1, 3),))
        await sandbox.run("echo precious > file")
        lose(fabric, rollout.id)
        told = await heard(sandbox)
        assert told is not None
        assert (told.count, told.undone) == (1, ("echo precious > file",))


async def test_what_others_did_before_hides_no_loss_from_whoever_attached() -> None:
    async with (
        Fabric(all_ready) as fabric,
        shoal.connect(bus=fabric.connect()) as first,
        shoal.connect(bus=fabric.connect()) as second,
    ):
        rollout = await first.rollout("host", on_lost="resume")
        sandbox = await anext(rollout.ready())
        for number in range(5):
            await sandbox.run(f"c{number}")
        fabric.saved(rollout.id, 0, "s1", ((1, 5),))
        attached = await anext((await second.attach(rollout.id)).ready())
        for number in range(5):
            await attached.run(f"precious {number}")
        lose(fabric, rollout.id)
        told = await heard(attached)
        assert told is not None
        assert told.undone == tuple(f"precious {number}" for number in range(5))
        assert await heard(sandbox) is None  # all that it did is kept


async def test_a_step_that_is_asked_three_times_is_done_once() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", on_lost="resume")
        sandbox = await anext(rollout.ready())
        for _ in range(3):
            await sandbox.run("once", id="a")
        fabric.saved(rollout.id, 0, "s1", ((1, 1),))
        lose(fabric, rollout.id)
        assert await heard(sandbox) is None


async def test_a_snapshot_of_an_old_executor_tells_only_how_many() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", on_lost="resume")
        sandbox = await anext(rollout.ready())
        for line in ("a", "b", "c"):
            await sandbox.run(line)
        fabric.say(rollout.id, SandboxSaved(rollout.id, 0, 0, Snapshot("s1", "host"), 2))
        lose(fabric, rollout.id)
        told = await heard(sandbox)
        assert told is not None
        assert (told.count, told.undone) == (1, ("c",))
