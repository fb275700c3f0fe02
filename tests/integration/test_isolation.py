"""What a sandbox cannot do, tried from inside, and what its worst behaviour does to its neighbours: nothing."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

import shoal
from conformance.drivers import one, sh
from host import processes, with_argument
from shoal.cli.system import LocalSystem
from shoal.wire.messages import Command, EndReason, Resources, Snapshot
from shoal_executor.drivers import layers
from shoal_executor.drivers.protocol import DriverError, SandboxFileError, Started, StartSpec, UnsupportedError
from shoal_executor.drivers.walls import try_walls
from shoal_executor.drivers.zygote import driver as zygote_driver, filter, templates
from shoal_executor.drivers.zygote.driver import ZygoteDriver

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(os.geteuid() != 0, reason="limits are enforced through control groups, which need root"),
]

MIB = 1024**2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ZygoteDriver]:
    driver = ZygoteDriver(tmp_path_factory.mktemp("isolation"))
    await driver.open(lambda *_: None)
    yield driver
    await driver.close()


@pytest.fixture
def secret() -> Iterator[Path]:
    """A file of the host's root that nobody else may read."""
    path = Path("/root/.shoal-isolation-test")
    path.write_text("host secret")
    path.chmod(0o600)
    yield path
    path.unlink()


pytestmark.append(pytest.mark.asyncio(loop_scope="module"))

PROBE = """
import socket, sys
for family, address in ((socket.AF_INET, ("127.0.0.1", PORT)), (socket.AF_INET, ("10.0.0.1", 80)),
                        (socket.AF_INET, ("192.0.2.1", 80)), (socket.AF_INET6, ("::1", PORT))):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind) as s:
                s.settimeout(2)
                s.connect(address)
                s.send(b"x")
                if kind == socket.SOCK_DGRAM:
                    s.recv(1)
        except OSError:
            continue
        print("reached", address, kind)
"""


async def test_no_network_address_is_reached(driver: ZygoteDriver) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    name = await one(driver)
    result = await driver.run(name, Command(("python3", "-c", PROBE.replace("PORT", str(port))), timeout_ms=30_000))
    assert (result.exit_code, result.stdout) == (0, b"")
    server.close()
    await driver.destroy([name])


async def test_no_host_process_is_seen(driver: ZygoteDriver) -> None:
    name = await one(driver)
    shown = (await sh(driver, name, "cd /proc && echo [0-9]*; cat [0-9]*/cmdline | tr '\\0' ' '")).stdout.decode()
    assert {int(pid) for pid in shown.splitlines()[0].split()} <= set(range(1, 10))
    assert "nats" not in shown
    assert "python" not in shown  # not even what the first process was
    assert (await sh(driver, name, f"kill -0 {os.getpid()}")).exit_code != 0
    await driver.destroy([name])


async def test_host_files_are_not_read(driver: ZygoteDriver, secret: Path) -> None:
    name = await one(driver)
    for path in (str(secret), "/etc/shadow", "/proc/1/root/etc/shadow", "/proc/1/environ", "/proc/kcore", "/dev/mem"):
        assert (await sh(driver, name, f"head -c 10 {path}")).exit_code != 0, path
    assert (await sh(driver, name, "ls -A /root /home")).stdout == b"/home:\n\n/root:\n"
    assert (await sh(driver, name, "cat /proc/mounts")).stdout.find(str(Path.cwd()).encode()) < 0
    await driver.destroy([name])


