"""The driver `gvisor`, with whatever runsc is installed."""

import asyncio
import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from conformance.drivers import HOST, MANY, Blobs, DriverConformance, fresh, needs_snapshots, one, sh, start
from conformance.files import FilesConformance
from shoal.wire.messages import Command, EndReason, InputFile, Resources, Snapshot
from shoal_executor.drivers import kernel
from shoal_executor.drivers.cgroups import Group
from shoal_executor.drivers.gvisor import fresh as fresh_ones, memory, runsc
from shoal_executor.drivers.gvisor.box import Box
from shoal_executor.drivers.gvisor.driver import GvisorDriver
from shoal_executor.drivers.gvisor.starting import Starts
from shoal_executor.drivers.protocol import (
    DriverError,
    IsolationFailedError,
    NoSuchSandboxError,
    NotEndedError,
    SandboxFileError,
    Started,
    StartFailed,
    StartSpec,
    UnsupportedError,
)

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runsc") is None, reason="gvisor needs root, and runsc"),
]


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest_asyncio.fixture
async def driver(tmp_path: Path, blobs: Blobs) -> AsyncIterator[GvisorDriver]:
    driver = GvisorDriver(tmp_path / "state", blobs)
    await driver.open(lambda *_: None)
    yield driver
    await driver.close()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def mounts_below(place: Path) -> list[str]:
    """Return what is mounted for the sandboxes of a driver whose state is below this place."""
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {place}/state/gvisor/" in line]


class FromFresh(GvisorDriver):
    """Every sandbox without a memory of its own starts from one that was kept when it was fresh."""

    async def _start(self, name: str, spec: StartSpec) -> None:
        await kept_fresh(self, spec)
        await super()._start(name, spec)
        if spec.snapshot.memory is None and self._fresh.image(spec) is None:
            raise DriverError("it did not start from a fresh one")


async def kept_fresh(driver: GvisorDriver, spec: StartSpec) -> None:
    """Wait until one of a kind is kept, or cannot be."""
    driver._fresh.asked(spec, fresh_ones.WORTH)
    await nothing_in_the_making(driver)


async def nothing_in_the_making(driver: GvisorDriver) -> None:
    if driver._fresh._making:
        await asyncio.wait(driver._fresh._making)


class TestGvisorDriver(DriverConformance, FilesConformance):
    @pytest_asyncio.fixture
    async def driver(self, tmp_path: Path, blobs: Blobs) -> AsyncIterator[GvisorDriver]:
        driver = FromFresh(tmp_path / "state", blobs)
        await driver.open(lambda *_: None)
        yield driver
        await driver.close()
        assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


async def test_what_starts_from_a_fresh_one_is_nobody_elses(driver: GvisorDriver) -> None:
    spec = StartSpec(HOST, env=(("WHOSE", "first"),), user="nobody", files=(InputFile("/tmp/of", b"first"),))
    (first,) = await started(driver, spec)
    assert driver._fresh.image(spec) is None
    await kept_fresh(driver, spec)
    image = driver._fresh.image(spec)
    assert image is not None
    assert [path.name for path in image.iterdir()] == ["checkpoint.img"]
    names = await started(driver, StartSpec(HOST, env=(("WHOSE", "others"),)), 2)
    for name in names:
        said = await sh(driver, name, "echo $WHOSE $HOME; id -un; date +%s; find /root /tmp /dev/shm -mindepth 1")
        words = said.stdout.decode().splitlines()
        assert words[:2] == ["others /root", "root"], said
        assert abs(int(words[2]) - time.time()) < 60, "its clock is right"
        assert words[3:] == ["/tmp/.X11-unix"], "nothing of the other's is there"
    random = {(await sh(driver, name, "head -c 16 /dev/urandom | od -An -tx1")).stdout for name in names}
    assert len(random) == 2
    await sh(driver, names[0], "echo mine > /root/mine; echo also > /dev/shm/mine")
    assert (await sh(driver, names[1], "cat /root/mine /dev/shm/mine; true")).stdout == b""
    assert (await sh(driver, first, "echo $WHOSE; cat /tmp/of")).stdout == b"first\nfirst"
    await driver.destroy([first, *names])
    assert len(await driver.list()) == 0


