"""Upgrades of a cluster whose logs have no beginning, on a real broker; and of a node with live sandboxes."""

import asyncio
import contextlib
import os
import signal
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import pytest_asyncio

import shoal
from shoal.blobs.opening import open_store
from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus
from shoal.cli import statefile
from shoal.cli.system import LocalSystem
from shoal.machine.checkpoint import Checkpoint
from shoal.runtime.checkpoints import Checkpoints
from shoal.runtime.cluster import ensure_cluster
from shoal.runtime.lease import Record
from shoal.runtime.options import Settings
from shoal.runtime.process import Context
from shoal.wire import messages as m, streams, subjects
from shoal.wire.codec import decode, encode
from shoal_executor.drivers.zygote.forkserver import entries
from shoal_executor.service.journal import VERSION, Began
from shoal_placement.service import run as run_placement
from shoal_scheduler.service import run as run_scheduler
from shoal_snapshot.service import run as run_snapshot
from states.make_golden import make
from states.stories import LAYERED
from states.test_golden import FILES, Kept

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

CELLS = 3
Run = Callable[[Context, Path], Coroutine[Any, Any, None]]


class Service(NamedTuple):
    """A partition, and a message to it whose answer, on that subject, depends on what came long before."""

    name: str
    stream: str
    run: Run
    subject: str
    said: m.AnyMessage
    where: str
    knows: Callable[[m.AnyMessage], bool]


SERVICES = {
    "scheduler": Service(
        "scheduler.0",
        streams.rollout(0).name,
        lambda context, _: run_scheduler(context, 10, "fair"),
        subjects.rollout_request(0, "stranger", "run"),
        m.RolloutSubmitted("s1", "stranger", "run", m.RolloutSpec("host", 1)),
        subjects.rollout_outcome(0, "stranger", "run"),
        lambda said: isinstance(said, m.RolloutRejected) and said.code == "unknown_tenant",  # others had been added
    ),
    "placement": Service(
        "placement.0",
        streams.placement(0).name,
        lambda context, _: run_placement(context, "soonest"),
        subjects.placement_node(0),
        m.NodeDrained("n3", False),
        subjects.rollout_system(0),
        lambda said: isinstance(said, m.CellCapacity) and said.nodes == 3,  # two executors had joined
    ),
    "snapshot": Service(
        "snapshot",
        streams.snapshot().name,
        lambda context, path: run_snapshot(context, open_store(path.as_uri()), path),
        subjects.snapshot(subjects.SYSTEM, "request"),
        m.ResolveTemplate(2, "acme", "tools"),
        subjects.rollout_system(2),
        lambda said: isinstance(said, m.TemplateResolved) and said.snapshot == LAYERED,
    ),
}
EARLIER = [kept for path in FILES if (kept := Kept(path)).version < make(kept.core).state_version]


@pytest_asyncio.fixture(loop_scope="module")
async def bus(tmp_path: Path) -> AsyncIterator[JetStreamBus]:
    broker = EmbeddedBroker(tmp_path / "broker", port=0)
    await broker.start()
    try:
        bus = await JetStreamBus.connect(broker.url)
        await ensure_cluster(bus, CELLS)
        await bus.ensure([streams.executor(executor) for executor in ("e1", "e2")])  # they had joined
        yield bus
        await bus.close()
    finally:
        await broker.stop()


@pytest.mark.parametrize("kept", EARLIER, ids=lambda kept: f"{kept.core}-{kept.version}")
async def test_a_service_goes_on_from_the_state_of_the_version_before_it(
    bus: JetStreamBus, tmp_path: Path, kept: Kept
) -> None:
    service = SERVICES[kept.core]
    name, stream = service.name, service.stream
    for number, (_, payload) in enumerate(kept.before):
        await bus.publish(service.subject, bytes.fromhex(payload), f"golden-{number}")
    last = await bus.last_sequence(stream)
    saved = Checkpoint(name, kept.version, stream, last, kept.before[-1][0], kept.state)
    assert await Checkpoints(bus, name).save(saved, 1)
    await bus.put(streams.LEASE_BUCKET, name, msgspec.json.encode(Record(position=last)))
    await bus.purge(stream, last)
    stop = asyncio.Event()
    serving = asyncio.create_task(service.run(Context(bus, CELLS, stop, Settings()), tmp_path / "own"))
    try:
        await bus.publish(service.subject, encode(service.said), "asked")
        await answered(bus, service, serving)
    finally:
        stop.set()
        await serving
    newest, before = (await Checkpoints(bus, name).manifest())[0].generations
    assert newest.sequence > last == before.sequence
    found = await Checkpoints(bus, name).load(core=name, version=make(kept.core).state_version, stream=stream)
    assert [each.sequence for each in found] == [newest.sequence]  # its own, in its own terms


