"""kill -9 of whoever archives, and of the broker, at any moment: the archive has every message, each once."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from archive.cluster import everything
from shoal.archive.archived import ArchiveHistory, series_of
from shoal.archive.exporting import export
from shoal.archive.live import LiveHistory
from shoal.archive.verifying import verify
from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus
from shoal.cli.exits import Exit
from shoal.runtime.cluster import ensure_cluster
from shoal.wire import streams, subjects

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


class Cluster:
    """A broker of a test's own, and a flood of messages in some of its streams."""

    def __init__(self, state: Path, seed: int) -> None:
        self.broker = EmbeddedBroker(state, port=0)
        self.random = random.Random(seed)
        self._sent = 0

    async def start(self) -> None:
        await self.broker.start()
        self.bus = await JetStreamBus.connect(self.broker.url)
        await ensure_cluster(self.bus)
        await self.bus.ensure([streams.executor("e0"), streams.executor("e1")])

    async def stop(self) -> None:
        await self.bus.close()
        await self.broker.stop()

    async def flood(self, count: int, largest: int = 300) -> None:
        """Publish so many messages, of so many bytes at most."""
        where = [subjects.executor_control("e0"), subjects.executor_control("e1"), subjects.rollout_system(0),
                 subjects.trajectory(0, "t", "r"), subjects.placement_node(0)]  # fmt: skip
        waiting = []
        for _ in range(count):
            self._sent += 1
            subject = self.random.choice(where)
            payload = self.random.randbytes(self.random.randrange(largest))
            waiting.append(self.bus.publish(subject, payload, f"SHOAL_X:{self._sent}:0"))
        await asyncio.gather(*waiting)

    async def run(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a command."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "shoal.cli", *arguments, "--url", self.broker.url,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

    async def check(self, path: Path) -> None:
        """Assert that an archive is whole and has exactly what the streams keep."""
        verdict = await verify(series_of(path))
        assert verdict.trouble == ""
        live = await everything(LiveHistory(self.bus))
        archived = await everything(await ArchiveHistory.open(path))
        for name, messages in live.items():
            assert archived.get(name, []) == messages
        assert verdict.messages == sum(map(len, live.values())) > 0


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path / "broker", len(request.node.name))
    await cluster.start()
    yield cluster
    await cluster.stop()


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of the files of a directory."""
    if path.is_dir():
        return sum(size_of(each) for each in path.iterdir())
    return path.stat().st_size if path.exists() else 0


async def grows(path: Path, to: int, process: asyncio.subprocess.Process) -> None:
    """Wait until a file or directory has so many bytes, or the process has ended."""
    async with asyncio.timeout(60):
        while size_of(path) < to and process.returncode is None:
            await asyncio.sleep(0.002)


async def test_an_export_that_is_killed_goes_on_and_ends_the_same(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.flood(6000, 2000)
    path, kills = tmp_path / "x.shoal", 0
    size = cluster.random.randrange(1, 1_500_000)
    while True:
        process = await cluster.run("export", "-o", str(path))
        await grows(path, size, process)
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
        if await process.wait() == Exit.OK:
            if kills:
                break
            path.unlink()  # it was too fast for us; once more
            continue
        kills += 1
        size = size_of(path) + cluster.random.randrange(1, 2_500_000)
    await cluster.check(path)
    await export(LiveHistory(cluster.bus), tmp_path / "at-once.shoal")
    one, other = [await ArchiveHistory.open(tmp_path / name) for name in ("x.shoal", "at-once.shoal")]
    first, second = await one.series.file(0), await other.series.file(0)
    assert first.account.totals == second.account.totals
    assert [group.parts for group in first.account.groups] == [group.parts for group in second.account.groups]


async def test_archiving_goes_on_through_kills_of_all_there_is(cluster: Cluster, tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    arguments = ("archive", "follow", "--to", str(directory), "--every", "100ms", "--roll", "64KiB")
    for turn in range(5):
        process = await cluster.run(*arguments)
        flood = asyncio.create_task(cluster.flood(1000))
        before = size_of(directory) if directory.exists() else 0
        if turn % 3 == 1:
            await grows(directory, before + 1, process)
            await cluster.broker.kill()
            await asyncio.sleep(0.2)
            await cluster.broker.start()
        await grows(directory, before + cluster.random.randrange(1, 120_000), process)
        assert process.returncode is None
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        await flood
    process, before = await cluster.run(*arguments), size_of(directory)
    await cluster.flood(50)
    await grows(directory, before + 1, process)
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == Exit.INTERRUPTED
    await cluster.check(directory)
    assert len(list(directory.glob("*.shoal"))) > 3
