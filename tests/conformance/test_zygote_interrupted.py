"""A driver killed at awkward moments: what was half said, half started or unheard is right with the next one."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conformance.drivers import HOST, fresh, one, sh, start
from shoal.runtime.lease import start_time
from shoal.wire.messages import Command, EndReason
from shoal_executor.drivers import cgroups
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.protocol import DriverError, NoSuchSandboxError, Started, StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver
from shoal_executor.drivers.zygote.forkserver import entries

pytestmark = pytest.mark.sandbox

BEGIN = """
import asyncio, sys
from pathlib import Path
from shoal.wire.messages import Command, InputFile, Resources, Snapshot
from shoal_executor.drivers.protocol import StartFailed, StartSpec
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.zygote.driver import ZygoteDriver
state, *names = sys.argv[1:]
async def started(files=()):
    driver = ZygoteDriver(Path(state))
    await driver.open(lambda *_: None)
    spec = StartSpec(Snapshot("host", "host"), Resources(memory=64 * 1024**2), files)
    async for outcome in driver.start(names, spec):
        assert not isinstance(outcome, StartFailed), outcome
        for name in outcome.names:
            say(name)
    return driver
def say(line):
    print(line, flush=True)
"""
WAIT = """
async def main():
    driver = await started()
    say("ready")
    await asyncio.sleep(1000)
asyncio.run(main())
"""
SLEEPER = """
async def main():
    driver = await started()
    await driver.run(names[0], Command(line="sleep 1000 >/dev/null 2>&1 &"))
    say("ready")
    await asyncio.sleep(1000)
asyncio.run(main())
"""


class Victim:
    """A driver in a process of its own; `line` is what it says."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            return (await asyncio.to_thread(self.process.stdout.readline)).strip()

    async def until(self, line: str) -> None:
        while (heard := await self.line()) != line:
            assert heard, "the driver's process ended early"

    async def kill(self) -> None:
        self.process.kill()
        await asyncio.to_thread(self.process.wait)


@asynccontextmanager
async def victim(program: str, state: Path, *names: str) -> AsyncIterator[Victim]:
    command = [sys.executable, "-c", BEGIN + program, str(state), *names]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Victim(process)
        finally:
            process.kill()


class Exits(dict[str, tuple[EndReason, str]]):
    """What a driver told of ends."""

    def __call__(self, name: str, reason: EndReason, detail: str) -> None:
        assert name not in self, "an end is told once"
        self[name] = reason, detail


@asynccontextmanager
async def next_driver(state: Path, *keep: str) -> AsyncIterator[tuple[ZygoteDriver, Exits]]:
    exits, driver = Exits(), ZygoteDriver(state)
    await driver.open(exits, keep)
    try:
        yield driver, exits
    finally:
        await driver.close()


def groups(name: str) -> list[Path]:
    # Some are below the executor's own group; what others have there comes and goes meanwhile, and walk bears that.
    return [Path(place, name) for place, names, _ in os.walk("/sys/fs/cgroup") if "/shoal-" in place and name in names]


def agent_of(name: str) -> int:
    """Return the sandbox's first process, as the host numbers it."""
    if not groups(name):
        pytest.skip("without control groups nothing tells which process is whose")
    return min(int(pid) for pid in (groups(name)[0] / "cgroup.procs").read_text().split())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_an_end_the_killed_driver_never_read_is_told_to_the_next(tmp_path: Path) -> None:
    state, name = tmp_path / "state", fresh()
    async with victim(WAIT, state, name) as left:
        await left.until("ready")
        agent = agent_of(name)
        born = start_time(agent)
        left.process.send_signal(signal.SIGSTOP)
        os.kill(agent, signal.SIGKILL)
        await until(
            lambda: start_time(agent) != born
        )  # reaped: what is said of it goes to a driver that is not reading
        await asyncio.sleep(0.1)
        await left.kill()
    async with next_driver(state, name) as (driver, exits):
        assert exits[name][0] is EndReason.DIED
        assert await driver.list() == []
        assert not groups(name)
        # Another of that name is another sandbox.
        assert await start(driver, [name], StartSpec(HOST)) == [Started((name,))]
        assert len(exits) == 1


