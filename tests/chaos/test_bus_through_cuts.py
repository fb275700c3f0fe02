"""The bus alone, on each event loop it is used with, while its connections are cut faster than they are made."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from chaos.proxy import Proxy
from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import Stored
from shoal.wire import streams, subjects

PUBLISHERS = 6
CUTS = 60


async def storm(state: Path, seed: int) -> None:
    chance = random.Random(seed)
    lanes = [subjects.rollout_system(0), subjects.placement_node(0), subjects.trajectory(0, "a", "b")]
    async with EmbeddedBroker(state, port=0) as broker, Proxy(int(broker.url.rpartition(":")[2])) as proxy:
        buses = [await JetStreamBus.connect(f"nats://127.0.0.1:{proxy.port}") for _ in range(PUBLISHERS)]
        await buses[0].ensure(streams.cluster(1))
        readers = [await bus.reader(streams.placement(0).name) for bus in buses]
        futures: list[asyncio.Future[Stored]] = []
        over = asyncio.Event()

        async def publish(number: int, bus: JetStreamBus) -> None:
            while not over.is_set():
                for lane in lanes:
                    payload = bytes(chance.choice((10, 1000, 50_000)))
                    futures.append(bus.publish(lane, payload, f"{number}:{len(futures)}"))
                await asyncio.sleep(0.02)

        publishing = [asyncio.create_task(publish(number, bus)) for number, bus in enumerate(buses)]
        for _ in range(CUTS):
            await asyncio.sleep(chance.uniform(0.005, 0.15))
            proxy.cut(reset=chance.random() < 0.5)
        over.set()
        await asyncio.gather(*publishing)
        async with asyncio.timeout(60):
            stored = await asyncio.gather(*futures)
            # Each exactly once, and each of these readers has each exactly once.
            assert len({(one.stream, one.sequence) for one in stored}) == len(futures)
            last = await buses[0].last_sequence(streams.placement(0).name)
            assert last == len(futures) // len(lanes)
            for reader in readers:
                seen: list[int] = []
                while len(seen) < last:
                    seen += [delivery.sequence for delivery in await reader.batch()]
                assert seen == list(range(1, last + 1))
        for bus in buses:
            await bus.close()


# A connection that is cut while nats-py makes it is left to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*unclosed", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.broker
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_all_is_published_once_and_read_once(loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path) -> None:
    for seed in range(2):
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(storm(tmp_path / str(seed), seed))
