"""What a broker did not confirm may have been stored: asked again under another id it would run twice."""

import asyncio

import pytest

import shoal
from shoal.bus.memory import MemoryBus
from shoal.bus.protocol import PublishTimeoutError, Stored
from unit.client_fabric import Fabric, all_ready


class Unconfirmed(MemoryBus):
    """A connection whose broker stores what it is told, and says so no more when `silent`."""

    silent = False

    def publish(self, subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
        stored = super().publish(subject, payload, id)
        if not self.silent:
            return stored
        unheard: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        unheard.set_exception(PublishTimeoutError("the broker did not confirm a message"))
        return unheard


async def test_the_error_has_the_id_to_try_again_with() -> None:
    async with Fabric(all_ready) as fabric:
        bus = Unconfirmed(fabric.broker)
        async with shoal.connect(bus=bus) as cluster:
            rollout = await cluster.rollout("host")
            sandbox = await anext(rollout.ready())
            bus.silent = True
            with pytest.raises(shoal.Timeout, match=r"disk may be full.*with `id='.+'`: else it may run twice") as told:
                await asyncio.wait_for(sandbox.run("x"), 5)
            assert told.value.id
            assert f"id={told.value.id!r}" in str(told.value)
            with pytest.raises(shoal.Timeout) as own:
                await asyncio.wait_for(sandbox.run("x", id="mine"), 5)
            assert own.value.id == "mine"
            bus.silent = False
            assert (await sandbox.run("x", id=told.value.id, timeout=5)).ok
            bus.silent = True
            with pytest.raises(shoal.Timeout, match="copies are dropped") as fixed:
                await asyncio.wait_for(rollout.cancel(), 5)
            assert fixed.value.id == ""


@pytest.mark.parametrize("id", ["~1", "~5d7c8a29c63dc20g", "~5d7c8a29c63dc201 ", "#1", "#", "#x"])
async def test_no_id_of_our_own_that_no_error_has_told_of(id: str) -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        sandbox = await anext((await cluster.rollout("host")).ready())
        with pytest.raises(shoal.BadRequest, match="are Shoal's own"):
            await sandbox.run("x", id=id)