async def test_one_that_is_still_dying_is_told_as_dead_and_not_as_lost(tmp_path: Path) -> None:
    freezer = Path("/sys/fs/cgroup/freezer")
    if os.geteuid() != 0 or not (freezer / "cgroup.procs").exists():
        pytest.skip("this needs root, and version 1 of control groups")
    state, name, ice = tmp_path / "state", fresh(), freezer / fresh("ice")
    ice.mkdir()
    try:
        async with victim(SLEEPER, state, name) as left:
            await left.until("ready")
            agent = agent_of(name)
            children = [int(pid) for pid in (groups(name)[0] / "cgroup.procs").read_text().split() if int(pid) != agent]
            for pid in children:
                (ice / "cgroup.procs").write_text(str(pid))
            (ice / "freezer.state").write_text("FROZEN")
            await left.kill()
        os.kill(agent, signal.SIGKILL)
        await until(lambda: not os.listdir(f"/proc/{agent}/fd"))  # its links are cut; it waits for the frozen one
        exits, driver = Exits(), ZygoteDriver(state)
        opening = asyncio.create_task(driver.open(exits, [name]))
        await asyncio.sleep(1)
        (ice / "freezer.state").write_text("THAWED")
        await opening
        try:
            assert exits[name][0] is EndReason.DIED
            assert await driver.list() == []
            assert not groups(name)
        finally:
            await driver.close()
    finally:
        (ice / "freezer.state").write_text("THAWED")
        ice.rmdir()


async def test_memory_that_ran_out_once_is_not_held_against_later_commands(tmp_path: Path) -> None:
    eat = "head -c 300000000 /dev/zero | tail"
    program = f"""
async def main():
    driver = await started()
    result = await driver.run(names[0], Command(line={eat!r}))
    say(f"before {{result.out_of_memory}}")
    line = "touch /root/begun; while [ ! -e /root/go ]; do sleep 0.01; done; {eat}"
    away = asyncio.create_task(driver.run(names[0], Command(line=line), id="away"))
    while (await driver.run(names[0], Command(line="test -e /root/begun"))).exit_code:
        pass
    say("ready")
    await away
asyncio.run(main())
"""
    state, name = tmp_path / "state", fresh()
    async with victim(program, state, name) as left:
        await left.until(name)
        limited = await left.line() == "before True"
        await left.until("ready")
        await left.kill()
    async with next_driver(state, name) as (driver, exits):
        if not limited:
            pytest.skip("memory is not limited here")  # nothing is out of memory then; found out by whoever was killed
        assert not (await sh(driver, name, "exit 3")).out_of_memory
        await sh(driver, name, "touch /root/go")
        assert (await driver.run(name, Command(line="never"), id="away")).out_of_memory
        assert not (await sh(driver, name, "exit 3")).out_of_memory
        os.kill(agent_of(name), signal.SIGKILL)
        await until(lambda: name in exits)
        assert exits[name][0] is EndReason.DIED


