"""What all tests share."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from shoal.broker import EmbeddedBroker
from shoal.bus.memory import MemoryBroker

# No deadline: how long an example takes says nothing here. The blob lets a failure be repeated elsewhere.
settings.register_profile("shoal", deadline=None, print_blob=True)
settings.load_profile("shoal")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A real broker on a free port, for the whole session. Tests use streams, tenants or runs of their own."""
    own = EmbeddedBroker(Path(tmp_path_factory.mktemp("broker")), port=0)
    asyncio.run(own.start())
    yield own
    asyncio.run(own.stop())


@pytest.fixture
def memory_broker() -> MemoryBroker:
    """An empty broker in this process."""
    return MemoryBroker()
