"""The driver `gvisor`, with whatever runsc is installed (RUNSC in the environment names another)."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from conformance.drivers import Blobs, DriverConformance
from shoal_executor.drivers.gvisor.driver import GvisorDriver

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runsc") is None, reason="gvisor needs root, and runsc"),
]


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest_asyncio.fixture
async def driver(tmp_path: Path, blobs: Blobs) -> AsyncIterator[GvisorDriver]:
    driver = GvisorDriver(tmp_path / "state", blobs)
    await driver.open(lambda *_: None)
    yield driver
    await driver.close()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


class TestGvisorDriver(DriverConformance):
    pass