async def test_that_memory_ran_out_is_told_again_until_it_is_settled(tmp_path: Path) -> None:
    program = """
async def main():
    driver = await started()
    result = await driver.run(names[0], Command(line="head -c 300000000 /dev/zero | tail"), id="eats")
    await driver.run(names[0], Command(line="exit 3"), id="fails")
    say(f"{result.out_of_memory}")  # what came of them is noted nowhere
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    state, name = tmp_path / "state", fresh()
    async with victim(program, state, name) as left:
        await left.until(name)
        limited = await left.line() == "True"
        await left.kill()
    async with next_driver(state, name) as (driver, _):
        if not limited:
            pytest.skip("memory is not limited here")  # nothing is out of memory then; found out by whoever was killed
        assert not (await driver.run(name, Command(line="never"), id="fails")).out_of_memory
        for _ in range(2):
            assert (await driver.run(name, Command(line="never"), id="eats")).out_of_memory
        group = driver._live[name].group
        assert driver._groups.told_oom_kills(group) == (driver._groups.oom_kills(group), {"eats"})
        driver.settle(name, ["fails", "eats"])
        assert driver._groups.told_oom_kills(group) == (driver._groups.oom_kills(group), set())
        assert not (await sh(driver, name, "exit 3")).out_of_memory


async def test_an_executor_started_from_another_control_group_finds_the_sandboxes_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_of = cgroups._v1_place
    here = place_of("memory")
    if os.geteuid() != 0 or here is None:
        pytest.skip("this needs root, and version 1 of control groups")
    state, name, other = tmp_path / "state", fresh(), fresh()
    async with victim(WAIT, state, name, other) as left:
        await left.until("ready")
        await left.kill()
    mine = here / fresh("test")
    mine.mkdir()
    monkeypatch.setattr(
        cgroups, "_v1_place", lambda controller: mine if controller == "memory" else place_of(controller)
    )
    try:
        async with next_driver(state, name) as (driver, _):
            assert not groups(other)
            assert (await sh(driver, name, "head -c 300000000 /dev/zero | tail")).out_of_memory
            new = await one(driver)
            assert [group for group in groups(new) if group.is_relative_to(mine)]
            await driver.destroy([name])
            assert not groups(name)
        assert not list(mine.glob("shoal-*"))
        assert not list(here.glob(f"shoal-*/{name}"))
    finally:
        mine.rmdir()


async def test_an_answer_to_a_dead_driver_reaches_nobody_else(tmp_path: Path) -> None:
    # Its agent sleeps while two asks arrive: the answer to the first already finds nobody, the second goes on running.
    program = """
async def main():
    driver = await started()
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    link = driver._live[names[0]].link
    link.say(frames.Write(1, "/root/a", b"x", 0, 0o644))
    line = "while [ ! -e /root/go ]; do sleep 0.01; done; touch /root/gone; exit 7"
    link.say(frames.Run(2, Command(line=line), True))
    say("said")
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    state, name = tmp_path / "state", fresh()
    async with victim(program, state, name) as left:
        await left.until("ready")
        agent = agent_of(name)
        os.kill(agent, signal.SIGSTOP)
        try:
            assert left.process.stdin is not None
            left.process.stdin.write("\n")
            left.process.stdin.flush()
            await left.until("said")
            await left.kill()
        finally:
            os.kill(agent, signal.SIGCONT)
    async with next_driver(state, name) as (driver, _):
        async with asyncio.timeout(20):
            while (await driver.read_file(name, "/root/a")).data != b"x":
                pass
        link = driver._live[name].link
        link._next = 1  # so that the next ask has the number of the one under way
        waiting = asyncio.create_task(sh(driver, name, "while [ ! -e /root/on ]; do sleep 0.01; done; exit 8"))
        await sh(driver, name, "touch /root/go; while [ ! -e /root/gone ]; do sleep 0.01; done; sleep 0.2")
        assert not waiting.done()
        await sh(driver, name, "touch /root/on")
        assert (await waiting).exit_code == 8


async def test_a_result_that_was_half_sent_is_sent_whole(tmp_path: Path) -> None:
    program = """
async def main():
    driver = await started()
    line = "while [ ! -e /root/go ]; do sleep 0.01; done; yes a | tr -dc a | head -c 900000; echo >> /root/ended"
    for id in ("a", "b", "c", "d"):
        command = Command(line=line, output_limit=1_000_000)
        asyncio.create_task(driver.run(names[0], command, lambda *_: None, id=id))
    late = "sleep 1; touch /root/go; while [ $(wc -c < /root/ended) -lt 4 ]; do sleep 0.01; done; touch /root/all"
    await driver.run(names[0], Command(line=f"({late}) >/dev/null 2>&1 &"))
    say("ready")
    import os, signal
    os.kill(os.getpid(), signal.SIGSTOP)
asyncio.run(main())
"""
    state, name = tmp_path / "state", fresh()
    async with victim(program, state, name) as left:
        await left.until("ready")
        await asyncio.sleep(1.5)  # each link holds some 200 kB: the agent is in the middle of a frame
        await left.kill()
    async with next_driver(state, name) as (driver, _):
        for id in ("a", "b", "c", "d"):
            async with asyncio.timeout(20):
                result = await driver.run(name, Command(line="never", output_limit=1_000_000), id=id)
            assert result.stdout == b"a" * 900_000
        assert (await driver.read_file(name, "/root/ended")).data == b"\n" * 4