async def test_no_call_by_which_one_process_changes_another_reaches_the_agent(
    driver: GvisorDriver, blobs: Blobs, tmp_path: Path
) -> None:
    needs_snapshots()
    numbers = {"kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "prlimit64": 302, "ptrace": 101}
    if os.uname().machine != "x86_64":
        pytest.skip("the test's numbers of calls are x86-64's")  # the filter itself goes by their names
    code = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "room = ctypes.create_string_buffer(64)\n"
        "def call(*words):\n"
        "    libc.syscall(*[ctypes.c_long(word) if isinstance(word, int) else word for word in words])\n"
        "    return os.strerror(ctypes.get_errno())\n"
        f"numbers = {numbers}\n"
        "own = os.fork()\n"
        "if not own: import time; time.sleep(600)\n"
        "for pid in 1, (1 << 32) + 1:\n"
        "    told = {\n"
        "        call(numbers['kill'], pid, 9), call(numbers['tkill'], pid, 9), call(numbers['tgkill'], pid, 1, 9),\n"
        "        call(numbers['rt_sigqueueinfo'], pid, 9, room), call(numbers['prlimit64'], pid, 7, room, 0),\n"
        "        call(numbers['ptrace'], 16, pid, 0, 0), call(numbers['ptrace'], 0x4206, pid, 0, 0),\n"
        "    }\n"
        "    print(*told)\n"
        "os.kill(own, 9)\n"
        "print(os.waitpid(own, 0)[1])\n"
    )
    name = await one(driver)
    whole = await TestGvisorDriver().captured(driver, name, tmp_path / "kept", blobs, memory=True)
    for each in (name, await one(driver, whole)):
        said = await driver.run(each, Command(("python3", "-c", code)))
        assert said.stdout.decode().splitlines() == ["Operation not permitted"] * 2 + ["9"], said
        assert (await sh(driver, each, "echo on")).stdout == b"on\n"
    await driver.destroy(await driver.list())


async def started(driver: GvisorDriver, spec: StartSpec, count: int = 1) -> list[str]:
    names = [fresh() for _ in range(count)]
    assert {type(outcome) for outcome in await start(driver, names, spec)} == {Started}
    return names


async def test_what_changed_in_a_directory_meanwhile_is_seen(driver: GvisorDriver, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("bin", "etc", "data"):
        (root / name).mkdir(parents=True)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "data" / "old").write_text("old")
    spec = StartSpec(Snapshot("dir-changing", "dir", str(root)))
    await kept_fresh(driver, spec)
    assert driver._fresh.image(spec) is not None
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/home:/bin/sh\n")
    (root / "etc" / "ld.so.preload").write_text("new")
    (root / "data" / "old").write_text("changed")
    (root / "new").mkdir()
    (root / "new" / "file").write_text("new")
    (name,) = await started(driver, spec)
    for path, data in (
        ("/etc/passwd", b"root:x:0:0:root:/home:/bin/sh\n"), ("/etc/ld.so.preload", b"new"),
        ("/data/old", b"changed"), ("/new/file", b"new"),
    ):  # fmt: skip
        assert (await driver.read_file(name, path)).data == data
    shutil.rmtree(root / "etc")
    (after,) = await started(driver, spec)
    with pytest.raises(SandboxFileError, match="No such file"):
        await driver.read_file(after, "/etc/passwd")
    await driver.destroy([name, after])


