"""Handles of one rollout in one connection: each is fed, whoever made it, and whatever became of those before it."""

import asyncio
from collections.abc import Sequence

import pytest

import shoal
from shoal.bus.memory import MemoryBroker, MemoryBus, MemoryReader
from shoal.bus.protocol import BusError
from shoal.wire import subjects
from shoal.wire.messages import EndReason
from unit.client_fabric import Fabric, all_ready


class SlowBus(MemoryBus):
    """Makes what follows a rollout log only when it is told to."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.asked = asyncio.Event()
        self.made = asyncio.Event()
        self.error: BusError | None = None

    async def reader(
        self, stream: str, *, after: int | None = 0, since_ms: int | None = None, filters: Sequence[str] = ()
    ) -> MemoryReader:
        if list(filters) == [subjects.rollout_filter(0, "default", "a")]:  # to follow, not to look back
            self.asked.set()
            await self.made.wait()
            if self.error is not None:
                raise self.error
        return await super().reader(stream, after=after, since_ms=since_ms, filters=filters)


async def submitted(fabric: Fabric, cluster: shoal.Cluster) -> str:
    id = await cluster.submit("host", run="a")
    await fabric.until(lambda: id in fabric.requests)
    return id


async def ends(fabric: Fabric, *handles: shoal.Rollout) -> None:
    """Each of the handles hears the end of its rollout."""
    fabric.ended(handles[0].id, 0)
    fabric.concluded(handles[0].id)
    for handle in handles:
        assert (await handle.wait(5)).counts == {EndReason.NODE_LOST: 1}


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_one_that_was_not_attached_to_the_end_is_attached_anew(fails: bool, resumed: bool) -> None:
    async with Fabric(all_ready) as fabric:
        slow = SlowBus(fabric.broker)
        async with shoal.connect(bus=slow) as cluster, cluster.resume("a") as run:
            id = await submitted(fabric, cluster)
            attach = run.attach if resumed else cluster.attach
            attaching = asyncio.create_task(attach(id))
            await slow.asked.wait()
            if fails:
                slow.error = BusError("no broker")
                slow.made.set()
                with pytest.raises(shoal.Unreachable):
                    await attaching
                slow.error = None
            else:
                attaching.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await attaching
                slow.made.set()
            await ends(fabric, await attach(id))


@pytest.mark.parametrize("resumed", [False, True])
async def test_two_that_attach_at_once_have_one_handle(resumed: bool) -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.resume("a") as run:
            id = await submitted(fabric, cluster)
            attach = run.attach if resumed else cluster.attach
            first, second = await asyncio.gather(attach(id), attach(id))
            assert first is second
            await ends(fabric, first)


async def test_two_resumptions_of_a_run_at_once_have_one_handle() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.resume("a") as run, cluster.resume("a") as other:
            first, second = await asyncio.gather(run.rollout("host", key="k"), other.rollout("host", key="k"))
            assert first is second
            assert await run.attach(first.id) is first
            assert len(fabric.requests) == 1


@pytest.mark.parametrize("attached", [False, True])
async def test_one_that_is_resumed_leaves_others_their_handle(attached: bool) -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.resume("a") as run:
            if attached:
                before = await cluster.attach(await submitted(fabric, cluster))
            else:
                before = await cluster.rollout("host", run="a")
            resumed = await run.attach(before.id)
            assert resumed is not before
            assert await run.attach(before.id) is resumed
            assert await cluster.attach(before.id) in (before, resumed)
            await ends(fabric, before, resumed)


async def test_what_one_handle_reads_again_takes_nothing_from_another() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect(), answer_grace=5) as cluster:
        async with cluster.resume("a") as run:
            attached = await cluster.attach(await submitted(fabric, cluster))
            resumed = await run.attach(attached.id)
            sandbox = await anext(resumed.ready())
            await attached.remember()
            await sandbox.run("a", id="one")
            for handle in (attached, resumed):
                story = (await handle.remember()).story(0)
                assert story.recorded(f"{resumed.id}-0:one", 0) is not None
