"""The whole of Shoal on this machine, and the same work through it that a floor does."""

import contextlib
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

import shoal
from shoal.cli import statefile
from shoal.cli.system import LocalSystem
from shoal_loadtest.floor import chain
from shoal_loadtest.floor.chain import Through, patience_s
from shoal_loadtest.floor.fabric import Brokers, Process, cpu_s, mark, span, station, still
from shoal_loadtest.floor.station import TRAINER, Done, Order
from shoal_loadtest.floor.work import Work

_CLIENT: Final = "shoal_loadtest.floor.trainer"


@dataclass(frozen=True, slots=True)
class Whole:
    """A Shoal that is up."""

    url: str
    state: Path

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time that its brokers and each of its services used so far."""
        running = statefile.read(self.state)
        used: dict[str, float] = {}
        for name, service in running.services.items() if running else ():
            if service["pid"]:
                kind = name.partition("-")[0]
                used[kind] = used.get(kind, 0.0) + cpu_s(int(service["pid"]))
        return used


@contextlib.asynccontextmanager
async def up(driver: str, brokers: Brokers | None = None, nodes: int = 1) -> AsyncIterator[Whole]:
    """Bring a Shoal up, and take it down. Raises Failure."""
    chosen = brokers or Brokers()
    with tempfile.TemporaryDirectory(prefix="shoal-whole-") as place:
        state = Path(place) / "state"
        async with LocalSystem(
            state, port=0, driver=driver, nodes=nodes, brokers=chosen.servers, sync_interval=chosen.sync
        ) as system:
            yield Whole(system.url, state)


@contextlib.asynccontextmanager
async def trainer(url: str, work: Work, idle_ms: float = 0.0) -> AsyncIterator[Process]:
    """Have a trainer with Shoal's own client in a process of its own, who knows the template already."""
    async with station(Order(TRAINER, url, "", work, idle_ms=idle_ms), _CLIENT) as process:
        yield process


async def through(brokers: Brokers, work: Work, nodes: int, channel: str = "") -> Through:
    """Do the work with a Shoal of its own, on simulated nodes. Raises Failure.

    `channel`: the trainer is the bare chain's, and speaks through this; without, it is Shoal's own client.
    """
    async with up("simulated", brokers, nodes) as whole:
        async with shoal.connect(whole.url) as cluster:
            await cluster.map("host", ["true"])  # the template is known from here on
        if not channel:
            async with trainer(whole.url, work) as process:
                return await _timed(whole, work, process)
        since = await mark(whole.url)
        order = Order(TRAINER, whole.url, channel, work, since.rollout, name=uuid.uuid4().hex[:2])
        async with station(order) as process:
            return await _timed(whole, work, process)


async def _timed(whole: Whole, work: Work, process: Process) -> Through:
    await still(whole.url)
    since, before = await mark(whole.url), whole.cpu_s()
    await process.go()
    done = msgspec.convert(await process.hear(patience_s(work)), Done)
    took = await span(whole.url, since, work.total)
    return chain.through(took, before, whole.cpu_s() | {TRAINER: done.cpu_s})