@pytest.mark.parametrize("seen", [1, 5, 12])
async def test_a_kill_among_starts(tmp_path: Path, seen: int) -> None:
    state, names = tmp_path / "state", [fresh() for _ in range(24)]
    async with victim("asyncio.run(started())", state, *names) as left:
        up = [await left.line() for _ in range(seen)]
        await left.kill()
    async with next_driver(state, *up) as (driver, exits):
        assert sorted(await driver.list()) == sorted(up)
        assert not exits
        for name in up:
            assert (await sh(driver, name, "echo fine")).stdout == b"fine\n"
        assert not [name for name in names if name not in up and groups(name)]
        again = [name for name in names if name not in up][:2]
        assert set(await start(driver, again, StartSpec(HOST))) == {Started((name,)) for name in again}
    assert not [name for name in names if groups(name)]


async def test_what_was_not_wholly_started_is_ended_though_it_is_wanted(tmp_path: Path) -> None:
    program = """
from shoal_executor.drivers.zygote import driver as module
put = module.put
async def slow(link, file):
    if file.path == "second":
        say("half")
        await asyncio.sleep(1000)
    await put(link, file)
module.put = slow
asyncio.run(started((InputFile("first", b"1", 0o644), InputFile("second", b"2", 0o644))))
"""
    state, name = tmp_path / "state", fresh()
    async with victim(program, state, name) as left:
        await left.until("half")
        await left.kill()
    async with next_driver(state, name) as (driver, exits):
        assert exits[name][0] is EndReason.DIED
        assert "before its start was complete" in exits[name][1]
        assert await driver.list() == []
        assert not groups(name)
        assert await start(driver, [name], StartSpec(HOST)) == [Started((name,))]


async def test_two_who_wait_for_one_command(tmp_path: Path) -> None:
    async with next_driver(tmp_path / "state") as (driver, _):
        name = await one(driver)
        line = "echo x >> /root/once; sleep 1000"
        first, second = (asyncio.create_task(driver.run(name, Command(line=line), id="k")) for _ in range(2))
        while (await sh(driver, name, "test -s /root/once")).exit_code:
            pass
        first.cancel()
        async with asyncio.timeout(20):
            assert (await second).exit_code == 137
        assert (await driver.read_file(name, "/root/once")).data == b"x\n"
        both = [asyncio.create_task(driver.run(name, Command(line="sleep 1000"), id="l")) for _ in range(2)]
        await sh(driver, name, "true")
        await driver.destroy([name])
        found = await asyncio.gather(*both, return_exceptions=True)
        assert [type(each) for each in found] == [NoSuchSandboxError] * 2


async def test_a_fork_server_that_says_it_is_of_another_version_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "PROTOCOL", frames.PROTOCOL + 1)  # its program was replaced under a running driver
    with pytest.raises(DriverError, match="another version"):
        await ZygoteDriver(tmp_path / "state").open(lambda *_: None)
    assert list((tmp_path / "state/forks").iterdir()) == []


async def test_what_a_kill_left_of_a_launch_is_removed(tmp_path: Path) -> None:
    forks = tmp_path / "state/forks"
    forks.mkdir(parents=True)
    directory = os.open(forks, os.O_PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound:
        bound.bind(f"/proc/self/fd/{directory}/abcdef")
    os.close(directory)
    (forks / "012345.json").write_text('{"digest": "ho')
    async with next_driver(tmp_path / "state"):
        (known,) = entries(forks)
        assert {path.stem for path in forks.iterdir()} == {known[0].name}
