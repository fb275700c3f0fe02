"""A stream fills up in the middle of rollouts: whoever publishes is told so, and all goes on when there is room."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

import shoal
from chaos.audit import Account
from shoal.bus.jetstream import JetStreamBus
from shoal.cli.exits import Exit
from shoal.cli.system import LocalSystem
from shoal.wire import streams

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

HANDS = 16
JOBS = 48
LOG = streams.rollout(0).name
PLACEMENT = streams.placement(0).name
INBOX = streams.executor("local").name
TRAJECTORY = streams.trajectory(0).name


class Scene:
    """A system with a trainer that has sandboxes in hand and a job under way, and a hand on the streams' limits."""

    def __init__(self, state: Path, url: str, driver: str, bus: JetStreamBus) -> None:
        self.state = state
        self.url = url
        self.driver = driver
        self.bus = bus

    async def resize(self, stream: str, max_bytes: int) -> int:
        """Give a stream another limit; returns what it was."""
        config = (await self.bus._api.ask(f"STREAM.INFO.{stream}"))["config"]
        await self.bus._api.ask(f"STREAM.UPDATE.{stream}", {**config, "max_bytes": max_bytes})
        return int(config["max_bytes"])

    def complaints(self) -> Counter[str]:
        """Return how many lines of each log tell of a full stream."""
        logs = (self.state / "log").glob("*.log")
        return Counter({log.name: log.read_text().count("maximum bytes exceeded") for log in logs})

    @asynccontextmanager
    async def full(self, stream: str) -> AsyncIterator[None]:
        """The stream takes nothing meanwhile, and loses nothing that it has; nobody fills a log with complaints."""
        before, first = self.complaints(), await self.bus.first_sequence(stream)
        room = await self.resize(stream, 1)
        try:
            assert await self.bus.first_sequence(stream) == first
            yield
            new = self.complaints() - before
            assert new.keys() - {"executor.log", "scheduler.log", "placement.log", "snapshot.log"} == set()
            assert all(count <= 4 for count in new.values()), new
        finally:
            await self.resize(stream, room)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["simulated", pytest.param("zygote", marks=pytest.mark.sandbox)]
)
async def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    state = tmp_path_factory.mktemp("full")
    async with LocalSystem(state, port=0, driver=request.param) as system:
        bus = await JetStreamBus.connect(system.url)
        try:
            yield Scene(state, system.url, request.param, bus)
        finally:
            await bus.close()


def said(scene: Scene, text: str) -> str:
    return f"{text}\n" if scene.driver == "zygote" else f"simulated: echo {text}\n"


async def jobs(cluster: shoal.Cluster, run: str) -> shoal.Rollout:
    return await cluster.rollout("host", n=JOBS, commands=[f"sleep 0.5; echo {i}" for i in range(JOBS)], run=run)


async def hands(cluster: shoal.Cluster, run: str) -> tuple[shoal.Rollout, list[shoal.Sandbox]]:
    rollout = await cluster.rollout("host", n=HANDS, run=run, timeout="5m")
    return rollout, [sandbox async for sandbox in rollout.ready()]


async def say(scene: Scene, sandboxes: list[shoal.Sandbox], word: str) -> None:
    results = await asyncio.gather(*(sandbox.run(f"echo {word}", id=word) for sandbox in sandboxes))
    assert [result.stdout for result in results] == [said(scene, word)] * HANDS


async def conclude_jobs(scene: Scene, rollout: shoal.Rollout) -> None:
    async with asyncio.timeout(120):
        seen = [outcome async for outcome in rollout.outcomes()]
        summary = await rollout.wait()
    assert sorted(outcome.index for outcome in seen) == list(range(JOBS))
    assert summary.succeeded == JOBS
    if scene.driver == "zygote":
        assert {outcome.index: outcome.stdout for outcome in seen} == {i: f"{i}\n" for i in range(JOBS)}
    await settled(scene, rollout.id, JOBS)
    (await Account(rollout.id).read(scene.bus)).check_jobs(JOBS)


async def conclude_hands(scene: Scene, rollout: shoal.Rollout, commands: int) -> None:
    await rollout.release()
    async with asyncio.timeout(120):
        assert (await rollout.wait()).counts == {shoal.EndReason.RELEASED: HANDS}
    await settled(scene, rollout.id, HANDS)
    (await Account(rollout.id).read(scene.bus)).check_released(HANDS, commands)


