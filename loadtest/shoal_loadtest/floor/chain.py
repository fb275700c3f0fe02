"""The broker's floor: the chain of bare processes does a piece of work."""

import contextlib
import uuid
from dataclasses import dataclass
from typing import Final

import msgspec

from shoal.broker import EmbeddedCluster
from shoal_loadtest.floor.fabric import Brokers, Span, cpu_s, heard, mark, running, span, station
from shoal_loadtest.floor.roles import INBOXES
from shoal_loadtest.floor.station import TRAINER, Done, Order
from shoal_loadtest.floor.work import Work

_A_SANDBOX_S: Final = 0.01
_LEAST_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Through:
    """What doing the work took: sandboxes a second, and whose processor time each of them cost, in microseconds."""

    a_second: float
    cpu_us: dict[str, float]

    @property
    def total_us(self) -> float:
        """Processor time of everybody for a sandbox."""
        return sum(self.cpu_us.values())


def patience_s(work: Work) -> float:
    """Return how long the work may take before it is given up."""
    return _LEAST_S + work.total * _A_SANDBOX_S


def through(took: Span, before: dict[str, float], after: dict[str, float]) -> Through:
    """Return what the work took, given the processor time that each had used before and after it."""
    used = {name: (after[name] - before.get(name, 0.0)) / took.sandboxes * 1e6 for name in after}
    return Through(took.sandboxes / took.seconds, used)


async def bare(brokers: Brokers, work: Work, channel: str) -> Through:
    """Do the work with bare processes on brokers of their own. Raises Failure."""
    async with running(brokers) as broker, contextlib.AsyncExitStack() as stack:
        since = await mark(broker.url)
        services = {
            role: await stack.enter_async_context(station(Order(role, broker.url, channel, work))) for role in INBOXES
        }

        def used() -> dict[str, float]:
            servers = broker.pids if isinstance(broker, EmbeddedCluster) else (broker.pid,)
            return {"broker": sum(map(cpu_s, servers))} | {name: cpu_s(each.pid) for name, each in services.items()}

        before = used()
        order = Order(TRAINER, broker.url, channel, work, since.rollout, name=uuid.uuid4().hex[:2])
        async with station(order) as process:
            done = msgspec.convert(await heard(process, [*services.values()], patience_s(work)), Done)
        took = await span(broker.url, since, work.total)
        return through(took, before, used() | {TRAINER: done.cpu_s})
