"""Sandboxes outlive the kill -9 of their driver's process, and the next one goes on with them."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from conformance.drivers import fresh, one, processes, sh
from shoal.runtime.lease import start_time
from shoal.wire.messages import Command, EndReason, FileOp
from shoal.wire.values import APPEND
from shoal_executor.drivers.protocol import DriverError
from shoal_executor.drivers.zygote.driver import ZygoteDriver
from shoal_executor.drivers.zygote.forkserver import Entry, entries

pytestmark = pytest.mark.sandbox

PROGRAM = Path(__file__).parent / "left_behind.py"
_KNOBS = ("memory.limit_in_bytes", "memory.max")
Exits = dict[str, tuple[EndReason, str]]


async def left_behind(state: Path, *names: str, patience_s: float = 60) -> list[Entry]:
    """Have a driver start sandboxes, and kill it; returns its fork servers."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), "zygote", str(state), *names, stdout=subprocess.PIPE,
        env={**os.environ, "PATIENCE_S": str(patience_s)},
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        await process.wait()
    found = [entry for _, entry in entries(state / "forks")]
    assert found
    return found


async def gone(pid: int, start: int) -> None:
    async with asyncio.timeout(30):
        while start_time(pid) == start:
            await asyncio.sleep(0.02)


def groups(name: str) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"*/shoal-*/{name}")) + list(Path("/sys/fs/cgroup").glob(f"shoal-*/{name}"))


async def test_what_was_there_is_there_and_nothing_runs_twice(tmp_path: Path) -> None:
    state, name, other = tmp_path / "state", fresh(), fresh()
    servers = await left_behind(state, name, other)
    exits: Exits = {}
    driver = ZygoteDriver(state)
    await driver.open(lambda name, *why: exits.update({name: why}), [name])
    try:
        assert await driver.list() == [name]
        assert not exits
        assert not groups(other)
        assert (await driver.read_file(name, "note")).data == b"kept"
        assert int((await sh(driver, name, processes("sleep 1000"))).stdout) >= 1
        # What was asked before is asked again, as by an executor that finds it in its journal.
        again = {
            id: asyncio.create_task(driver.run(name, Command(line="echo twice", session=session), id=id))
            for id, session in (("done", False), ("slow", False), ("talk", False), ("session", True))
        }
        assert (await again.pop("done")).stdout == b"d\n"
        assert await driver.write_file(name, "log", b"once", offset=APPEND, id="append") == 4
        await driver.manage_files(name, FileOp.REMOVE, "old", id="remove")
        with pytest.raises(DriverError, match="settled"):
            await driver.run(name, Command(line="echo twice"), id="settled")
        assert not any(task.done() for task in again.values())
        await sh(driver, name, "touch /root/go")
        async with asyncio.timeout(20):
            found = {id: await task for id, task in again.items()}
        assert found["slow"].stdout == b"a\nb\n"
        assert found["talk"].stdout == b"talk\n"
        assert found["session"].stdout == b"yes\n"
        for id in ("settled", "done", "slow", "session"):
            assert (await driver.read_file(name, id)).data == b"once\n"
        assert (await sh(driver, name, "pwd", session=True)).stdout == b"/tmp\n"
        # The same fork server goes on, and others have other users.
        more = await one(driver)
        assert (await sh(driver, more, "echo new")).stdout == b"new\n"
        assert [entry.pid for _, entry in entries(state / "forks")] == [servers[0].pid]
    finally:
        await driver.close()
    assert start_time(servers[0].pid) != servers[0].start
    assert not groups(name)
    assert list((state / "forks").iterdir()) == []


async def test_killed_again_and_again(tmp_path: Path) -> None:
    state, name = tmp_path / "state", fresh()
    await left_behind(state, name)
    for number in range(3):
        program = (
            "import asyncio, os, sys; from pathlib import Path\n"
            "from shoal.wire.messages import Command\n"
            "from shoal_executor.drivers.zygote.driver import ZygoteDriver\n"
            "async def main():\n"
            "    driver = ZygoteDriver(Path(sys.argv[1]))\n"
            "    await driver.open(print, [sys.argv[2]])\n"
            "    await driver.run(sys.argv[2], Command(line='echo x >> /root/lives'), id=sys.argv[3])\n"
            "    os.kill(os.getpid(), 9)\n"
            "asyncio.run(main())\n"
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(state), name, f"c{number}")
        async with asyncio.timeout(60):
            assert await process.wait() == -signal.SIGKILL
    driver = ZygoteDriver(state)
    await driver.open(lambda *_: None, [name])
    assert (await driver.read_file(name, "lives")).data == b"x\n" * 3
    assert (await driver.run(name, Command(line="echo y"), id="c1")).stdout == b""
    await driver.close()


