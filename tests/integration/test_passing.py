"""A scheduler that fails on a message, with a real broker: it goes on without, and whoever looks sees why."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus
from shoal.runtime.cluster import ensure_cluster
from shoal.wire import messages as m, streams, subjects
from shoal.wire.codec import encode

pytestmark = pytest.mark.broker

FRAGILE = """
import sys
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_scheduler.service import run
from shoal.runtime.options import Settings
from shoal.runtime.process import serve

handle = SchedulerCore.handle

def fails(self, message, cause):
    if getattr(message, "rollout", "") == "poison":
        vars(self).clear()
        raise KeyError("what only its tenant may read")
    return handle(self, message, cause)

SchedulerCore.handle = fails
serve("scheduler", Settings(url=sys.argv[1]), lambda context: run(context, 1000, "fair"))
"""


@contextlib.contextmanager
def scheduler(url: str) -> Iterator[subprocess.Popen[str]]:
    """One that runs; whatever a test finds, it does not outlive it."""
    with subprocess.Popen([sys.executable, "-c", FRAGILE, url], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # Popen waits for it


def shoal(url: str, *arguments: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    done = subprocess.run(
        [sys.executable, "-m", "shoal.cli", *arguments], capture_output=True, text=True, timeout=60,
        env=environment | {"SHOAL_URL": url},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


async def asked(url: str) -> None:
    """Submit three rollouts, of which the second is poison."""
    bus = await JetStreamBus.connect(url, name="test")
    try:
        await ensure_cluster(bus)
        for name in ("a", "poison", "b"):
            submitted = m.RolloutSubmitted(name, "t", "r", m.RolloutSpec("host", 1))
            await bus.publish(subjects.rollout_request(0, "t", "r"), encode(submitted), name)
    finally:
        await bus.close()


async def answered(url: str) -> None:
    """Wait until what was submitted is acted upon: a template is asked for by the first, and both are queued."""
    bus = await JetStreamBus.connect(url, name="test")
    try:
        async with asyncio.timeout(60):
            while await bus.last_sequence(streams.dead().name) < 1 or await bus.last_sequence("SHOAL_SNAPSHOT") < 1:
                await asyncio.sleep(0.05)
    finally:
        await bus.close()


def test_a_scheduler_goes_on_without_what_it_fails_on(broker: EmbeddedBroker, tmp_path: Path) -> None:
    asyncio.run(asked(broker.url))
    for said in ("noted what the core failed on", "a message is passed over from now on"):
        with scheduler(broker.url) as process:
            _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert said in err
    with scheduler(broker.url) as process:
        asyncio.run(answered(broker.url))
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err

    status, text = shoal(broker.url, "dead", "ls", "--json")
    (letter,) = [json.loads(line) for line in text.splitlines()]
    assert (status, letter["reader"], letter["sequence"]) == (0, "scheduler.0", 2)
    assert letter["reason"].startswith("passed over: the core failed on it")
    path = str(tmp_path / "log.shoal")
    assert shoal(broker.url, "export", "-o", path)[0] == 0
    assert shoal(broker.url, "archive", "verify", path)[0] == 0
    status, text = shoal(broker.url, "replay", "verify", path)
    assert status == 0, text
    for source in ([], ["--from", path]):
        for begin in ("--checkpoints", "--no-checkpoints"):
            status, text = shoal(broker.url, "state", "scheduler", "--json", begin, *source)
            assert status == 0, text
            assert '"a"' in text
            assert '"b"' in text
            assert "poison" not in text
    status, text = shoal(broker.url, "archive", "info", path)
    assert "message 2 of the log of scheduler.0 is passed over" in text
    status, text = shoal(broker.url, "archive", "info", path, "--json")
    (told,) = json.loads(text)["passed_over"]
    assert (told["partition"], told["sequence"], told["passed_over"]) == ("scheduler.0", 2, True)
    assert told["why"].startswith("KeyError at ")
    assert "what only its tenant" not in text
