"""kill -9 and restarts of brokers under rollouts and load: each sandbox exactly once, nothing acknowledged lost."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest
import pytest_asyncio

import shoal
from conformance.bus import Log, take
from shoal.broker import EmbeddedBroker, leader_of, wait_until_whole
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import BusError, Stored
from shoal.cli import statefile
from shoal.cli.system import LocalSystem
from shoal.wire import streams

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

N = 256


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[LocalSystem, Path]]:
    state = tmp_path_factory.mktemp("brokers")
    async with LocalSystem(state, port=0, brokers=3) as system:
        yield system, state


def server(state: Path, number: int) -> tuple[int | None, int]:
    """Return one broker's process id and how often it was started again."""
    running = statefile.read(state)
    assert running is not None
    found = running.services[f"broker-{number}"]
    return found["pid"], int(found["restarts"])


async def started_again(state: Path, number: int, restarts: int) -> int:
    async with asyncio.timeout(60):
        while True:
            pid, now = server(state, number)
            if now > restarts and pid is not None:
                return pid
            await asyncio.sleep(0.05)


Reached = Callable[[int], Coroutine[None, None, None]]
"""Waits until so many sandboxes have ended."""


async def kill_the_leader(running: LocalSystem, state: Path, reached: Reached) -> None:
    await reached(20)
    number = int((await leader_of(running.url, streams.rollout(0).name)).rpartition("-")[2])
    pid, restarts = server(state, number)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert await started_again(state, number, restarts) != pid


async def restart_all(running: LocalSystem, state: Path, reached: Reached) -> None:
    for number in (1, 2, 3):
        await reached(60 * number)
        pid, restarts = server(state, number)
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        await started_again(state, number, restarts)
        await wait_until_whole(running.url)


@pytest.mark.sandbox
@pytest.mark.parametrize("trouble", [kill_the_leader, restart_all], ids=lambda each: each.__name__)
async def test_a_rollout_of_256(
    system: tuple[LocalSystem, Path], trouble: Callable[[LocalSystem, Path, Reached], Coroutine[None, None, None]]
) -> None:
    running, state = system
    seen: list[int] = []
    said: dict[int, str] = {}

    async def reached(count: int) -> None:
        while len(seen) < count:
            await asyncio.sleep(0.01)

    async with shoal.connect(running.url) as cluster, asyncio.timeout(200):
        # Not all at once, so that some end before, some during and some after each trouble.
        commands = [f"sleep {number % 8}; echo {number}" for number in range(N)]
        rollout = await cluster.rollout("host", n=N, commands=commands, run=trouble.__name__, timeout="5m")
        happening = asyncio.create_task(trouble(running, state, reached))
        async for outcome in rollout.outcomes():
            seen.append(outcome.index)
            said[outcome.index] = outcome.stdout
        await happening
        summary = await rollout.wait()
        # And afterwards it is as if nothing had been.
        results = await cluster.map("host", ["echo after"] * 8)
        assert sorted(seen) == list(range(N))
        assert said == {number: f"{number}\n" for number in range(N)}
        assert summary.succeeded == N
        assert [result.stdout for result in results] == ["after\n"] * 8
    await wait_until_whole(running.url)


async def publish_until(bus: JetStreamBus, log: Log, number: int, stop: asyncio.Event) -> dict[str, Stored]:
    """Publish without waiting until told to stop; return what was acknowledged."""
    under_way: dict[str, asyncio.Future[Stored]] = {}
    count = 0
    while not stop.is_set():
        for _ in range(50):
            id = f"{number}-{count}"
            under_way[id] = bus.publish(log.subject(), id.encode(), id)
            count += 1
        await asyncio.sleep(0.005)
    answers = await asyncio.gather(*under_way.values(), return_exceptions=True)
    assert all(isinstance(each, Stored | BusError) for each in answers)
    return {id: each for id, each in zip(under_way, answers, strict=True) if isinstance(each, Stored)}


async def test_with_sync_always_no_acknowledged_message_of_a_single_broker_is_lost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kills, publishers = 5, 4
    log = Log(max_bytes=1024**3)
    async with EmbeddedBroker(tmp_path, port=0, sync_interval="always") as broker:
        buses = [await JetStreamBus.connect(broker.url, deadline_s=60) for _ in range(publishers)]
        await buses[0].ensure([log.stream])
        stop = asyncio.Event()
        publishing = [asyncio.create_task(publish_until(bus, log, number, stop)) for number, bus in enumerate(buses)]
        for _ in range(kills):
            before = await buses[0].last_sequence(log.name)
            async with asyncio.timeout(60):  # only a broker with something to lose is worth a kill
                while await buses[0].last_sequence(log.name) < before + 200:
                    await asyncio.sleep(0.02)
            await broker.kill()
            await broker.start()
        stop.set()
        acknowledged: dict[str, Stored] = {}
        for each in await asyncio.gather(*publishing):
            acknowledged |= each
        # Killed once more: what was confirmed last, too, is there for whoever comes after.
        await broker.kill()
        await broker.start()
        last = await buses[0].last_sequence(log.name)
        kept = await take(await buses[0].reader(log.name), last, within_s=60)
        for bus in buses:
            await bus.close()
    where = {message.id: message.sequence for message in kept}
    assert len(where) == len(kept)  # nothing is stored twice
    assert {id: each.sequence for id, each in acknowledged.items()} == {id: where.get(id) for id in acknowledged}
    assert len(acknowledged) > 200 * kills
    with capfd.disabled():
        sys.stdout.write(
            f"\nsync_interval always, {kills + 1} kills: all of {len(acknowledged)} acknowledged messages are there\n"
        )
