"""The broker's floor on a real broker, and that it costs what a run of Shoal does."""

import asyncio
import os
import signal
from collections import Counter

import pytest

import shoal
from shoal.bus.jetstream import JetStreamBus
from shoal.cli.exits import Failure
from shoal.wire.codec import decode
from shoal_loadtest.floor import chain, whole
from shoal_loadtest.floor.channels import CHANNELS, ChannelError, NatsChannel
from shoal_loadtest.floor.fabric import Brokers, heard, mark, running, span, station, still
from shoal_loadtest.floor.latency import chained, hops
from shoal_loadtest.floor.roles import EXECUTOR_LOG, INBOXES, PLACEMENT_LOG, ROLLOUT_LOG
from shoal_loadtest.floor.station import TRAINER, Order
from shoal_loadtest.floor.work import Lifecycle, Work

pytestmark = pytest.mark.broker

OF_NOBODY = {"Tick", "ExecutorBeat", "CellCapacity"}
"""What is said whether anybody asks for sandboxes or not."""


async def said(url: str, after: dict[str, int]) -> tuple[Counter[str], Counter[str]]:
    """Return how many messages of each kind were stored since, and how many bytes they have."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    bus = await JetStreamBus.connect(url)
    try:
        for stream, sequence in after.items():
            last = await bus.last_sequence(stream)
            reader = await bus.reader(stream, after=sequence)
            while sequence < last:
                for delivery in await reader.batch():
                    sequence = delivery.sequence
                    kind = type(decode(delivery.payload)).__name__
                    if kind not in OF_NOBODY:
                        counts[kind] += 1
                        sizes[kind] += len(delivery.payload)
    finally:
        await bus.close()
    return counts, sizes


async def ends(url: str) -> dict[str, int]:
    bus = await JetStreamBus.connect(url)
    try:
        return {stream: await bus.last_sequence(stream) for stream in (ROLLOUT_LOG, PLACEMENT_LOG, EXECUTOR_LOG)}
    finally:
        await bus.close()


@pytest.mark.parametrize("lifecycle", list(Lifecycle))
async def test_the_chain_says_as_much_as_shoal_does_for_the_same_work(lifecycle: Lifecycle) -> None:
    work = Work(256, under_way=1, lifecycle=lifecycle)
    async with running(Brokers()) as broker:
        since = await mark(broker.url)
        async with (
            station(Order("scheduler", broker.url, "nats-py", work)),
            station(Order("placement", broker.url, "nats-py", work)),
            station(Order("executor", broker.url, "nats-py", work)),
            station(Order(TRAINER, broker.url, "nats-py", work, since.rollout, name="rw")) as trainer,
        ):
            await trainer.go()
            await trainer.hear(60)
            await span(broker.url, since, work.total)
            floor_counts, floor_sizes = await said(broker.url, dict.fromkeys((*INBOXES.values(),), 0))
    async with whole.up("simulated", nodes=1000) as system, shoal.connect(system.url) as cluster:
        await cluster.map("host", ["true"])  # the template is known from here on
        await still(system.url)
        began, after = await mark(system.url), await ends(system.url)
        rollout = await cluster.rollout("host", 256, command="true" if lifecycle is Lifecycle.JOB else None)
        if lifecycle is Lifecycle.HELD:
            assert len([sandbox async for sandbox in rollout.ready()]) == 256
            await rollout.release()
        await rollout.wait()
        await span(system.url, began, 256)
        counts, sizes = await said(system.url, after)
    if lifecycle is Lifecycle.JOB:  # a start and its end that are told together are one message less
        assert counts.pop("SandboxesReady", 0) <= floor_counts.pop("SandboxesReady")
    assert floor_counts == counts
    for kind, size in sizes.items():
        assert floor_sizes[kind] == pytest.approx(size, rel=0.1), kind


@pytest.mark.parametrize("channel", CHANNELS)
async def test_the_chain_does_all_the_work(channel: str) -> None:
    done = await chain.bare(Brokers(), Work(2000, 100, under_way=4), channel)
    assert done.a_second > 0
    assert done.cpu_us.keys() == {"broker", *INBOXES, TRAINER}
    assert all(us >= 0 for us in done.cpu_us.values())


async def test_the_chain_and_shoal_work_on_three_brokers() -> None:
    brokers = Brokers(3, "always")
    work = Work(512, 128, lifecycle=Lifecycle.JOB)
    assert (await chain.bare(brokers, work, "nats-py")).a_second > 0
    for through in (await whole.through(brokers, work, 100), await whole.through(Brokers(), work, 100, "nats-py")):
        assert through.a_second > 0
        assert through.cpu_us.keys() == {"broker", "scheduler", "placement", "snapshot", "executor", TRAINER}


@pytest.mark.parametrize("channel", CHANNELS)
async def test_single_messages_are_timed(channel: str) -> None:
    async with running(Brokers()) as broker:
        found = await hops(broker.url, channel, 5)
        assert len(found) == 5
        assert all(0 < ms < 10_000 for ms in found)
    async with running(Brokers()) as broker:
        found = await chained(broker.url, channel, 5)
        assert len(found) == 5
        assert all(0 < ms < 10_000 for ms in found)


async def test_a_service_that_ends_is_told_with_its_last_word() -> None:
    async with running(Brokers()) as broker:
        work = Work(256)
        since = await mark(broker.url)
        async with (
            station(Order("scheduler", broker.url, "nats-py", work)) as scheduler,
            station(Order(TRAINER, broker.url, "nats-py", work, since.rollout)) as trainer,
        ):
            os.kill(scheduler.pid, signal.SIGKILL)
            with pytest.raises(Failure, match="the floor's scheduler ended: with status -9"):
                await heard(trainer, [scheduler], 60)


async def test_a_publication_that_nobody_answers_is_told_with_what_to_do() -> None:
    async with running(Brokers()) as broker:
        channel = NatsChannel()
        await channel.open(broker.url, ROLLOUT_LOG, 0)
        await channel.publish("no.stream.keeps.this", b"", "1")
        with pytest.raises(ChannelError, match=r"refused: nobody answers for its stream \(status 503\).*no leader"):
            await asyncio.wait_for(channel.settled(), 10)
        await channel.close()


async def test_a_process_that_cannot_begin_is_told() -> None:
    with pytest.raises(Failure, match="the floor's trainer ended"):
        async with station(Order(TRAINER, "nats://127.0.0.1:1", "bus", Work(256))):
            pass
