"""Whoever waits is woken, whatever becomes of the connection and of others who use it."""

import asyncio
from collections.abc import Callable

import pytest

import shoal
from shoal.bus.protocol import BusError, Delivery
from shoal.client.feed import Feed
from shoal.client.fold import Ready
from shoal.client.presence import Presence
from shoal.wire import streams, subjects
from shoal.wire.codec import encode
from shoal.wire.messages import AnyMessage, RolloutCancelled
from unit.client_fabric import Fabric, all_ready


def stop(channel: str, data: bytes) -> None:
    raise StopIteration


def cancel(channel: str, data: bytes) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("callback", [stop, cancel])
async def test_a_callback_that_raises_what_no_future_takes_is_heard_and_harms_nobody(
    callback: Callable[[str, bytes], None],
) -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", 2)
        first, second = [sandbox async for sandbox in rollout.ready()]
        with pytest.raises(RuntimeError, match=r"on_output raised (StopIteration|CancelledError)"):
            await asyncio.wait_for(first.run("x", on_output=callback), 5)
        assert (await second.run("y", timeout=5)).ok
        assert (await first.run("z", timeout=5)).ok


async def test_a_message_that_cannot_be_handled_is_told_and_the_next_one_is(caplog: pytest.LogCaptureFixture) -> None:
    async with Fabric() as fabric:
        bus = fabric.connect()
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def handle(message: AnyMessage, delivery: Delivery) -> None:
            assert isinstance(message, RolloutCancelled)
            if message.rollout == "bad":
                raise KeyError("nobody thought of this")
            done.set_result(message.rollout)

        def broken(error: BusError) -> None:
            done.set_exception(error)

        feed = Feed(await bus.reader(streams.rollout(0).name), "test", handle, broken)
        for rollout in ("bad", "good"):
            message = encode(RolloutCancelled(rollout, "client"))
            await bus.publish(subjects.rollout_request(0, "default", "a"), message, rollout)
        assert await asyncio.wait_for(done, 5) == "good"
        await feed.close()
        assert "message 1 on shoal.rollout.0.default.a.request" in caplog.text
        assert "nobody thought of this" in caplog.text


@pytest.mark.parametrize("asleep", [False, True])
async def test_whoever_waits_for_a_sandbox_that_is_away_hears_that_the_connection_was_closed(asleep: bool) -> None:
    async with Fabric(all_ready) as fabric:
        cluster = await shoal.connect(bus=fabric.connect())
        rollout = await cluster.rollout("host", on_lost="resume")
        sandbox = await anext(rollout.ready())
        if asleep:
            fabric.slept(rollout.id, 0, "s1")
        else:
            fabric.ended(rollout.id, 0)
        while sandbox.node:
            await asyncio.sleep(0)
        waiting = [asyncio.create_task(sandbox.run(line)) for line in ("a", "b")]
        for _ in range(100):
            await asyncio.sleep(0)
        await cluster.close()
        for each in waiting:
            with pytest.raises(shoal.Unreachable, match="closed"):
                await asyncio.wait_for(each, 5)
        with pytest.raises(shoal.Unreachable, match="closed"):
            await asyncio.wait_for(sandbox.run("c"), 5)


async def test_one_that_slept_and_came_back_at_once_is_there_for_who_waited() -> None:
    wakes: list[int] = []

    def wake(attempt: int) -> "asyncio.Future[None]":
        wakes.append(attempt)
        return asyncio.ensure_future(asyncio.sleep(0))

    presence = Presence("r-3", Ready(3, 0, "n1", "e1", "zygote", 0), wake)
    presence.slept(0, 30)
    waiting = asyncio.create_task(presence.here())
    await asyncio.sleep(0)
    presence.slept(0, 30, logged=True)  # the log tells of both before anybody who waits has a turn
    presence.back(Ready(3, 1, "n1", "e1", "zygote", 0))
    await asyncio.wait_for(waiting, 5)
    assert wakes == []
