"""The floor of latency: a publication and its delivery on an idle broker, the bare chain, one sandbox of Shoal."""

import asyncio
import contextlib
import time
from typing import Final

import msgspec

from shoal.wire.codec import encode
from shoal_loadtest.floor import whole
from shoal_loadtest.floor.channels import CHANNELS
from shoal_loadtest.floor.fabric import READY_S, Brokers, heard, mark, running, station
from shoal_loadtest.floor.figures import Row, percentile
from shoal_loadtest.floor.roles import INBOXES, ROLLOUT_LOG, request
from shoal_loadtest.floor.station import LISTENER, TRAINER, Done, Order
from shoal_loadtest.floor.work import Work

PART: Final = "latency"
HOPS: Final = 4
"""Trainer, scheduler, placement, executor, and back to the trainer."""
PAUSE_MS: Final = 20.0
_WARM: Final = 10
_CASE: Final = "one sandbox, idle"
_FOUR: Final = f"{HOPS} hops"


async def hops(url: str, channel: str, count: int) -> list[float]:
    """Return ms from each of so many publications, one at a time, to its arrival in another process."""
    work = Work(1, 1)
    since = await mark(url)
    publisher = CHANNELS[channel]()
    async with station(Order(LISTENER, url, channel, work, since.rollout)) as listener:
        try:
            await publisher.open(url, ROLLOUT_LOG, since.rollout)
            found = []
            for number in range(_WARM + count):
                await asyncio.sleep(PAUSE_MS / 1000)
                said = request(str(time.monotonic_ns()), work)
                await publisher.publish(said.subject, encode(said.message), f"hop-{number}-{said.message}")
                found.append(float(await listener.hear(READY_S)))
        finally:
            await publisher.close()
    return found[_WARM:]


async def chained(url: str, channel: str, count: int) -> list[float]:
    """Return ms from each of so many requests for one sandbox to its being ready, through the bare chain."""
    work = Work(_WARM + count, 1)
    since = await mark(url)
    async with contextlib.AsyncExitStack() as stack:
        services = [await stack.enter_async_context(station(Order(role, url, channel, work))) for role in INBOXES]
        order = Order(TRAINER, url, channel, work, since.rollout, PAUSE_MS)
        process = await stack.enter_async_context(station(order))
        done = msgspec.convert(await heard(process, services, READY_S + work.groups), Done)
    return list(done.ready_ms[_WARM:])


async def through(url: str, count: int) -> list[float]:
    """Return the same through a Shoal that is up."""
    work = Work(_WARM + count, 1)
    async with whole.trainer(url, work, PAUSE_MS) as process:
        await process.go()
        done = msgspec.convert(await process.hear(READY_S + work.groups), Done)
    return list(done.ready_ms[_WARM:])


class Latency:
    """Takes turns between the floors and Shoal; `rows` says what came of it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found: dict[tuple[str, str], list[float]] = {}

    async def round(self) -> None:
        """One turn of each."""
        for channel in CHANNELS:
            async with running(Brokers()) as broker:
                chain = await chained(broker.url, channel, self._count)
            async with running(Brokers()) as broker:
                hop = await hops(broker.url, channel, self._count)
            self._note(f"one hop, {channel}", hop)
            self._note(f"{_FOUR}, {channel}", [HOPS * each for each in hop])
            self._note(f"bare chain, {channel}", chain)
        async with whole.up("simulated") as shoal:
            self._note("Shoal", await through(shoal.url, self._count))

    def _note(self, side: str, ms: list[float]) -> None:
        self._found.setdefault((side, "p50"), []).append(percentile(ms, 0.5))
        self._found.setdefault((side, "p99"), []).append(percentile(ms, 0.99))

    def rows(self) -> list[Row]:
        """Return the rows; Shoal is compared with four hops of the faster channel."""
        fastest = min(CHANNELS, key=lambda channel: min(self._found[f"{_FOUR}, {channel}", "p50"]))
        against = f"{_FOUR}, {fastest}"
        alone = {against, *(f"one hop, {channel}" for channel in CHANNELS)}
        return [
            Row(PART, _CASE, side, f"submit to ready, {figure}", "ms", tuple(values), "" if side in alone else against)
            for (side, figure), values in self._found.items()
        ]