async def settled(scene: Scene, rollout: str, n: int) -> None:
    """Wait until every sandbox of a rollout is cleared away: a trainer hears of its end before that."""
    async with asyncio.timeout(60):
        while len((await Account(rollout).read(scene.bus)).cleared) < n:
            await asyncio.sleep(0.1)


async def test_the_rollout_log(scene: Scene) -> None:
    async with shoal.connect(scene.url) as cluster:
        rollout, sandboxes = await hands(cluster, "log")
        await say(scene, sandboxes, "one")
        job = await jobs(cluster, "log")
        async with scene.full(LOG):
            with pytest.raises(shoal.StreamFull, match="--max-bytes") as caught:
                await cluster.submit("host", command="true", run="log")
            assert (caught.value.stream, LOG in str(caught.value)) == (LOG, True)
            with pytest.raises(shoal.StreamFull):
                await cluster.rollout("host", n=2, run="log")
            with pytest.raises(shoal.StreamFull):
                await cluster.map("host", ["true"] * 2, run="log")
            with pytest.raises(shoal.StreamFull):
                await rollout.release()
            with pytest.raises(shoal.StreamFull):
                await rollout.cancel()
            found = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "shoal.cli", "run", "--url", scene.url, "host", "--", "true"],
                capture_output=True, text=True, timeout=60,
                env={name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")},
            )  # fmt: skip
            assert found.returncode == Exit.STREAM_FULL
            assert LOG in found.stderr
            assert len(found.stderr.strip().splitlines()) == 1
            await say(scene, sandboxes, "two")  # commands and their answers take other ways
            await asyncio.sleep(2)
        await conclude_jobs(scene, job)
        await conclude_hands(scene, rollout, 2)
        await conclude_jobs(scene, await jobs(cluster, "log"))


async def test_the_placement_log_for_longer_than_the_silence_of_a_lost_node(scene: Scene) -> None:
    async with shoal.connect(scene.url) as cluster:
        rollout, sandboxes = await hands(cluster, "placement")
        job = await jobs(cluster, "placement")
        async with scene.full(PLACEMENT):
            late = await jobs(cluster, "placement")  # the request is stored; nobody can be asked to place it
            await say(scene, sandboxes, "one")
            await asyncio.sleep(13)
            assert late.status().ended == 0
            await say(scene, sandboxes, "two")
        await conclude_jobs(scene, job)
        await conclude_jobs(scene, late)
        await conclude_hands(scene, rollout, 2)


async def test_an_executors_inbox(scene: Scene) -> None:
    async with shoal.connect(scene.url) as cluster:
        rollout, sandboxes = await hands(cluster, "inbox")
        await say(scene, sandboxes, "one")
        job = await jobs(cluster, "inbox")
        async with scene.full(INBOX):
            for _ in range(2):
                errors = await asyncio.gather(*(each.run("echo two", id="two") for each in sandboxes),
                                              return_exceptions=True)  # fmt: skip
                assert all(isinstance(error, shoal.StreamFull) and error.stream == INBOX for error in errors), errors
            with pytest.raises(shoal.StreamFull):
                await sandboxes[0].files.write("f", "text")
            late = await jobs(cluster, "inbox")
            given_up = await cluster.rollout("host", n=4, run="inbox", timeout="5m")
            await given_up.release()  # its start is refused, and must not come after its end
            await asyncio.sleep(2)
            assert late.status().ended == 0
        await say(scene, sandboxes, "two")  # with the ids that were refused
        await conclude_jobs(scene, job)
        await conclude_jobs(scene, late)
        await conclude_hands(scene, rollout, 2)
        await settled(scene, given_up.id, 4)


async def test_the_trajectory(scene: Scene) -> None:
    async with shoal.connect(scene.url) as cluster:
        rollout, sandboxes = await hands(cluster, "trajectory")
        await say(scene, sandboxes, "one")
        job = await jobs(cluster, "trajectory")
        async with scene.full(TRAJECTORY):
            waiting = asyncio.create_task(say(scene, sandboxes, "two"))
            late = await jobs(cluster, "trajectory")
            await asyncio.sleep(2)
            assert not waiting.done()
        async with asyncio.timeout(60):
            await waiting
        await conclude_jobs(scene, job)
        await conclude_jobs(scene, late)
        await conclude_hands(scene, rollout, 2)
