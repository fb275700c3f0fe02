"""A core is woken when it asked to be, however its mind changes, and nobody is woken for nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shoal.bus.memory import MemoryBroker
from shoal.bus.protocol import Bus, Reader
from shoal.runtime.ticker import Ticker
from shoal.testing import virtual
from shoal.wire.codec import decode
from shoal.wire.messages import Tick
from shoal.wire.streams import Stream

LOG = Stream("LOG", ("log.>",), 0.0, 1 << 20)


class Core:
    """Wants to be woken at one time."""

    wake: int | None = None

    def wake_at_ms(self) -> int | None:
        return self.wake


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def ticking(core: Core) -> AsyncIterator[tuple[Ticker, Bus, Reader]]:
    bus = MemoryBroker().connect()
    await bus.ensure([LOG])
    ticker = Ticker(bus, core, LOG.name, "log.tick", now_ms)  # type: ignore[arg-type]  # it is asked for nothing else
    leading = asyncio.Event()
    leading.set()
    task = asyncio.create_task(ticker.run(leading))
    try:
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            yield ticker, bus, await bus.reader(LOG.name)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def tick(reader: Reader) -> int:
    (delivery,) = await reader.batch(1)
    message = decode(delivery.payload)
    assert isinstance(message, Tick)
    return message.due_ms


async def test_a_core_that_wants_to_be_woken_sooner_or_at_all_is_heard() -> None:
    core = Core()
    async with ticking(core) as (ticker, _, reader):
        core.wake = now_ms() + 60_000  # it wanted nothing before
        ticker.look()
        await asyncio.sleep(0.01)
        core.wake = sooner = now_ms() + 20
        ticker.look()
        assert await tick(reader) == sooner
        assert now_ms() >= sooner
        core.wake = next_one = now_ms() + 20  # it has folded the Tick
        ticker.look()
        assert await tick(reader) == next_one


async def test_one_that_wants_to_be_woken_later_is_not_woken_before() -> None:
    core = Core()
    core.wake = now_ms() + 30
    async with ticking(core) as (ticker, bus, reader):
        await asyncio.sleep(0.01)
        core.wake = later = now_ms() + 200
        ticker.look()
        assert await tick(reader) == later
        assert await bus.last_sequence(LOG.name) == 1


async def test_what_makes_no_difference_wakes_nobody() -> None:
    core = Core()
    core.wake = now_ms() + 60_000
    async with ticking(core) as (ticker, _, _):
        await asyncio.sleep(0.01)
        for wake in (core.wake, core.wake + 1000, None):
            core.wake = wake
            ticker.look()
            assert not ticker._retime.is_set()
        core.wake = now_ms() + 1000
        ticker.look()
        assert ticker._retime.is_set()


def test_one_that_stays_due_for_hours_is_told_so_each_second_as_long_as_it_lasts() -> None:
    async def hours() -> list[str]:
        broker = MemoryBroker()
        broker.ensure(LOG)
        core, leading = Core(), asyncio.Event()
        core.wake = 1_000
        leading.set()
        ticker = Ticker(broker.connect(), core, LOG.name, "log.tick", lambda: 2_000)  # type: ignore[arg-type]  # wakes only
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * 3600):
                await ticker.run(leading)
        return [each.id for each in broker.messages(LOG.name)]

    ids = virtual.run(hours())
    assert len(ids) == len(set(ids))
    assert 7200 <= len(ids) <= 7210