async def test_without_a_fresh_one_that_can_be_restored_it_starts_all_the_same(
    driver: GvisorDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = StartSpec(HOST)
    await kept_fresh(driver, spec)
    image = driver._fresh.image(spec)
    assert image is not None
    whole = (image / "checkpoint.img").read_bytes()
    (image / "checkpoint.img").write_bytes(whole[: len(whole) // 2])
    names = await started(driver, spec, 3)
    assert driver._fresh.image(spec) is None
    for name in names:
        assert (await sh(driver, name, "echo up")).stdout == b"up\n"
    await driver.destroy(names)

    async def nothing(*_: object) -> None:
        raise DriverError("runsc checkpoint failed: it never does here")

    monkeypatch.setattr(Box, "checkpoint", nothing)
    other = StartSpec(HOST, Resources(memory=64 * 1024**2))
    await kept_fresh(driver, other)
    assert driver._fresh.image(other) is None
    names = await started(driver, other)
    await driver.destroy(names)


async def test_where_nothing_starts_the_fresh_one_is_not_to_blame(
    driver: GvisorDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = StartSpec(HOST)
    await kept_fresh(driver, spec)

    async def down(*_: object) -> None:
        raise DriverError("nothing starts now")

    with monkeypatch.context() as while_down:
        while_down.setattr(Starts, "_up", staticmethod(down))
        (failed,) = await start(driver, [fresh()], spec)
    assert isinstance(failed, StartFailed)
    assert failed.detail == "nothing starts now"
    assert mounts_below(tmp_path) == []
    assert driver._fresh.image(spec) is not None
    await driver.destroy(await started(driver, spec))


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3, 0.45, 0.6])
async def test_a_driver_that_closes_while_one_is_kept_leaves_nothing(tmp_path: Path, moment: float) -> None:
    driver = GvisorDriver(tmp_path / "state")
    await driver.open(lambda *_: None)
    driver._fresh.asked(StartSpec(HOST), fresh_ones.WORTH)
    await asyncio.sleep(moment)
    await driver.close()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert not [pid for pid in pids() if str(tmp_path) in arguments(pid)]
    assert {path.name for path in (tmp_path / "state" / "gvisor").iterdir()} <= {"python", "points-usr"}


async def test_nothing_of_a_killed_process_is_left_and_whoever_is_missed_is_told_of(tmp_path: Path) -> None:
    state = tmp_path / "state"
    names = [fresh(), fresh()]
    argv = [sys.executable, str(Path(__file__).with_name("left_behind.py")), "gvisor", str(state), *names]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "ready\n" in iter(process.stdout.readline, "")
        process.kill()
    assert str(state) in Path("/proc/self/mounts").read_text()
    ends: list[tuple[str, EndReason]] = []
    driver = GvisorDriver(state)
    await driver.open(lambda name, reason, _: ends.append((name, reason)), keep=names[:1])
    try:
        assert ends == [(names[0], EndReason.NODE_LOST)]
        assert await driver.list() == []
        assert str(state) not in Path("/proc/self/mounts").read_text()
        assert not [pid for pid in pids() if str(state) in arguments(pid)]
    finally:
        await driver.close()
    assert {path.name for path in (state / "gvisor").iterdir()} <= {"python", "points-usr"}


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def arguments(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


MANY_USERS = """
import os, time
for user in range(1000, 1028):
    if os.fork() == 0:
        os.setuid(user)
        os.execv("/bin/sh", ["sh", "-c", "for i in $(seq 25); do sleep 600 & done; wait"])
time.sleep(60)
"""


async def test_what_uses_up_its_memory_or_its_processes_ends_alone(tmp_path: Path) -> None:
    ends: dict[str, EndReason] = {}
    details: dict[str, str] = {}

    def ended(name: str, reason: EndReason, detail: str) -> None:
        ends[name] = reason
        details[name] = detail

    driver = GvisorDriver(tmp_path / "state")
    await driver.open(ended)
    try:
        bystander = await one(driver)
        hog = await one(driver, resources=Resources(memory=128 * 1024**2))
        with pytest.raises(NoSuchSandboxError) as hogged:
            await sh(driver, hog, "python3 -c 'x = bytearray(1 << 30)'")
        assert hogged.value.reason is EndReason.OUT_OF_MEMORY
        assert ends == {hog: EndReason.OUT_OF_MEMORY}
        bomb = await one(driver, resources=Resources(memory=1024**3, pids=32))
        with pytest.raises(NoSuchSandboxError) as bombed:  # its kernel cannot go on without threads of the host
            await driver.run(bomb, Command(("python3", "-c", MANY_USERS), timeout_ms=60_000))
        assert bombed.value.reason is EndReason.OUT_OF_PROCESSES
        assert ends[bomb] is EndReason.OUT_OF_PROCESSES
        assert not ends[bomb].infrastructure
        assert details[bomb].startswith(("its kernel failed: panic: ", "its kernel failed: fatal error: "))
        assert (await sh(driver, bystander, "echo on")).stdout == b"on\n"
        await driver.destroy([hog, bomb])
        assert await driver.list() == [bystander]
    finally:
        await driver.close()


async def test_as_many_processes_as_it_may_have_run_at_once(driver: GvisorDriver) -> None:
    name = await one(driver, resources=Resources(pids=64))
    line = "for i in $(seq 60); do (while :; do :; done) & done; sleep 4; echo /proc/[0-9]* | wc -w"
    busy = await sh(driver, name, line, timeout_ms=60_000)
    assert busy.exit_code == 0
    assert int(busy.stdout) >= 62, "its kernel has threads enough of its host's"
    assert (await sh(driver, name, "echo on")).stdout == b"on\n"
    await driver.destroy([name])


async def test_a_copy_has_the_processes_that_were_asked_for_it_and_nobody_inside_takes_more(
    driver: GvisorDriver, blobs: Blobs, tmp_path: Path
) -> None:
    needs_snapshots()
    name = await one(driver, resources=Resources(pids=16))
    whole = await TestGvisorDriver().captured(driver, name, tmp_path / "kept", blobs, memory=True)
    more = await one(driver, whole, resources=Resources(pids=32))
    fewer = await one(driver, whole, resources=Resources(pids=8))
    for each, processes in ((name, 16), (more, 32), (fewer, 8)):
        many = await driver.run(each, Command(("python3", "-c", MANY.format(most=99)), timeout_ms=20_000))
        assert many.stdout == b"%d 11\n" % (processes - 2)
        await sh(driver, each, "kill -KILL -1")
        code = "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (99, 99))"
        assert b"not allowed to raise" in (await driver.run(each, Command(("python3", "-c", code)))).stderr
    await driver.destroy([name, more, fewer])


async def test_nothing_inside_speaks_or_listens_in_the_agents_place(driver: GvisorDriver) -> None:
    name = await one(driver)
    for fd in (0, 1):
        for way in ("<", ">", "<>"):
            said = await sh(driver, name, f"exec 9{way}/proc/1/fd/{fd}", timeout_ms=10_000)
            assert said.exit_code
            assert b"No such device or address" in said.stderr
    assert (await sh(driver, name, "echo on")).stdout == b"on\n"
    await driver.destroy([name])


async def test_the_agent_needs_nothing_of_the_image(driver: GvisorDriver, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "data").write_text("of the template")
    small = await one(driver, Snapshot("dir-small", "dir", str(root)))
    assert (await driver.read_file(small, "/data")).data == b"of the template"
    await driver.write_file(small, "/data", b"changed")
    assert (await driver.run(small, Command(line="true"))).exit_code == 127
    await driver.destroy([small])
    assert (root / "data").read_text() == "of the template"
    assert sorted(path.name for path in root.iterdir()) == ["bin", "data"]


async def test_nothing_is_started_where_the_templates_files_are_gone(driver: GvisorDriver, tmp_path: Path) -> None:
    before = await one(driver)
    assert driver.stands(before)
    shutil.rmtree(tmp_path / "state/images")
    after = await one(driver)
    assert (await sh(driver, after, "echo hi")).stdout == b"hi\n"
    assert (driver.stands(before), driver.stands(after)) == (False, True)
    with pytest.raises(NoSuchSandboxError) as lost:
        await sh(driver, before, "exit 1")
    assert lost.value.reason is EndReason.NODE_LOST
    await driver.destroy([before, after])


async def test_no_template_stands_under_anothers_digest(driver: GvisorDriver, tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "data").write_text(name)
    await driver.prepare(Snapshot("mine", "dir", str(tmp_path / "theirs")))  # as anybody may say
    await driver.prepare(Snapshot("x", "dir", str(tmp_path / "theirs"), template="mine"))
    small = await one(driver, Snapshot("mine", "dir", str(tmp_path / "mine")))
    assert (await driver.read_file(small, "/data")).data == b"mine"


@pytest.mark.parametrize("name", ["tmp", "proc", "dev", ".shoal"])
async def test_a_link_in_an_image_leads_nowhere(driver: GvisorDriver, tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / name).symlink_to(outside)
    (failed,) = await start(driver, [fresh()], StartSpec(Snapshot("dir-link", "dir", str(root))))
    assert isinstance(failed, StartFailed)
    assert f"/{name} is no directory" in failed.detail
    assert list(outside.iterdir()) == []
    assert mounts_below(tmp_path) == []


async def test_a_disk_is_a_root(driver: GvisorDriver, blobs: Blobs, tmp_path: Path) -> None:
    needs_snapshots()
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "note").write_text("of the disk")
    subprocess.run(["mkfs.erofs", "-d0", tmp_path / "disk", root], check=True, capture_output=True)
    snapshot = Snapshot("of-a-disk", "disk", disks=(blobs.add(tmp_path / "disk"),))
    await driver.prepare(snapshot)
    name = await one(driver, snapshot, files=(InputFile("/etc/in", b"given"),))
    assert (await driver.read_file(name, "/etc/note")).data == b"of the disk"
    assert (await driver.read_file(name, "/etc/in")).data == b"given"
    await driver.destroy([name])


async def test_files_that_are_open_and_deleted_are_named_and_the_sandbox_goes_on(
    driver: GvisorDriver, tmp_path: Path
) -> None:
    needs_snapshots()
    name = await one(driver)
    for open_it, close_it in (
        ("f = open('/root/f', 'w+'); n = f.write('a'); f.flush(); os.unlink('/root/f')", "f.close()"),
        (
            "import shutil; shutil.copy('/usr/bin/sleep', '/root/m'); p = subprocess.Popen(['/root/m', '99'])\n"
            "os.unlink('/root/m')",
            "p.kill()",
        ),
        ("os.mkdir('/root/d'); os.chdir('/root/d'); os.rmdir('/root/d')", "os.chdir('/')"),
    ):
        made = await driver.run(name, Command(python=f"import os, subprocess\n{open_it}"))
        assert made.exit_code == 0, made
        kept = tmp_path / "kept"
        kept.mkdir()
        with pytest.raises(UnsupportedError, match=r"/root/[fmd] open, which was deleted"):
            await driver.capture(name, kept, memory=True)
        kept.rmdir()
        assert (await driver.run(name, Command(python=close_it))).exit_code == 0
    await driver.run(
        name, Command(python="import tempfile\nt = tempfile.TemporaryFile(dir='/dev/shm'); k = os.memfd_create('k')")
    )
    whole = tmp_path / "whole"
    whole.mkdir()
    assert (await driver.capture(name, whole, memory=True)).memory is not None
    assert (
        await driver.run(name, Command(python="t.write(b'on'), t.seek(0), t.read()[-2:]"))
    ).stdout == b"(2, 0, b'on')\n"
    await driver.destroy([name])


async def test_a_memory_that_fits_no_more_is_refused_by_name(
    driver: GvisorDriver, blobs: Blobs, tmp_path: Path
) -> None:
    needs_snapshots()
    name = await one(driver)
    whole = await TestGvisorDriver().captured(driver, name, tmp_path / "whole", blobs, memory=True)
    assert whole.memory is not None
    path = blobs.paths[whole.memory.digest]
    data = path.read_bytes()
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro", path, mounted], check=True)
    shutil.copytree(mounted, image)
    subprocess.run(["umount", mounted], check=True)
    about = memory.about(image)
    head = (image / "checkpoint.img").read_bytes()[:4096]
    pieces = 16 + int.from_bytes(head[8:16]) + 32
    assert (head[:8], head[pieces : pieces + 4]) == (b"gVisorSF", bytes((0, 1, 0, 0))), "runsc's format has changed"
    for change, said in (
        ({"runsc": 20200101}, "another runsc: 20200101"),
        ({"platform": "kvm"}, "another runsc's platform: kvm"),
        ({"python": "0"}, "another the executor's Python and Shoal"),
    ):
        other = tmp_path / f"other-{said[-4:]}"
        memory.pack(image, msgspec.structs.replace(about, **change), other)
        odd = msgspec.structs.replace(whole, memory=blobs.add(other))
        (failed,) = await start(driver, [fresh()], StartSpec(odd))
        assert isinstance(failed, StartFailed)
        assert said in failed.detail
    for number, cut in enumerate((b"", data[:100], data[: len(data) // 2], b"x" * 4096)):
        damaged = tmp_path / f"damaged{number}"
        damaged.write_bytes(cut)
        odd = msgspec.structs.replace(whole, memory=blobs.add(damaged))
        (failed,) = await start(driver, [fresh()], StartSpec(odd))
        assert isinstance(failed, StartFailed)
        assert "damaged" in failed.detail or "runsc restore failed" in failed.detail
        assert not [line for line in mounts_below(tmp_path) if "/i erofs" in line]
    started = await one(driver, whole)
    await driver.destroy([name, started])


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.15, 0.3])
async def test_a_capture_that_is_given_up_leaves_the_sandbox_as_it_was(
    driver: GvisorDriver, tmp_path: Path, moment: float
) -> None:
    needs_snapshots()
    name = await one(driver)
    await driver.run(name, Command(python="n = 1"))
    for hold in (False, True):
        kept = tmp_path / f"kept{hold}"
        kept.mkdir()
        capturing = asyncio.create_task(driver.capture(name, kept, memory=True, hold=hold))
        await asyncio.sleep(moment)
        capturing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await capturing
            await driver.go_on(name)
        assert capturing.done()
        if capturing.cancelled():
            assert list(kept.iterdir()) == []
        assert (await driver.run(name, Command(python="n"))).stdout == b"1\n"
    await driver.destroy([name])


async def test_captures_take_turns_and_an_end_comes_first(driver: GvisorDriver, blobs: Blobs, tmp_path: Path) -> None:
    needs_snapshots()
    name = await one(driver)
    await driver.run(name, Command(python="n = 1"))
    suite = TestGvisorDriver()
    asked = [asyncio.create_task(sh(driver, name, f"echo {number}")) for number in range(3)]
    kept = await asyncio.gather(
        *(suite.captured(driver, name, tmp_path / f"kept{number}", blobs, memory=number != 1) for number in range(3))
    )
    assert [(await each).stdout for each in asked] == [b"0\n", b"1\n", b"2\n"]
    assert (await driver.run(name, Command(python="n"))).stdout == b"1\n"
    copy = await one(driver, kept[2])
    assert (await driver.run(copy, Command(python="n"))).stdout == b"1\n"
    await driver.destroy([copy])
    for number, moment in enumerate((0.0, 0.05, 0.15, 0.3)):
        copy = await one(driver)
        place = tmp_path / f"ended{number}"
        place.mkdir()
        capturing = asyncio.create_task(driver.capture(copy, place, memory=True))
        await asyncio.sleep(moment)
        await driver.destroy([copy])
        try:
            await capturing
        except DriverError:
            assert list(place.iterdir()) == []
        assert await driver.list() == [name]
    await driver.destroy([name])


async def test_one_that_cannot_be_ended_can_be_ended_later(
    driver: GvisorDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await one(driver)
    box = driver._live[name]

    async def busy(group: Group) -> None:
        raise OSError(errno.EBUSY, "it is still busy")

    monkeypatch.setattr(driver._groups, "remove", busy)
    for _ in range(2):
        with pytest.raises(NotEndedError, match=f"1 could not be ended, {name} for one: .*busy"):
            await driver.destroy([name])
        assert box.place.exists()
    assert await driver.list() == []
    monkeypatch.undo()
    await driver.destroy([name])
    assert not box.place.exists()
    assert not any(directory.exists() for directory in box.group.directories)


async def test_a_start_that_is_given_up_leaves_nothing(driver: GvisorDriver, tmp_path: Path) -> None:
    for moment in (0.0, 0.02, 0.1, 0.3):
        seen: list[str] = []
        async with contextlib.aclosing(driver.start([fresh() for _ in range(2)], StartSpec(HOST))) as starting:  # type: ignore[type-var]  # the protocol says iterator; this driver's is a generator
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(moment):
                    async for outcome in starting:
                        assert isinstance(outcome, Started)
                        seen += outcome.names
        assert sorted(await driver.list()) == sorted(seen)
        await driver.destroy(seen)
    await nothing_in_the_making(driver)  # so many were asked for that one is kept
    assert mounts_below(tmp_path) == []


async def test_a_start_that_is_given_up_while_its_disk_is_mounted_leaves_no_mount(
    driver: GvisorDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount, unmount, begun, clearing = kernel.mount, kernel.unmount, threading.Event(), threading.Event()

    def slow_mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        if kind == "overlay":
            begun.set()
            clearing.wait(0.5)
        mount(source, target, kind, flags, options)

    def slow_unmount(target: str) -> None:
        clearing.set()
        time.sleep(0.1)
        unmount(target)

    monkeypatch.setattr(kernel, "mount", slow_mount)
    monkeypatch.setattr(kernel, "unmount", slow_unmount)
    starting = asyncio.create_task(start(driver, [fresh()], StartSpec(HOST)))
    assert await asyncio.to_thread(begun.wait, 10)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    assert mounts_below(tmp_path) == []


async def test_a_full_disk_is_an_error_and_the_sandbox_goes_on(driver: GvisorDriver, tmp_path: Path) -> None:
    needs_snapshots()
    name = await one(driver)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        await sh(driver, name, "head -c 1M /dev/urandom > big")
        for keep in (True, False):
            with pytest.raises(DriverError, match="room"):
                await driver.capture(name, small, memory=keep)
            assert list(small.iterdir()) == []
            assert (await sh(driver, name, "echo on")).stdout == b"on\n"
    finally:
        subprocess.run(["umount", small], check=True)
    await driver.destroy([name])


@pytest.mark.parametrize(
    ("wrote", "fault"),
    [
        ("", ""),
        ("panic: ptrace set regs failed\n\ngoroutine 1 [running]:\n", "panic: ptrace set regs failed"),
        ("runtime: failed to create new OS thread\nfatal error: newosproc\npanic: later", "fatal error: newosproc"),
        ("a panic: said by nobody\n panic: nor here", ""),
        (f"panic: {'x' * 1000}", f"panic: {'x' * 493}"),
    ],
)
def test_what_a_kernel_failed_of_is_one_line(wrote: str, fault: str) -> None:
    assert runsc.fault(wrote) == fault


async def test_without_runsc_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IsolationFailedError, match="runsc is not installed: apt install runsc"):
        await GvisorDriver(tmp_path / "state").open(lambda *_: None)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ("echo no version", "nothing that is understood: no version"),
        (
            "if [ $1 = --version ]; then echo runsc version release-20250101.0; else exit 3; fi",
            r"runsc 20250101 does not work here \(ptrace: .*it said nothing.*\);"
            r" another release of it may: see https://gvisor.dev/",
        ),
        ("if [ $1 = --version ]; then echo runsc version release-20250101.0; else sleep 60; fi", "within"),
    ],
)
async def test_a_runsc_that_does_not_work_is_no_isolation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, match: str
) -> None:
    monkeypatch.setattr(runsc, "_ASK_S", 1.0)
    program = tmp_path / "bin" / "runsc"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{said}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(IsolationFailedError, match=match):
        await GvisorDriver(tmp_path / "state").open(lambda *_: None)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
