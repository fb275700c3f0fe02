"""Whoever waits is woken, whatever becomes of the connection and of others who use it."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.memory import MemoryBus, MemoryReader
from shoal.bus.protocol import BusError, Delivery, NoStreamError, StreamAnewError
from shoal.client.feed import Feed
from shoal.client.fold import Ready
from shoal.client.presence import Presence
from shoal.client.sandbox import Head
from shoal.runtime.cluster import ensure_cluster
from shoal.wire import streams, subjects
from shoal.wire.codec import encode
from shoal.wire.messages import AnyMessage, ReadFile, RolloutCancelled
from unit.client_fabric import Fabric, all_ready


def stop(channel: str, data: bytes) -> None:
    raise StopIteration


def cancel(channel: str, data: bytes) -> None:
    raise asyncio.CancelledError


def exhaust(channel: str, data: bytes) -> None:
    raise GeneratorExit


@pytest.mark.parametrize("callback", [stop, cancel, exhaust])
async def test_a_callback_that_raises_what_no_future_takes_is_heard_and_harms_nobody(
    callback: Callable[[str, bytes], None],
) -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", 2)
        first, second = [sandbox async for sandbox in rollout.ready()]
        with pytest.raises(RuntimeError, match=r"on_output raised (StopIteration|CancelledError|GeneratorExit)"):
            await asyncio.wait_for(first.run("x", on_output=callback), 5)
        assert (await second.run("y", timeout=5)).ok
        assert (await first.run("z", timeout=5)).ok


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_a_callback_that_ends_the_program_does_so_where_it_is_waited_for(kind: type[BaseException]) -> None:
    def leave(channel: str, data: bytes) -> None:
        raise kind(3)

    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", 2)
        first, second = [sandbox async for sandbox in rollout.ready()]
        async with asyncio.timeout(5):  # and no wait_for: its task would end the loop
            with pytest.raises(kind) as told:
                await first.run("x", on_output=leave)
            assert told.value.args == (3,)
            assert (await second.run("y")).ok  # what it does before it ends: others still hear
            assert (await first.run("z")).ok


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


class Mortal:
    """A reader that ends when it is told to."""

    def __init__(self, inner: MemoryReader) -> None:
        self._inner = inner
        self._end: asyncio.Future[Sequence[Delivery]] = asyncio.get_running_loop().create_future()

    def end(self, error: BusError) -> None:
        if not self._end.done():
            self._end.set_exception(error)

    async def batch(self, limit: int = 1024) -> Sequence[Delivery]:
        coming = asyncio.ensure_future(self._inner.batch(limit))
        await asyncio.wait({coming, self._end}, return_when=asyncio.FIRST_COMPLETED)
        if self._end.done():
            coming.cancel()
            return self._end.result()
        return coming.result()

    async def close(self) -> None:
        self._end.cancel()
        await self._inner.close()


class MortalBus(MemoryBus):
    """A connection whose readers can be made to end."""

    def __init__(self, fabric: Fabric) -> None:
        super().__init__(fabric.broker)
        self.mortal: dict[str, list[Mortal]] = {}

    async def reader(self, stream: str, **how: Any) -> Any:
        reader = Mortal(await super().reader(stream, **how))
        self.mortal.setdefault(stream, []).append(reader)
        return reader

    def end(self, stream: str, error: BusError | None = None) -> None:
        for reader in self.mortal.pop(stream):
            reader.end(error or StreamAnewError("stream LOG was made anew"))


@pytest.mark.parametrize("stream", [streams.trajectory(0).name, streams.rollout(0).name])
async def test_after_a_reader_has_ended_what_hung_on_it_fails_at_once_and_what_comes_anew_goes_well(
    stream: str,
) -> None:
    async with Fabric(all_ready) as fabric:
        bus = MortalBus(fabric)
        async with shoal.connect(bus=bus) as cluster:
            old = await cluster.rollout("host")
            sandbox = await anext(old.ready())
            assert (await sandbox.run("before", timeout=5)).ok
            fabric.silent = True
            waiting = asyncio.create_task(sandbox.run("under way"))
            await fabric.until(lambda: len(fabric.commands) == 2)
            bus.end(stream)
            with pytest.raises(shoal.LogGone, match="has lost its log: stream LOG was made anew; begin anew"):
                await asyncio.wait_for(waiting, 5)
            fabric.silent = False
            for _ in range(2):
                with pytest.raises(shoal.LogGone, match="has lost its log: stream LOG was made anew; begin anew"):
                    await asyncio.wait_for(sandbox.run("later"), 5)
                with pytest.raises(shoal.LogGone, match="has lost its log: stream LOG was made anew; begin anew"):
                    await asyncio.wait_for(sandbox.files.read("x"), 5)
            with pytest.raises(shoal.LogGone, match="has lost its log: stream LOG was made anew; begin anew"):
                await asyncio.wait_for(old.wait(), 5)
            assert len(fabric.commands) == 2  # nothing was asked of which nobody would hear

            async with cluster.rollout("host") as rollout:
                fresh = await asyncio.wait_for(anext(rollout.ready()), 5)
                assert (await asyncio.wait_for(fresh.run("anew"), 5)).ok
            again = await cluster.attach(old.id)  # whoever asks for the old one gets it as the log has it
            assert again is not old
            assert (await asyncio.wait_for((await anext(again.ready())).run("again"), 5)).ok


async def test_a_log_that_is_gone_under_whoever_follows_it_is_lost_also_before_it_is_made_again() -> None:
    stream = streams.rollout(0).name
    async with Fabric(all_ready) as fabric:
        bus = MortalBus(fabric)
        async with shoal.connect(bus=bus) as cluster:
            rollout = await cluster.rollout("host")
            await anext(rollout.ready())
            waiting = asyncio.create_task(rollout.wait())
            await asyncio.sleep(0)
            bus.end(stream, NoStreamError(f"there is no stream {stream}; is the cluster set up?"))
            with pytest.raises(shoal.LogGone, match=f"has lost its log: there is no stream {stream}"):
                await asyncio.wait_for(waiting, 5)


async def test_after_the_reader_of_an_attached_rollout_has_ended_it_can_be_attached_to_again() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as first:
        made = await first.rollout("host")
        bus = MortalBus(fabric)
        async with shoal.connect(bus=bus) as cluster:
            attached = await cluster.attach(made.id)
            sandbox = await anext(attached.ready())
            bus.end(streams.rollout(0).name)
            with pytest.raises(shoal.LogGone, match="has lost its log: stream LOG was made anew; begin anew"):
                await asyncio.wait_for(attached.wait(), 5)
            with pytest.raises(shoal.LogGone, match="has lost its log: stream LOG was made anew; begin anew"):
                await asyncio.wait_for(sandbox.run("x"), 5)
            again = await cluster.attach(made.id)
            assert (await asyncio.wait_for((await anext(again.ready())).run("x"), 5)).ok


async def test_what_cannot_be_encoded_is_told_and_nothing_is_left_of_it() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        sandbox = await anext((await cluster.rollout("host")).ready())

        def too_much(head: Head) -> ReadFile:
            return ReadFile(*head, "x" + chr(0xD800))  # half of a character

        for _ in range(2):  # the second would wait for the first one's answer
            with pytest.raises(UnicodeEncodeError):
                await asyncio.wait_for(sandbox.ask(too_much, None, "reading", "id"), 5)
        assert not sandbox.presence.pending


@pytest.mark.broker
async def test_whoever_waits_for_a_cluster_whose_log_was_made_anew_is_told(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path, port=0) as broker:
        bus = await JetStreamBus.connect(broker.url)
        await ensure_cluster(bus, 1)
        async with shoal.connect(broker.url) as cluster:
            waiting = asyncio.create_task(cluster.map("host", ["true"]))  # there is nobody who would answer
            while not await bus.last_sequence(streams.rollout(0).name):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # the request has come to whoever follows
            for stream in streams.cluster(1):
                await bus._connection.client.request(f"$JS.API.STREAM.DELETE.{stream.name}", b"")
            await bus.ensure(streams.cluster(1))
            with pytest.raises(shoal.LogGone, match=r"has lost its log: stream SHOAL_ROLLOUT_0 .*; begin anew"):
                await asyncio.wait_for(waiting, 30)
        await bus.close()