async def test_what_ended_meanwhile_is_told_with_its_reason(tmp_path: Path) -> None:
    state, hungry, killed, healthy = tmp_path / "state", fresh(), fresh(), fresh()
    await left_behind(state, healthy, hungry, killed)
    limited = [
        path for path in groups(hungry) if (path / "memory.limit_in_bytes").exists() or (path / "memory.max").exists()
    ]
    (first,) = [int(pid) for path in groups(killed)[:1] for pid in (path / "cgroup.procs").read_text().split()]
    os.kill(first, signal.SIGKILL)
    if limited and os.geteuid() == 0:
        # Somebody in the sandbox exceeds its memory, and its first process ends.
        (agent,) = (limited[0] / "cgroup.procs").read_text().split()
        eater = subprocess.Popen([sys.executable, "-c", "input(); b = bytearray(10**9)"], stdin=subprocess.PIPE)
        (limited[0] / "cgroup.procs").write_text(str(eater.pid))
        assert eater.stdin is not None
        eater.stdin.write(b"\n")
        eater.stdin.close()
        assert await asyncio.to_thread(eater.wait, 30) == -signal.SIGKILL
        os.kill(int(agent), signal.SIGKILL)
        await gone(int(agent), start_time(int(agent)) or -1)
    exits: Exits = {}
    driver = ZygoteDriver(state)
    await driver.open(lambda name, *why: exits.update({name: why}), [healthy, hungry, killed, "never-0"])
    assert await driver.list() == [healthy] if limited else sorted(await driver.list()) == sorted([healthy, hungry])
    assert exits[killed][0] is EndReason.DIED
    assert exits["never-0"][0] is EndReason.NODE_LOST
    if limited:
        assert exits[hungry][0] is EndReason.OUT_OF_MEMORY
    assert not groups(killed)
    await driver.close()


async def test_a_fork_server_that_died_takes_its_sandboxes_and_is_told(tmp_path: Path) -> None:
    state, name = tmp_path / "state", fresh()
    (server,) = await left_behind(state, name)
    os.kill(server.pid, signal.SIGKILL)
    await gone(server.pid, server.start)
    exits: Exits = {}
    driver = ZygoteDriver(state)
    await driver.open(lambda name, *why: exits.update({name: why}), [name])
    assert exits[name][0] is EndReason.NODE_LOST
    assert await driver.list() == []
    await one(driver)
    await driver.close()


async def test_one_of_another_version_is_ended(tmp_path: Path) -> None:
    state, name = tmp_path / "state", fresh()
    (server,) = await left_behind(state, name)
    ((place, entry),) = entries(state / "forks")
    changed = msgspec.structs.replace(entry, protocol=entry.protocol + 1)
    place.with_name(f"{place.name}.json").write_bytes(msgspec.json.encode(changed))
    exits: Exits = {}
    driver = ZygoteDriver(state)
    await driver.open(lambda name, *why: exits.update({name: why}), [name])
    assert exits[name][0] is EndReason.NODE_LOST
    assert start_time(server.pid) != server.start
    await driver.close()


async def test_when_nobody_comes_it_ends_by_itself(tmp_path: Path) -> None:
    state, name = tmp_path / "state", fresh()
    (server,) = await left_behind(state, name, patience_s=0.5)
    inside = [int(pid) for path in groups(name)[:1] for pid in (path / "cgroup.procs").read_text().split()]
    starts = [start_time(pid) or -1 for pid in inside]
    await gone(server.pid, server.start)
    for pid, start in zip(inside, starts, strict=True):
        await gone(pid, start)
    driver = ZygoteDriver(state)
    await driver.open(lambda *_: None)
    assert await driver.list() == []
    await driver.close()
    assert not groups(name)


async def test_two_drivers_do_not_share_a_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_executor.drivers.lock._LOCK_S", 0.1)
    first = ZygoteDriver(tmp_path / "state")
    await first.open(lambda *_: None)
    with pytest.raises(DriverError, match="another executor uses"):
        await ZygoteDriver(tmp_path / "state").open(lambda *_: None)
    await first.close()
    second = ZygoteDriver(tmp_path / "state")
    await second.open(lambda *_: None)
    await second.close()
