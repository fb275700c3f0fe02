"""What a core asks to be performed is performed until its answer is in the log, whoever leads by then."""

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec
import pytest

from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.bus.protocol import Delivery, Reader
from shoal.machine.core import Inspect, Publish
from shoal.runtime.lease import Owner, Record
from shoal.runtime.shell import Shell
from shoal.wire import streams
from shoal.wire.codec import encode
from shoal.wire.messages import ResolveTemplate, RolloutReleased, TemplateInspected
from unit.toy_core import REQUEST, SYSTEM, Toy, running, shell_of, until


@pytest.fixture
async def bus(memory_broker: MemoryBroker) -> MemoryBus:
    bus = memory_broker.connect()
    await bus.ensure(streams.cluster(1))
    return bus


def stranger(id: str) -> Owner:
    """A process of another machine: whether it lives cannot be known."""
    return Owner(id, "elsewhere", 1, 1)


def ask(bus: MemoryBus, template: str) -> None:
    bus.publish(SYSTEM, encode(ResolveTemplate(0, "t", template)), f"in-{template}")


class Gates:
    """Performs an inspection when it is let; `performed` says which were."""

    def __init__(self) -> None:
        self.performed: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}

    def open(self, template: str) -> None:
        self._gate(template).set()

    def _gate(self, template: str) -> asyncio.Event:
        return self._gates.setdefault(template, asyncio.Event())

    async def perform(self, task: Inspect) -> Sequence[Publish]:
        await self._gate(task.template).wait()
        self.performed.append(task.template)
        return [Publish(SYSTEM, TemplateInspected(task.template, None))]


class Late(MemoryBus):
    """A connection whose deliveries arrive only while `flowing`."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def reader(  # type: ignore[override]  # a reader is one whoever made it
        self, stream: str, *, after: int | None = 0, since_ms: int | None = None, filters: Sequence[str] = ()
    ) -> Reader:
        return _LateReader(await super().reader(stream, after=after, since_ms=since_ms, filters=filters), self.flowing)


class _LateReader:
    def __init__(self, inner: Reader, flowing: asyncio.Event) -> None:
        self._inner = inner
        self._flowing = flowing

    async def batch(self, limit: int = 1024) -> Sequence[Delivery]:
        found = await self._inner.batch(limit)
        await self._flowing.wait()
        return found

    async def close(self) -> None:
        await self._inner.close()


def shell(bus: MemoryBus, core: Toy, id: str, perform: object) -> Shell:
    return shell_of(bus, core, owner=stranger(id), perform=perform)


async def test_a_standby_that_is_behind_performs_what_the_leader_began_and_did_not_end(
    memory_broker: MemoryBroker, bus: MemoryBus
) -> None:
    gates, late, core = Gates(), Late(memory_broker), Toy()
    standby = shell(late, core, "b", gates.perform)
    async with contextlib.AsyncExitStack() as afterwards:
        async with running(shell(bus, Toy(), "a", Gates().perform)) as leader:
            await leader.ready()
            await afterwards.enter_async_context(running(standby))
            await standby.caught_up()
            late.flowing.clear()
            ask(bus, "python")
            bus.publish(REQUEST, encode(RolloutReleased("r1")), "in-2")
            await until(lambda: leader.acknowledged == 2)  # and what it was asked to perform is under way
        await until(lambda: standby._lease.record.owner.id != "a")
        assert standby.position == 0
        late.flowing.set()
        await standby.ready()
        gates.open("python")
        await until(lambda: not core.asked and standby.position == 3)
    assert gates.performed == ["python"]


async def test_one_that_leads_again_at_once_is_heard_each_time(bus: MemoryBus) -> None:
    async def another_led() -> None:
        """Another process takes the lease, and goes silent."""
        entry = await bus.get(streams.LEASE_BUCKET, "toy.0")
        assert entry is not None
        record = msgspec.json.decode(entry.value, type=Record)
        taken = Record(stranger("b"), record.epoch + 1, record.position)
        assert await bus.replace(streams.LEASE_BUCKET, "toy.0", msgspec.json.encode(taken), entry.revision)
        await until(lambda: not leader.leading)
        await leader.ready()

    gates, core = Gates(), Toy()
    async with running(shell(bus, core, "a", gates.perform)) as leader:
        await leader.ready()
        for template in ("X", "Y"):
            ask(bus, template)
            await until(lambda: core.asked)
            await until(lambda: leader.acknowledged == leader.position)
            await another_led()  # what was under way is asked for anew, the first of all that is
            gates.open(template)
            await until(lambda: not core.asked)
    assert gates.performed == ["X", "Y"]