async def test_no_environment_of_the_host_is_seen(driver: ZygoteDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_TEST_SECRET", "leaked")
    name = await one(driver)
    assert b"leaked" not in (await sh(driver, name, "env; cat /proc/*/environ")).stdout
    await driver.destroy([name])


async def test_the_template_is_not_written(driver: ZygoteDriver, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/kept").write_text("as it was")
    tmp_path.chmod(0o755)
    snapshot = Snapshot(f"dir-{tmp_path.name}", "dir", str(tmp_path))
    name = f"{tmp_path.name.replace('_', '')[:20]}-0"
    assert [outcome async for outcome in driver.start([name], StartSpec(snapshot))] == [Started((name,))]
    await driver.write_file(name, "/etc/kept", b"changed")
    await driver.write_file(name, "/etc/new", b"new")
    await driver.destroy([name])
    assert (tmp_path / "etc/kept").read_text() == "as it was"
    assert [path.name for path in (tmp_path / "etc").iterdir()] == ["kept"]

    host = await one(driver)
    line = "rm -rf --no-preserve-root /usr /etc /bin 2>/dev/null; : > /usr/bin/planted"
    assert (await sh(driver, host, line)).exit_code != 0
    assert Path("/usr/bin/env").exists()
    assert Path("/etc/passwd").exists()
    assert not Path("/usr/bin/planted").exists()
    await driver.destroy([host])


@pytest.mark.parametrize(
    "path",
    ["/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger"],
)
async def test_the_kernels_knobs_are_not_opened_for_writing(driver: ZygoteDriver, path: str) -> None:
    name = await one(driver)
    code = f"import os; os.close(os.open({path!r}, os.O_WRONLY))"  # opens, and never writes
    result = await driver.run(name, Command(("python3", "-c", code)))
    assert result.exit_code == 1
    assert b"Error" in result.stderr
    await driver.destroy([name])


@pytest.mark.parametrize(
    "line",
    [
        "unshare -U true",
        "unshare -m true",
        "unshare -n true",
        "mount -t tmpfs none /mnt",
        "umount /proc/sys",
        "mount -o remount,rw /usr",
        "mknod /disk b 8 0",
        "chroot / true && nsenter -t 1 -m true",
        "python3 -c 'import ctypes; c = ctypes.CDLL(None); exit(c.ptrace(16, 1, 0, 0) < 0)'",
        "python3 -c 'import os; os.open(\"/proc/1/mem\", os.O_RDWR)'",
        "hostname other",
        "su nobody -s /bin/sh -c 'kill -9 1; kill -0 1'",
    ],
)
async def test_a_way_out_is_closed(driver: ZygoteDriver, line: str) -> None:
    name = await one(driver)
    assert (await sh(driver, name, line)).exit_code != 0
    assert (await sh(driver, name, "true")).exit_code == 0
    await driver.destroy([name])


FAMILIES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.argtypes = (ctypes.c_long,) * 5
pair = ctypes.addressof(ctypes.create_string_buffer(8))
for family in (*range(46), 64, 1 << 20, (1 << 32) + 40):
    for call in (NR_SOCKET, NR_PAIR):
        for kind in (1, 2, 3, 5):  # STREAM, DGRAM, RAW, SEQPACKET
            if libc.syscall(call, family, kind, 0, pair) >= 0:
                print(family)
""".replace("NR_SOCKET", "41" if os.uname().machine == "x86_64" else "198").replace(
    "NR_PAIR", "53" if os.uname().machine == "x86_64" else "199"
)


async def test_only_the_families_of_sockets_that_programs_need_are_made(driver: ZygoteDriver) -> None:
    name = await one(driver)
    result = await driver.run(name, Command(("python3", "-c", FAMILIES)))
    assert (result.exit_code, result.stderr) == (0, b"")
    assert set(result.stdout.split()) <= {b"1", b"2", b"10", b"16"}
    assert {b"1", b"2"} <= set(result.stdout.split())
    await driver.destroy([name])


async def test_a_sandbox_that_can_make_a_vsock_is_a_wall_that_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        pytest.skip("this kernel has no vsock to forbid")  # outside of a sandbox none can be made either

    async def later(_: object) -> None:
        """Its own try would end the driver."""

    with monkeypatch.context() as patched:
        patched.setattr(filter, "_FAMILIES", frozenset(range(64)))
        patched.setattr(filter, "_LOW", 64)
        patched.setattr(templates, "compile_filter", filter.compile_filter.__wrapped__)
        patched.setattr(zygote_driver, "try_walls", later)
        driver = ZygoteDriver(tmp_path)
        await driver.open(lambda *_: None)
        try:
            with pytest.raises(DriverError, match="can make a vsock"):
                await try_walls(driver)
        finally:
            await driver.close()


async def test_root_inside_is_nobody_outside(driver: ZygoteDriver) -> None:
    name = await one(driver)
    running = asyncio.create_task(sh(driver, name, "echo up > up; exec sleep 12345"))
    async with asyncio.timeout(20):
        while (await sh(driver, name, "test -e up")).exit_code:
            pass
    sleeping = await asyncio.to_thread(with_argument, "12345")
    owners = [Path(f"/proc/{pid}").stat().st_uid for pid in sleeping]
    assert owners
    assert min(owners) > 100_000
    assert (await sh(driver, name, "id -u")).stdout == b"0\n"
    await driver.destroy([name])
    await asyncio.gather(running, return_exceptions=True)


async def test_a_sandbox_ends_with_all_it_started(driver: ZygoteDriver) -> None:
    name = await one(driver)
    await sh(driver, name, "setsid sh -c 'sleep 54321 & sleep 54321' >/dev/null 2>&1 &")
    await driver.destroy([name])
    assert not await asyncio.to_thread(with_argument, "54321")
    assert not list(Path("/sys/fs/cgroup").glob(f"*/shoal-*/{name}"))


async def test_nothing_outlives_a_killed_executor_that_nobody_follows(tmp_path: Path) -> None:
    mark = f"98765.{os.getpid()}"
    program = f"""
import asyncio, pathlib
from shoal.wire.messages import Command, Snapshot
from shoal_executor.drivers.protocol import StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver
async def main():
    driver = ZygoteDriver(pathlib.Path({str(tmp_path)!r}), patience_s=1.0)
    await driver.open(lambda *_: None)
    async for _ in driver.start(["victim-0"], StartSpec(Snapshot("host", "host"))): pass
    await driver.run("victim-0", Command(line="sleep {mark} >/dev/null 2>&1 &"))
    print("up", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == b"up\n"

    try:
        async with asyncio.timeout(20):
            while not await asyncio.to_thread(with_argument, mark):
                await asyncio.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)
    process.stdout.close()
    async with asyncio.timeout(20):
        while await asyncio.to_thread(with_argument, mark):
            await asyncio.sleep(0.01)
    cleaner = ZygoteDriver(tmp_path)
    await cleaner.open(lambda *_: None)
    await cleaner.close()


async def neighbour_is_well(driver: ZygoteDriver, neighbour: str) -> None:
    async with asyncio.timeout(30):
        assert (await sh(driver, neighbour, "echo well")).stdout == b"well\n"
        fresh = await one(driver)
        assert (await sh(driver, fresh, "echo well")).stdout == b"well\n"
        await driver.destroy([fresh])


async def test_a_fork_bomb_hurts_nobody_else(driver: ZygoteDriver) -> None:
    neighbour = await one(driver)
    name = await one(driver, resources=Resources(pids=48))
    bomb = asyncio.create_task(sh(driver, name, "b() { b | b & }; b; sleep 2", timeout_ms=3000))
    for _ in range(5):
        await neighbour_is_well(driver, neighbour)
    await bomb
    await neighbour_is_well(driver, neighbour)
    await driver.destroy([name, neighbour])
    assert name not in await driver.list()


async def test_a_memory_hog_is_stopped_alone(driver: ZygoteDriver) -> None:
    neighbour = await one(driver)
    name = await one(driver, resources=Resources(memory=96 * MIB))
    hog = "held = []\nfor _ in range(256): held.append(b'x' * (16 << 20))\n"  # 4 GiB, each page written
    result = await driver.run(name, Command(("python3", "-c", hog), timeout_ms=60_000))
    assert result.exit_code == 137
    assert result.out_of_memory
    assert (await sh(driver, name, "echo alive")).stdout == b"alive\n"  # the command died, not the sandbox
    await neighbour_is_well(driver, neighbour)
    await driver.destroy([name, neighbour])


async def test_a_full_disk_is_an_error_to_the_one_who_filled_it(driver: ZygoteDriver) -> None:
    neighbour = await one(driver)
    name = await one(driver, resources=Resources(memory=128 * MIB, disk=1024**4))
    for place in ("/", "/tmp", "/dev/shm", "/root"):
        result = await sh(driver, name, f"dd if=/dev/zero of={place}/fill bs=1M count=4096", timeout_ms=60_000)
        assert result.exit_code == 1, place
        assert b"No space left" in result.stderr
    assert (await sh(driver, name, "echo alive; rm /fill; echo x > /ok && cat /ok")).stdout == b"alive\nx\n"
    await neighbour_is_well(driver, neighbour)
    await driver.destroy([name, neighbour])


async def test_too_many_empty_files_are_an_error_to_the_one_who_made_them(driver: ZygoteDriver) -> None:
    name = await one(driver, resources=Resources(memory=128 * MIB))
    code = "import os\nfor i in range(400_000): os.close(os.open(f'/tmp/{i}', os.O_CREAT))"
    result = await driver.run(name, Command(("python3", "-c", code), timeout_ms=60_000))
    assert result.exit_code == 1
    assert b"No space left" in result.stderr
    assert (await sh(driver, name, "echo alive")).stdout == b"alive\n"
    await driver.destroy([name])


@pytest.mark.parametrize("path", ["/proc/self/fd/2", "/proc/1/fd/2", "/dev/stderr", "/borrowed"])
async def test_the_agents_own_descriptors_are_not_lent(driver: ZygoteDriver, path: str) -> None:
    name = await one(driver)
    await sh(driver, name, "ln -s /proc/self/fd/2 /borrowed")
    with pytest.raises(SandboxFileError):
        await driver.read_file(name, path)  # the fork server's log, on the host
    with pytest.raises(SandboxFileError):
        await driver.write_file(name, path, b"planted", offset=1)
    await driver.destroy([name])


@pytest.mark.parametrize("path", ["/proc/self/maps", "/proc/1/smaps", "/proc/thread-self/maps", "/map"])
async def test_the_agents_memory_map_is_not_read(driver: ZygoteDriver, path: str) -> None:
    name = await one(driver)
    await sh(driver, name, "ln -s /proc/self/maps /map")
    with pytest.raises(SandboxFileError):
        await driver.read_file(name, path)
    assert (await driver.read_file(name, "/proc/meminfo")).data
    await driver.destroy([name])


async def test_a_cpu_hog_leaves_time_for_others(driver: ZygoteDriver) -> None:
    name = await one(driver, resources=Resources(cpu_milli=100))
    busy = "import time\nend = time.time() + 1\nwhile time.time() < end: pass\nprint(time.process_time())"
    counted = await driver.run(name, Command(("python3", "-c", busy)))
    assert float(counted.stdout) < 0.5  # a tenth of a core for a second, and its granularity
    await driver.destroy([name])


async def test_an_end_nobody_asked_for_is_told_with_its_reason(tmp_path: Path) -> None:
    told: asyncio.Queue[tuple[str, EndReason, str]] = asyncio.Queue()
    driver = ZygoteDriver(tmp_path)
    await driver.open(lambda *end: told.put_nowait(end))
    name = await one(driver)
    running = asyncio.create_task(sh(driver, name, "sleep 600"))
    groups = await asyncio.to_thread(processes, "cgroup")
    victims = [pid for pid, of in groups.items() if f"/{name}" in of.decode()]
    assert victims
    os.kill(min(victims), signal.SIGKILL)
    async with asyncio.timeout(20):
        ended, reason, _ = await told.get()
    assert (ended, reason, reason.infrastructure) == (name, EndReason.DIED, True)
    (outcome,) = await asyncio.gather(running, return_exceptions=True)
    assert "died" in str(outcome)
    await driver.destroy([name])
    await driver.close()


async def test_nothing_is_left_on_the_machine(tmp_path: Path) -> None:
    driver = ZygoteDriver(tmp_path)
    await driver.open(lambda *_: None)
    await one(driver)
    groups = [Path(line) for line in (tmp_path / "cgroups").read_text().splitlines()]
    assert groups
    assert all(group.is_dir() for group in groups)
    await driver.close()
    assert not any(group.exists() for group in groups)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


GREED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
rt = ctypes.CDLL("librt.so.1", use_errno=True)
here = ctypes.create_string_buffer(8)


def terminal():
    try:
        return os.openpty()[0]
    except OSError:
        return -1


take = {
    "inotify instances": lambda n: libc.inotify_init(),
    "terminals": lambda n: terminal(),
    "timers": lambda n: libc.timer_create(0, None, here),
    "message queues": lambda n: rt.mq_open(b"/q%d" % n, 0o102, 0o600, None),
}[sys.argv[1]]
taken = 0
while taken < int(sys.argv[2]) and take(taken) >= 0:
    taken += 1
print(taken, flush=True)
if sys.argv[3:]:
    import time
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("what", "above"), [("inotify instances", 2000), ("terminals", 4000), ("timers", 200_000), ("message queues", 200)]
)
async def test_who_takes_all_that_a_user_may_have_takes_it_from_nobody_else(
    driver: ZygoteDriver, what: str, above: int
) -> None:
    greedy, neighbour = await one(driver), await one(driver)
    other = await one(driver, Snapshot("other", "host", warm="import json"))
    for name in (greedy, neighbour, other):
        await driver.write_file(name, "/root/greed.py", GREED.encode())
    hold = (
        f"python3 /root/greed.py '{what}' {above} hold > /root/taken & while ! [ -s /root/taken ]; do sleep 0.1; done"
    )
    taken = await sh(driver, greedy, f"{hold}; cat /root/taken")
    assert int(taken.stdout) > 0
    for name in (neighbour, other):
        result = await driver.run(name, Command(("python3", "/root/greed.py", what, "1"), timeout_ms=30_000))
        assert (result.stdout, result.exit_code) == (b"1\n", 0), name
    done = subprocess.run([sys.executable, "-c", GREED, what, "1"], capture_output=True, check=False, timeout=30)
    assert done.stdout == b"1\n"
    await driver.destroy([greedy, neighbour, other])


CROWD = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for user in range(2000, 2040):
    if os.fork() == 0:
        os.setuid(user)
        while libc.inotify_init() >= 0:
            os.write(1, b"x")
        os.close(1)
        import time
        time.sleep(600)
"""


async def test_many_users_of_one_sandbox_take_no_more_inotify_instances_than_its_share(driver: ZygoteDriver) -> None:
    allowed = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    greedy, neighbour = await one(driver), await one(driver)
    for _ in range(2):  # what one that has ended took is there for the next
        await driver.write_file(greedy, "/root/crowd.py", CROWD.encode())
        taken = await sh(driver, greedy, "python3 /root/crowd.py | wc -c", timeout_ms=30_000)
        assert int(taken.stdout) == allowed // 8
        for name in (neighbour, await one(driver)):
            await driver.write_file(name, "/root/greed.py", GREED.encode())
            result = await driver.run(name, Command(("python3", "/root/greed.py", "inotify instances", "2")))
            assert (result.stdout, result.exit_code) == (b"2\n", 0), name
        await driver.destroy([greedy])
        greedy = await one(driver)
    await driver.destroy([greedy, neighbour])


async def test_a_directory_of_the_host_is_a_template_only_where_the_executor_says(tmp_path: Path) -> None:
    (tmp_path / "templates" / "one").mkdir(parents=True)
    driver = ZygoteDriver(tmp_path / "state", template_roots=(tmp_path / "templates",))
    await driver.open(lambda *_: None)
    try:
        with pytest.raises(DriverError, match="template dir:/etc: this node takes dir: and tar: only from below"):
            await driver.prepare(Snapshot("etc", "dir", "/etc"))
        await driver.prepare(Snapshot("one", "dir", str(tmp_path / "templates" / "one")))
    finally:
        await driver.close()


@pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="snapshots need mkfs.erofs")
async def test_a_disk_of_holes_is_refused_and_its_sandbox_goes_on(driver: ZygoteDriver, tmp_path: Path) -> None:
    name = await one(driver, resources=Resources(disk=64 * MIB))
    assert (await sh(driver, name, "cd /root && touch small && truncate -s 1T holes")).exit_code == 0
    with pytest.raises(UnsupportedError, match=r"the largest is /root/holes of 1099511627776: remove sparse files"):
        await driver.capture(name, tmp_path, memory=False)
    assert list(tmp_path.iterdir()) == []
    assert (await sh(driver, name, "cd /root && truncate -s 100M holes")).exit_code == 0
    assert (await driver.capture(name, tmp_path, memory=False)).layer.stat().st_size
    await driver.destroy([name])


@pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="snapshots need mkfs.erofs")
async def test_what_keeps_a_disk_ends_with_its_sandbox(
    driver: ZygoteDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_LEAST", 1 << 50)
    name = await one(driver, resources=Resources(disk=64 * MIB))
    assert (await sh(driver, name, "truncate -s 1T /root/holes")).exit_code == 0
    keeping = asyncio.create_task(driver.capture(name, tmp_path, memory=False))
    while not (tmp_path / "layer").exists():
        await asyncio.sleep(0.01)
    await driver.destroy([name])
    with pytest.raises(DriverError, match="its sandbox ended meanwhile"):
        await asyncio.wait_for(keeping, 60)
    assert list(tmp_path.iterdir()) == []


async def test_a_local_system_takes_any_directory_unless_it_is_told_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one" / "marked").mkdir(parents=True)
    template = f"dir:{tmp_path / 'one'}"
    async with LocalSystem(tmp_path / "any", port=0) as system, shoal.connect(system.url) as client:
        async with client.rollout(template, n=1, timeout="60s", retries=0) as rollout:
            async for sandbox in rollout.ready():
                assert await sandbox.files.exists("/marked") is True
    monkeypatch.setenv("SHOAL_TEMPLATE_ROOTS", str(tmp_path / "other"))
    async with LocalSystem(tmp_path / "told", port=0) as system, shoal.connect(system.url) as client:
        says = f"only from below {tmp_path / 'other'}; see its --template-roots"
        with pytest.raises(shoal.Rejected, match=says):
            await client.rollout(template, n=1, timeout="60s", retries=0)
        with pytest.raises(shoal.BuildFailed, match=says):
            await client.build_template("taken", template)
