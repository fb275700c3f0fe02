"""kill -9 of any process of the system in the middle of a rollout: it completes, each sandbox exactly once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import shoal
from shoal.cli import statefile
from shoal.cli.system import LocalSystem
from shoal_executor.drivers.zygote.forkserver import entries

pytestmark = [pytest.mark.broker, pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]

N = 256


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[LocalSystem, Path]]:
    state = tmp_path_factory.mktemp("chaos")
    async with LocalSystem(state, port=0) as system:
        yield system, state


def pid_of(state: Path, service: str) -> int:
    running = statefile.read(state)
    assert running is not None
    return int(running.services[service]["pid"])


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["scheduler", "placement", "snapshot", "executor", "broker"])
async def test_a_rollout_of_256_survives_the_death_of(
    system: tuple[LocalSystem, Path], victim: str, tmp_path: Path
) -> None:
    running, state = system
    (tmp_path / "template").mkdir(mode=0o755)
    async with shoal.connect(running.url) as cluster:
        commands = [f"sleep 0.1; echo {number}" for number in range(N)]
        rollout = await cluster.rollout("host", n=N, commands=commands, run=f"kill-{victim}", timeout="5m")
        seen: list[int] = []
        said: dict[int, str] = {}
        killed = 0
        async with asyncio.timeout(200):
            async for outcome in rollout.outcomes():
                seen.append(outcome.index)
                said[outcome.index] = outcome.stdout
                if len(seen) == 20:
                    killed = pid_of(state, victim)
                    os.kill(killed, signal.SIGKILL)
                    # While it is away, something new is asked of every service, the catalogue included.
                    other = await cluster.submit(f"dir:{tmp_path / 'template'}", n=1, run=f"kill-{victim}")
            assert sorted(seen) == list(range(N))
            assert said == {number: f"{number}\n" for number in range(N)}
            summary = await rollout.wait()
            assert summary.succeeded == N
            late = await cluster.attach(other)
            sandboxes = [sandbox.index async for sandbox in late.ready()]
            assert sandboxes == [0]
            await late.release()
        assert pid_of(state, victim) != killed


@pytest.mark.timeout(240)
async def test_interactive_sandboxes_outlive_their_executor(system: tuple[LocalSystem, Path]) -> None:
    running, state = system
    async with shoal.connect(running.url) as cluster:
        rollout = await cluster.rollout("host", n=4, run="adopted", timeout="5m")
        sandboxes = [sandbox async for sandbox in rollout.ready()]
        for number, sandbox in enumerate(sandboxes):
            assert (await sandbox.run(f"echo {number} > note; echo ran >> count")).ok
        waiting = [
            asyncio.create_task(s.run("echo ran >> count; until [ -e go ]; do sleep 0.01; done; cat note count"))
            for s in sandboxes
        ]
        await asyncio.sleep(0.3)
        os.kill(pid_of(state, "executor"), signal.SIGKILL)
        async with asyncio.timeout(100):
            for sandbox in sandboxes:
                await sandbox.run("touch go")
            said = [(await each).stdout for each in waiting]
            assert said == [f"{number}\nran\nran\n" for number in range(4)]
            assert {sandbox.attempt for sandbox in sandboxes} == {0}
            await rollout.release()
            summary = await rollout.wait()
        assert summary.lost == 0


def fork_servers(state: Path) -> list[int]:
    return [entry.pid for _, entry in entries(state / "executor" / "forks")]


async def kill_node(state: Path) -> None:
    """Kill an executor with everything that would let its sandboxes outlive it."""
    servers = fork_servers(state)
    assert servers
    os.kill(pid_of(state, "executor"), signal.SIGKILL)
    for pid in servers:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(240)
async def test_interactive_sandboxes_of_a_killed_node_are_lost_and_never_a_result(
    system: tuple[LocalSystem, Path],
) -> None:
    running, state = system
    async with shoal.connect(running.url) as cluster:
        rollout = await cluster.rollout("host", n=4, run="lost", timeout="5m")
        sandboxes = [sandbox async for sandbox in rollout.ready()]
        waiting = [asyncio.create_task(sandbox.run("sleep 300")) for sandbox in sandboxes]
        assert (await sandboxes[0].run("true")).ok
        await kill_node(state)
        async with asyncio.timeout(100):
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(outcome, shoal.SandboxLost) for outcome in outcomes), outcomes
            with pytest.raises(shoal.SandboxLost):
                await sandboxes[0].run("true")
            summary = await rollout.wait()
        assert summary.lost == 4
        assert summary.succeeded == summary.failed == 0


@pytest.mark.timeout(240)
async def test_interactive_sandboxes_start_again_where_that_was_asked_for(
    system: tuple[LocalSystem, Path],
) -> None:
    running, state = system
    async with shoal.connect(running.url) as cluster:
        rollout = await cluster.rollout("host", n=3, run="again", timeout="5m", on_lost="restart")
        first = [sandbox async for sandbox in rollout.ready()]
        await kill_node(state)
        async with asyncio.timeout(100):
            with pytest.raises(shoal.SandboxLost):
                await first[0].run("sleep 300")
            second = [sandbox async for sandbox in rollout.ready()]
            assert sorted(sandbox.index for sandbox in second) == [0, 1, 2]
            assert {sandbox.attempt for sandbox in second} == {1}
            assert (await second[0].run("echo new")).stdout == "new\n"
            await rollout.release()