async def answered(bus: JetStreamBus, service: Service, serving: asyncio.Task[None]) -> None:
    """Wait for the answer of one that knows what was before; another one fails the test."""
    stream = next(each.name for each in streams.cluster(CELLS) if any(fits(service.where, of) for of in each.subjects))
    reader = await bus.reader(stream, filters=[service.where])
    try:
        async with asyncio.timeout(60):
            while True:
                reading = asyncio.create_task(reader.batch())
                await asyncio.wait({reading, serving}, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    reading.cancel()
                    serving.result()
                if any(service.knows(decode(delivery.payload)) for delivery in reading.result()):
                    return
    finally:
        await reader.close()


def fits(subject: str, pattern: str) -> bool:
    """Return whether a stream's pattern has a subject."""
    for token, of in zip_longest(subject.split("."), pattern.split(".")):
        if of == ">":
            return True
        if of not in ("*", token):
            return False
    return True


@pytest.mark.sandbox
async def test_sandboxes_of_an_executor_of_another_version_are_ended_and_told_as_lost(tmp_path: Path) -> None:
    async with LocalSystem(tmp_path / "state", port=0) as system, shoal.connect(system.url) as cluster:
        rollout = await cluster.rollout("host", n=2, timeout="5m")
        sandboxes = [sandbox async for sandbox in rollout.ready()]
        for sandbox in sandboxes:
            assert (await sandbox.run("nohup sleep 4321 > /dev/null 2>&1 &")).ok
        waiting = [asyncio.create_task(sandbox.run("sleep 300")) for sandbox in sandboxes]
        running = statefile.read(tmp_path / "state")
        assert running is not None
        servers = [entry.pid for _, entry in entries(tmp_path / "state" / "executor" / "forks")]
        async with asyncio.timeout(30):
            while len(processes("sleep 4321")) < 2:
                await asyncio.sleep(0.05)
        as_of_another_version(tmp_path / "state" / "executor" / "journal")
        os.kill(int(running.services["executor"]["pid"]), signal.SIGKILL)  # it is started again
        async with asyncio.timeout(60):
            for lost in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(lost, shoal.SandboxLost)
                assert "its executor restarted" in str(lost)
            with pytest.raises(shoal.SandboxLost, match="its executor restarted"):
                await sandboxes[0].run("true")
            assert (await rollout.wait()).lost == 2
            while processes("sleep 4321"):
                await asyncio.sleep(0.05)
            assert [each.stdout for each in await cluster.map("host", ["echo new"])] == ["new\n"]
    async with asyncio.timeout(30):
        while any(Path(f"/proc/{pid}").exists() for pid in servers):
            await asyncio.sleep(0.05)


def processes(command: str) -> list[int]:
    """Return who runs just this."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().decode(errors="replace").split("\0")[:-1] == command.split():
                found.append(int(path.parent.name))
    return found


def as_of_another_version(journal: Path) -> None:
    """Have a journal's first record say that an earlier version wrote it, in place: the executor goes on writing."""
    head = struct.Struct(">II")
    data = journal.read_bytes()
    length, _ = head.unpack_from(data)
    began = msgspec.msgpack.decode(data[head.size : head.size + length], type=Began)
    assert began.version == VERSION
    body = msgspec.msgpack.encode(msgspec.structs.replace(began, version=VERSION - 1))
    assert len(body) == length
    with journal.open("r+b") as file:
        file.write(head.pack(length, zlib.crc32(body)) + body)
