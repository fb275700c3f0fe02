"""Messages nobody can use, in a real system: put aside, looked at and published again with `shoal dead`."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import shoal
from shoal.bus.jetstream import JetStreamBus
from shoal.cli.exits import Exit
from shoal.cli.system import LocalSystem
from shoal.wire import subjects
from shoal.wire.codec import encode
from shoal.wire.messages import (
    Command,
    CommandResult as Result,
    RolloutConcluded,
    RolloutSpec,
    RolloutSubmitted,
    SandboxesFinished,
    SandboxResult,
    Tick,
)

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalSystem]:
    async with LocalSystem(tmp_path_factory.mktemp("dead"), port=0, driver="simulated") as system:
        yield system


async def run(system: LocalSystem, *arguments: str) -> tuple[int, str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    argv = [sys.executable, "-m", "shoal.cli", "dead", *arguments]
    done = await asyncio.to_thread(
        subprocess.run, argv, capture_output=True, text=True, timeout=60, env=environment | {"SHOAL_URL": system.url}
    )
    return done.returncode, done.stdout, done.stderr


async def listed(system: LocalSystem, count: int, *filters: str) -> list[dict[str, Any]]:
    """Return what `shoal dead ls` shows as soon as there are so many."""
    async with asyncio.timeout(60):
        while True:
            status, out, problem = await run(system, "ls", "--json", *filters)
            assert status == 0, problem
            found = [json.loads(line) for line in out.splitlines()]
            if len(found) >= count:
                return found


async def test_what_nobody_can_use_is_put_aside_and_shown(system: LocalSystem) -> None:
    bus = await JetStreamBus.connect(system.url)
    try:
        log = subjects.rollout_request(0, "default", "default")
        await bus.publish(log, b"\xc1 no message", "garbage")
        lie = SandboxesFinished("r1", 0, "n", "e", "simulated", (SandboxResult(-1, Result(0), 0),))
        reports = subjects.rollout_sandbox(0, "default", "default")
        await bus.publish(reports, encode(lie), "against the law")
        await bus.publish(subjects.executor_control("local"), encode(Tick(1)), "not for an executor")
        await bus.publish(subjects.placement_request(0), b"", "nothing")
    finally:
        await bus.close()
    found = {(each["stream"], each["type"]): each for each in await listed(system, 4)}
    assert found.keys() == {
        ("SHOAL_ROLLOUT_0", None), ("SHOAL_ROLLOUT_0", "SandboxesFinished"), ("SHOAL_EXECUTOR_local", "Tick"),
        ("SHOAL_PLACEMENT_0", None),
    }  # fmt: skip
    garbage = found["SHOAL_ROLLOUT_0", None]
    assert (garbage["reader"], garbage["subject"], garbage["size"]) == ("scheduler.0", log, 12)
    law = found["SHOAL_ROLLOUT_0", "SandboxesFinished"]
    assert "index from 0" in law["reason"]
    assert law["message"]["rollout"] == "r1"
    assert [each["type"] for each in await listed(system, 1, "--reader", "executor.*")] == ["Tick"]
    assert len(await listed(system, 1, "--stream", "SHOAL_PLACEMENT_0", "-n", "1", "--since", "1h")) == 1

    _, table, _ = await run(system, "ls")
    assert "SandboxesFinished" in table
    assert "undecodable" in table
    _, out, _ = await run(system, "show", str(garbage["letter"]))
    assert "c1 20 6e 6f 20 6d 65 73 73 61 67 65" in out
    _, out, _ = await run(system, "show", str(garbage["letter"]), "--json")
    assert bytes.fromhex(json.loads(out)["payload"]) == b"\xc1 no message"
    status, _, problem = await run(system, "show", "4000")
    assert status == Exit.DEAD_LETTER
    assert "shoal dead ls" in problem

    # Published again it is as useless as before, and says so in a letter of its own.
    tick = str(found["SHOAL_EXECUTOR_local", "Tick"]["letter"])
    status, out, problem = await run(system, "retry", tick, "--json")
    assert (status, json.loads(out)["duplicate"]) == (0, False), problem
    status, out, problem = await run(system, "retry", tick, "--json")
    assert (status, json.loads(out)["duplicate"]) == (0, True), problem
    first, second = await listed(system, 2, "--reader", "executor.*")
    assert second["sequence"] > first["sequence"]
    status, out, problem = await run(system, "retry", "--all", "--stream", "SHOAL_PLACEMENT_*", "--json")
    assert (status, len(out.splitlines())) == (0, 1), problem
    status, _, problem = await run(system, "retry", "4000")
    assert status == Exit.DEAD_LETTER
    assert len(problem.strip().splitlines()) == 1


async def test_a_request_that_was_put_aside_runs_when_it_is_published_again(system: LocalSystem) -> None:
    async with shoal.connect(system.url) as cluster:
        await cluster.add_tenant("default")
        spec = RolloutSpec("host", 3, (Command(line="true"),))
        request = RolloutSubmitted("rstranger", "stranger", "default", spec)
        bus = await JetStreamBus.connect(system.url)
        try:
            subject = subjects.rollout_request(0, "stranger", "default")
            await bus.publish(subject, encode(request), "rstranger:submitted")
        finally:
            await bus.close()
        async with asyncio.timeout(60):
            while not (found := [each async for each in cluster.dead_letters() if each.message == request]):
                await asyncio.sleep(0.05)
        await cluster.add_tenant("stranger")
        assert not (await cluster.retry_dead(found[0])).duplicate
        async with asyncio.timeout(60):
            async for event in cluster.events(follow=True, since="1h"):
                if isinstance(event.message, RolloutConcluded) and event.message.rollout == "rstranger":
                    assert event.message.counts == (("succeeded", 3),)
                    return
