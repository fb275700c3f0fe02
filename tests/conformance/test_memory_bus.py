import pytest

from conformance.bus import BusConformance, BusFactory, Log
from shoal.bus.memory import MemoryBroker
from shoal.bus.protocol import Bus


class TestMemoryBus(BusConformance):
    @pytest.fixture
    def bus_factory(self, memory_broker: MemoryBroker) -> BusFactory:
        async def connect() -> Bus:
            return memory_broker.connect()

        return connect


async def test_the_clock_decides_times_copies_and_ages() -> None:
    now = 1_000_000
    broker = MemoryBroker(lambda: now)
    bus = broker.connect()
    log = Log()
    await bus.ensure([log.stream])
    await bus.publish(log.subject(), b"", "same")
    now += 119_000
    assert (await bus.publish(log.subject(), b"", "same")).duplicate
    now += 1_000
    assert not (await bus.publish(log.subject(), b"", "same")).duplicate
    assert [message.time_ms for message in broker.messages(log.name)] == [1_000_000, 1_120_000]
    now += 3_480_000
    assert [message.sequence for message in broker.messages(log.name)] == [2]
    assert await bus.first_sequence(log.name) == 2
