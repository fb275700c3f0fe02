import ast
import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from conformance.drivers import HOST, Blobs, DriverConformance, chain, fresh, needs_snapshots, one, sh, start
from conformance.files import FilesConformance
from shoal.wire.messages import Blob, Command, EndReason, Resources, Snapshot
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.link import Link
from shoal_executor.drivers.cgroups import Group
from shoal_executor.drivers.protocol import (
    BadInputError,
    DriverError,
    NoSuchSandboxError,
    NotEndedError,
    Started,
    StartFailed,
    StartSpec,
)
from shoal_executor.drivers.roots import key_of
from shoal_executor.drivers.zygote.driver import ZygoteDriver
from shoal_executor.drivers.zygote.forkserver import entries

pytestmark = pytest.mark.sandbox


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest_asyncio.fixture
async def driver(tmp_path: Path, blobs: Blobs) -> AsyncIterator[ZygoteDriver]:
    driver = ZygoteDriver(tmp_path / "state", blobs)
    await driver.open(lambda *_: None)
    yield driver
    await driver.close()


class TestZygoteDriver(DriverConformance, FilesConformance):
    pass


def small_root(place: Path) -> Path:
    """A root with one static program in it and nothing else: no shell, no library, no interpreter."""
    (place / "bin").mkdir(parents=True)
    busybox = Path("/bin/busybox")
    if busybox.exists():
        (place / "bin/busybox").write_bytes(busybox.read_bytes())
        (place / "bin/busybox").chmod(0o755)
    (place / "data").write_text("of the template")
    (place / "data").chmod(0o644)
    return place


async def test_a_directory_is_a_template_and_stays_as_it_was(driver: ZygoteDriver, tmp_path: Path) -> None:
    root = small_root(tmp_path / "root")
    before = sorted((path.relative_to(root), path.stat().st_mtime_ns) for path in root.rglob("*"))
    snapshot = Snapshot("dir-small", "dir", str(root))
    names = [fresh(), fresh()]
    assert len(await start(driver, names, StartSpec(snapshot))) == 2
    assert (await driver.read_file(names[0], "/data")).data == b"of the template"
    await driver.write_file(names[0], "/data", b"changed")
    await driver.write_file(names[0], "/new", b"new")
    assert (await driver.read_file(names[0], "/data")).data == b"changed"
    assert (await driver.read_file(names[1], "/data")).data == b"of the template"
    # The agent needs nothing of the image; a shell line needs a shell, and says so.
    assert (await driver.run(names[0], Command(line="true"))).exit_code == 127
    await driver.destroy(names)
    assert before == sorted((path.relative_to(root), path.stat().st_mtime_ns) for path in root.rglob("*"))


@pytest.mark.parametrize("busy", [True, False], ids=["while one lives", "while none does"])
@pytest.mark.parametrize("what", ["images", "host root", "archive", "part of an archive", "directory"])
async def test_nothing_is_started_where_the_templates_files_are_gone(
    driver: ZygoteDriver, tmp_path: Path, what: str, busy: bool
) -> None:
    """A command that no program is left for would be taken for the policy's failure."""
    root = small_root(tmp_path / "root")
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        for path in root.iterdir():
            tar.add(path, path.name)
    snapshot = HOST
    if "archive" in what:
        snapshot = Snapshot("a", "tar", str(tmp_path / "root.tar"))
    elif what == "directory":
        snapshot = Snapshot("a", "dir", str(root))
    ended: list[tuple[str, EndReason, str]] = []
    driver._on_exit = lambda *told: ended.append(told)
    before = fresh()
    assert await start(driver, [before], StartSpec(snapshot)) == [Started((before,))]
    assert driver.stands(before)
    server = driver._live[before].zygote
    if not busy:
        await driver.destroy([before])
    images = tmp_path / "state/images"
    unpacked = next((path for path in images.iterdir() if path.name.startswith("tar-")), images)
    gone = {"images": images, "host root": images / "host", "archive": unpacked, "directory": root}.get(what)
    if gone is not None:
        shutil.rmtree(gone)
        shutil.rmtree(tmp_path / "state/forks")
    else:
        shutil.rmtree(unpacked / "bin")
    after = fresh()
    (outcome,) = await start(driver, [after], StartSpec(snapshot))
    if what == "directory":
        assert isinstance(outcome, StartFailed)
        assert "no such directory on this node" in outcome.detail
    else:
        assert outcome == Started((after,))
        if snapshot == HOST:
            assert (await sh(driver, after, "echo hi")).stdout == b"hi\n"
        else:
            assert (await driver.read_file(after, "/data")).data == b"of the template"
        assert driver.stands(after)
        assert driver._live[after].zygote is not server
    if busy:  # what lives there has nothing to go on with: its command's failure is the node's
        assert not driver.stands(before)
        with pytest.raises(NoSuchSandboxError) as lost:
            await driver.run(before, Command(line="echo hi"))
        assert lost.value.reason is EndReason.NODE_LOST
        assert ended == [
            (before, EndReason.NODE_LOST, "its template's files are gone from this node, or were replaced")
        ]
        await driver.destroy([before])
    await driver.destroy([after])
    await start(driver, [last := fresh()], StartSpec(HOST))
    assert (await sh(driver, last, "echo hi")).stdout == b"hi\n"


async def test_no_template_stands_under_anothers_digest(driver: ZygoteDriver, tmp_path: Path) -> None:
    mine, theirs = small_root(tmp_path / "mine"), small_root(tmp_path / "theirs")
    (mine / "data").write_text("mine")
    await driver.prepare(Snapshot("mine", "dir", str(theirs)))  # as anybody may say
    await driver.prepare(Snapshot("x", "dir", str(theirs), template="mine"))
    name = await one(driver, Snapshot("mine", "dir", str(mine)))
    assert (await driver.read_file(name, "/data")).data == b"mine"


@pytest.mark.parametrize("through_link", [False, True])
async def test_an_archive_cannot_reach_outside(driver: ZygoteDriver, tmp_path: Path, through_link: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("bin", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        link = tarfile.TarInfo("way-out")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
        for name in ("way-out/planted",) if through_link else ("/absolute", "../../climbed"):
            entry = tarfile.TarInfo(name)
            tar.addfile(entry)
        device = tarfile.TarInfo("disk")
        device.type, device.devmajor, device.devminor = tarfile.BLKTYPE, 8, 0
        tar.addfile(device)
    snapshot = Snapshot("tar-hostile", "tar", str(archive))
    if through_link:
        with pytest.raises(DriverError, match="cannot be unpacked"):
            await driver.prepare(snapshot)
        assert {path.name for path in (tmp_path / "state/images").iterdir()} == {"host"}
        assert list(outside.iterdir()) == []
        return
    await driver.prepare(snapshot)
    (image,) = (tmp_path / "state/images").glob("tar-*")
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "climbed").exists()
    assert not await asyncio.to_thread(Path("/absolute").exists)
    assert (image / "absolute").exists()
    assert not (image / "disk").exists()


async def test_a_truncated_archive_leaves_nothing(driver: ZygoteDriver, tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    (tmp_path / "file").write_bytes(bytes(100_000))
    with tarfile.open(whole, "w") as tar:
        tar.add(tmp_path / "file", "file")
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:50_000])
    with pytest.raises(DriverError, match=r"cut\.tar"):
        await driver.prepare(Snapshot("tar-cut", "tar", str(tmp_path / "cut.tar")))
    images = {path.name for path in (tmp_path / "state/images").iterdir()}
    assert images == {"host"}
    await driver.prepare(Snapshot("tar-whole", "tar", str(whole)))
    name = fresh()
    assert await start(driver, [name], StartSpec(Snapshot("tar-whole", "tar", str(whole)))) == [Started((name,))]
    assert (await driver.read_file(name, "/file")).size == 100_000


async def test_commands_run_as_the_user_that_was_asked_for(driver: ZygoteDriver) -> None:
    name = await one(driver, user="nobody")
    assert (await sh(driver, name, "id -u")).stdout == b"65534\n"
    assert (await sh(driver, name, "id -u", user="root")).stdout == b"0\n"
    assert (await sh(driver, name, "echo x > /etc/passwd")).exit_code != 0
    assert (await sh(driver, name, "echo x >> /etc/passwd && chown 5:5 /etc/hosts", user="root")).exit_code == 0


@pytest.mark.parametrize("place", ["proc", "dev", "tmp", "root"])
async def test_a_template_cannot_lead_mounts_astray(driver: ZygoteDriver, tmp_path: Path, place: str) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o755)
    (root / place).symlink_to("/box/m/elsewhere")
    (root / "elsewhere").mkdir()
    (outcome,) = await start(driver, [fresh()], StartSpec(Snapshot("dir-led", "dir", str(root))))
    assert isinstance(outcome, StartFailed)
    assert f"/{place} is a symbolic link" in outcome.detail


async def test_why_it_could_not_be_made_is_heard_after_its_end(
    driver: ZygoteDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir(mode=0o755)
    (tmp_path / "root/proc").symlink_to("/")
    made = Link.connection_made

    def slow(link: Link, transport: asyncio.BaseTransport) -> None:
        made(link, transport)
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        asyncio.get_running_loop().call_later(0.3, resume, transport)

    def resume(transport: asyncio.Transport) -> None:
        if not transport.is_closing():
            transport.resume_reading()

    await driver.prepare(Snapshot("dir-led", "dir", str(tmp_path / "root")))
    monkeypatch.setattr(Link, "connection_made", slow)
    (outcome,) = await start(driver, [fresh()], StartSpec(Snapshot("dir-led", "dir", str(tmp_path / "root"))))
    assert isinstance(outcome, StartFailed)
    assert "/proc is a symbolic link" in outcome.detail


async def test_an_agent_that_sends_more_than_it_may_is_ended(driver: ZygoteDriver) -> None:
    name = await one(driver)
    sandbox = driver._live[name]
    seen = bytearray()
    command = Command(line="sleep 100", output_limit=100)
    running = asyncio.create_task(driver.run(name, command, lambda _, data: seen.extend(data)))
    await sh(driver, name, "true")
    id = max(sandbox.link._waiting)
    for _ in range(5):
        sandbox.link.data_received(frames.pack(frames.Output(id, 1, b"x" * 30)))
    (outcome,) = await asyncio.gather(running, return_exceptions=True)
    assert isinstance(outcome, NoSuchSandboxError)
    assert len(seen) == 90


async def test_a_capture_that_is_given_up_at_once_leaves_nothing_frozen(driver: ZygoteDriver, tmp_path: Path) -> None:
    needs_snapshots()
    name = await one(driver)
    for turns in range(20):
        directory = tmp_path / str(turns)
        directory.mkdir()
        capturing = asyncio.create_task(driver.capture(name, directory, memory=False))
        for _ in range(turns):
            await asyncio.sleep(0)
        capturing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await capturing
        async with asyncio.timeout(20):
            assert (await sh(driver, name, "echo on")).stdout == b"on\n"
    await driver.destroy([name])


async def test_limits_are_lowered_but_for_the_agents(driver: ZygoteDriver) -> None:
    name = await one(driver)
    line = "prlimit --pid $$ --nofile=64 && prlimit --nofile=32 sh -c 'ulimit -n' && prlimit --pid 1 > /dev/null"
    own = await sh(driver, name, line)
    assert (own.exit_code, own.stdout) == (0, b"32\n")
    of_agent = await sh(driver, name, "prlimit --pid 1 --nofile=4")
    assert of_agent.exit_code != 0
    assert b"not permitted" in of_agent.stderr
    assert (await sh(driver, name, "echo on")).stdout == b"on\n"
    await driver.destroy([name])


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
async def test_a_compressed_archive_is_a_template(driver: ZygoteDriver, tmp_path: Path, packing: str) -> None:
    archive = tmp_path / f"root.tar.{packing}"
    (tmp_path / "file").write_text("packed")
    with tarfile.open(archive, f"w:{packing}") as tar:  # type: ignore[call-overload]  # it wants the mode as a literal
        tar.add(tmp_path / "file", "file")
    snapshot = Snapshot(f"tar-{packing}", "tar", str(archive))
    name = fresh()
    assert await start(driver, [name], StartSpec(snapshot)) == [Started((name,))]
    assert (await driver.read_file(name, "/file")).data == b"packed"


async def test_one_that_cannot_be_ended_is_named_and_the_others_end(
    driver: ZygoteDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [fresh() for _ in range(3)]
    await start(driver, names, StartSpec(HOST))
    stuck, groups = driver._live[names[1]].group, [driver._live[name].group for name in names]
    remove = driver._groups.remove

    async def but_one(group: Group) -> None:
        if group is stuck:
            raise OSError(errno.EBUSY, "it is still busy")
        await remove(group)

    monkeypatch.setattr(driver._groups, "remove", but_one)
    with pytest.raises(NotEndedError, match=f"1 could not be ended, {names[1]} for one: .*busy") as caught:
        await driver.destroy(names)
    assert caught.value.names == {names[1]}
    left = [name for name, group in zip(names, groups, strict=True) if any(d.exists() for d in group.directories)]
    assert left == [names[1]]
    assert await driver.list() == []
    with pytest.raises(NotEndedError):  # still
        await driver.destroy(names)
    monkeypatch.undo()
    await driver.destroy(names)
    assert not any(directory.exists() for directory in stuck.directories)


async def test_a_start_that_finds_no_descriptor_left_leaves_nothing(
    driver: ZygoteDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fresh()

    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    before = os.listdir("/proc/self/fd")
    for place in ("shoal_executor.drivers.zygote.driver.socket.socketpair", "shoal_executor.drivers.cgroups.os.open"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            (outcome,) = await start(driver, [name], StartSpec(HOST))
        assert isinstance(outcome, StartFailed)
        assert "Too many open files" in outcome.detail
        assert not driver._groups.find(name).directories
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert await start(driver, [name], StartSpec(HOST)) == [Started((name,))]


async def test_whoever_asks_for_an_end_that_is_under_way_waits_for_it(
    driver: ZygoteDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await one(driver)
    begun, go, remove = asyncio.Event(), asyncio.Event(), driver._groups.remove

    async def later(group: Group) -> None:
        begun.set()
        await go.wait()
        await remove(group)

    async def left_when_destroyed() -> bool:
        await driver.destroy([name])
        return name in driver._ending

    monkeypatch.setattr(driver._groups, "remove", later)
    first = asyncio.create_task(left_when_destroyed())
    await begun.wait()
    second = asyncio.create_task(left_when_destroyed())
    asyncio.get_running_loop().call_soon(go.set)  # when the second has asked
    assert not any(await asyncio.gather(first, second))


async def test_starts_nobody_waits_for_leave_nothing(driver: ZygoteDriver) -> None:
    host = Snapshot("host", "host")
    starts = driver.start([fresh() for _ in range(24)], StartSpec(host))
    seen = await anext(starts)
    assert isinstance(seen, Started)
    await starts.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert sorted(await driver.list()) == sorted(seen.names)


async def test_templates_made_at_once_share_no_uids(driver: ZygoteDriver, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has ranges of uids to give")
    snapshots = []
    for number in range(3):
        (tmp_path / f"r{number}").mkdir()
        snapshots.append(Snapshot(f"dir-{tmp_path.name}-{number}", "dir", str(tmp_path / f"r{number}")))
    await asyncio.gather(*(driver.prepare(snapshot) for snapshot in snapshots))
    keys = {key_of(snapshot) for snapshot in snapshots}
    ours = [entry for _, entry in entries(tmp_path / "state" / "forks") if entry.digest in keys]
    bases = [entry.base for entry in ours]
    assert len(bases) == len(set(bases)) == 3


async def test_a_start_without_a_control_group_leaves_nothing_open(
    driver: ZygoteDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one(driver)
    before = sorted(os.listdir("/proc/self/fd"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room for a control group")

    with monkeypatch.context() as broken:
        broken.setattr(driver._groups, "make", full)
        (outcome,) = await start(driver, [fresh()], StartSpec(HOST))
    assert isinstance(outcome, StartFailed)
    assert "no room for a control group" in outcome.detail
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert await one(driver)


def opened(scratch: Path, *places: str) -> list[str]:
    """Return what a command begins with that sees these places, though a directory above them (a home) is closed."""
    inside: dict[Path, set[Path]] = {}
    for place in map(Path, places):
        closed = next((each for each in reversed(place.parents) if not each.stat().st_mode & 0o001), None)
        if closed is not None:
            inside.setdefault(closed, set()).add(closed / place.relative_to(closed).parts[0])
    lines = []
    for closed, found in inside.items():
        spares = {inner: scratch / f"spare-{inner.name}" for inner in found}
        for inner, spare in spares.items():
            spare.mkdir()
            lines.append(f"mount --bind {inner} {spare}")
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {closed}")
        lines += [f"mkdir {inner}; mount --bind {spare} {inner}" for inner, spare in spares.items()]
    return ["unshare", "--mount", "sh", "-ec", "\n".join([*lines, 'exec "$@"']), "sh"] if lines else []


async def test_without_root_it_isolates_and_says_what_it_cannot_limit(tmp_path: Path) -> None:
    nobody = 65_534
    if os.geteuid() != 0:
        pytest.skip("this test becomes another user, which needs root; the others ran without root already")
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, nobody, nobody)
    seen = opened(tmp_path, sys.base_prefix, sys.prefix, str(Path(__file__).resolve()))
    reachable = [*seen, "setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
    program = f"""
import asyncio, pathlib
from shoal.wire.messages import Blob, Command, Resources, Snapshot
from shoal_executor.drivers.protocol import DriverError, NoSuchSandboxError, Started, StartFailed, StartSpec
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.zygote.driver import ZygoteDriver
from shoal_executor.drivers.zygote.forkserver import entries
async def main():
    driver = ZygoteDriver(pathlib.Path({str(state)!r}))
    report = await driver.open(lambda *_: None)
    assert {{limit.split()[0] for limit in report.unenforced}} == {{"memory", "pids", "cpu"}}, report
    outcomes = [outcome async for outcome in driver.start(["a-0"], StartSpec(Snapshot("host", "host")))]
    assert outcomes == [Started(("a-0",))], outcomes
    result = await driver.run("a-0", Command(line="id -u; echo x > /etc/new && cat /etc/new; cat /etc/shadow"))
    assert result.stdout == b"0\\nx\\n", result
    await driver.close()
asyncio.run(main())
"""
    for parent in state.parents:
        if parent.is_relative_to(tempfile.gettempdir()):
            parent.chmod(parent.stat().st_mode | 0o011)
    command = [*reachable, sys.executable, "-c", program]
    probe = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import shoal_executor'], check=True)"
    tried = await asyncio.to_thread(
        subprocess.run, [*reachable, sys.executable, "-c", probe], capture_output=True, timeout=30
    )
    if tried.returncode:
        pytest.skip("this checkout's interpreter is not readable to other users")
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


async def test_fork_servers_of_forgotten_templates_are_ended(tmp_path: Path) -> None:
    driver = ZygoteDriver(tmp_path / "state", keep=2)
    await driver.open(lambda *_: None)
    roots = [tmp_path / f"root{number}" for number in range(4)]
    kept = [key_of(Snapshot(f"dir-{number}", "dir", str(roots[number]))) for number in (0, 2, 3)]
    used = fresh()
    for number, root in enumerate(roots):
        root.mkdir(mode=0o755)
        snapshot = Snapshot(f"dir-{number}", "dir", str(root))
        await driver.prepare(snapshot)
        if number == 0:
            assert await start(driver, [used], StartSpec(snapshot)) == [Started((used,))]
    assert set(driver._templates._servers) == set(kept)  # the first has a sandbox
    assert (await driver.run(used, Command(("nothing",)))).exit_code == 127
    again = fresh()
    assert await start(driver, [again], StartSpec(Snapshot("dir-1", "dir", str(roots[1])))) == [Started((again,))]
    await driver.close()


async def test_a_disk_is_a_template_and_every_sandbox_has_it_to_itself(
    driver: ZygoteDriver, tmp_path: Path, blobs: Blobs
) -> None:
    needs_snapshots()
    root = small_root(tmp_path / "root")
    disks = []
    for number, text in enumerate(("lower", "upper")):
        (root / f"of-{number}").write_text(text)
        (root / "both").write_text(text)
        file = tmp_path / f"disk-{number}"
        subprocess.run(["mkfs.erofs", "-d0", file, root], check=True, capture_output=True, timeout=60)
        disks.append(blobs.add(file))
        (root / f"of-{number}").unlink()
    snapshot = Snapshot("disk-small", "disk", disks=tuple(disks))
    names = [fresh(), fresh()]
    assert len(await start(driver, names, StartSpec(snapshot))) == 2
    found = [(await driver.read_file(names[0], path)).data for path in ("/of-0", "/of-1", "/both")]
    assert found == [b"lower", b"upper", b"upper"]
    await driver.write_file(names[0], "/both", b"changed")
    assert (await driver.read_file(names[1], "/both")).data == b"upper"
    mounts = Path("/proc/self/mountinfo").read_text()
    assert "erofs" not in mounts  # nobody on the host sees them, and nothing can stay behind
    await driver.destroy(names)


@pytest.mark.parametrize("length", [12, 13, 16])
async def test_a_sandbox_of_many_layers_has_its_limits(
    driver: ZygoteDriver, tmp_path: Path, blobs: Blobs, length: int
) -> None:
    needs_snapshots()
    snapshot = await asyncio.to_thread(chain, tmp_path / "chain", blobs, length)
    name = await one(driver, snapshot)
    assert (await sh(driver, name, "echo /root/of-* | wc -w")).stdout == b"%d\n" % length
    doors = driver._groups.doors(driver._live[name].group)
    assert doors
    assert all(door.read_text().split() for door in doors)


async def test_what_is_too_deep_is_refused_and_says_so(driver: ZygoteDriver) -> None:
    layers = tuple(Blob(f"{number:064x}", 1) for number in range(250))
    snapshot = Snapshot("deep", "host", layers=layers, template="host")
    (outcome,) = await start(driver, [fresh()], StartSpec(snapshot))
    assert isinstance(outcome, StartFailed)
    assert "250 layers" in outcome.detail
    with pytest.raises(DriverError, match="250 layers"):  # a rollback finds out while the sandbox still lives
        await driver.prepare(snapshot)


async def test_too_large_an_environment_fails_its_own_start_alone(driver: ZygoteDriver) -> None:
    neighbour = await one(driver)
    env = tuple((f"V{number}", "x" * 60_000) for number in range(5))
    (outcome,) = await start(driver, [fresh()], StartSpec(HOST, env=env))
    assert isinstance(outcome, StartFailed)
    assert outcome.detail.startswith("env:")
    assert (await sh(driver, neighbour, "echo on")).stdout == b"on\n"
    large = await one(driver, env=env[:2])
    assert (await sh(driver, large, "echo ${#V0} ${#V1}")).stdout == b"60000 60000\n"
    assert sorted(await driver.list()) == sorted([neighbour, large])


@pytest.mark.parametrize("damage", ["truncated", "other", "absent"])
async def test_a_damaged_disk_is_refused(driver: ZygoteDriver, tmp_path: Path, blobs: Blobs, damage: str) -> None:
    file = tmp_path / "disk"
    file.write_bytes(b"no disk at all" * 1000 if damage == "other" else b"")
    blob = blobs.add(file)
    if damage == "absent":
        del blobs.paths[blob.digest]
    (outcome,) = await start(driver, [fresh()], StartSpec(Snapshot("bad", "disk", disks=(blob,))))
    assert isinstance(outcome, StartFailed)
    assert blob.digest[:12] in outcome.detail
    assert await driver.list() == []


async def test_a_warm_template_runs_its_code_once_and_every_sandbox_goes_on_from_there(
    driver: ZygoteDriver, tmp_path: Path, blobs: Blobs
) -> None:
    code = "import json, os, random\nseed = random.random()\ncount = 41\nopen('/tmp/only-there', 'w').close()"
    snapshot = Snapshot("warm", "host", warm=code)
    names = [fresh() for _ in range(8)]
    for name in names:
        assert await start(driver, [name], StartSpec(snapshot, env=(("WHO", name),))) == [Started((name,))]
    look = "count += 1\n(seed, count, os.environ['WHO'], os.path.exists('/tmp/only-there'), os.getpid() < 10)"
    said = [(await driver.run(name, Command(python=look))).stdout.decode() for name in names]
    values = [ast.literal_eval(text) for text in said]
    assert len({value[0] for value in values}) == 1
    assert [value[1:] for value in values] == [(42, name, False, True) for name in names]
    assert (await driver.run(names[0], Command(python="count"))).stdout == b"42\n"
    # It is a process of its sandbox like any other: seen there, limited there, ended with it.
    assert b"served" not in (await sh(driver, names[0], "cat /proc/2/cmdline | tr '\\0' ' '")).stderr
    limits = Resources(memory=64 * 1024**2)
    outcome = await one(driver, snapshot, resources=limits)
    hog = await driver.run(outcome, Command(python="hog = bytearray(200 * 1024 ** 2)"))
    assert hog.exit_code != 0
    assert (await sh(driver, outcome, "echo alive")).stdout == b"alive\n"
    attempts = (
        "import ctypes\nc = ctypes.CDLL(None)\nc.setns(os.open('/proc/self/ns/user', 0), 0), c.unshare(0x10000000)"
    )
    assert (await driver.run(names[1], Command(python=attempts))).stdout == b"(-1, -1)\n"
    needs_snapshots()
    second = await TestZygoteDriver().captured(driver, names[1], tmp_path / "kept", blobs, snapshot)
    forked = await one(driver, second)
    assert (await driver.run(forked, Command(python="count"))).stdout == b"41\n"  # the template's, not names[1]'s
    await driver.destroy([*names, outcome, forked])


@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_what_is_made_in_a_sandbox_is_readable_whatever_the_executor_makes(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    driver = ZygoteDriver(tmp_path / "state")
    try:
        await driver.open(lambda *_: None)
        name = await one(driver, Snapshot("warm", "host", warm="import os"))
        look = "open('/tmp/by-python', 'w').close(); os.stat('/tmp/by-python').st_mode & 0o777"
        assert (await driver.run(name, Command(python=look))).stdout == b"%d\n" % 0o644
        assert (await sh(driver, name, "touch /tmp/new && stat -c %a /tmp/new /tmp")).stdout == b"644\n1777\n"
    finally:
        os.umask(before)
        await driver.close()


async def test_a_warm_interpreter_has_the_limits_of_what_the_kernel_counts_by_user(driver: ZygoteDriver) -> None:
    look = (
        "import resource\n[resource.getrlimit(kind) for kind in (resource.RLIMIT_SIGPENDING, resource.RLIMIT_MSGQUEUE)]"
    )
    cold = await one(driver)
    warm = await one(driver, Snapshot("warm", "host", warm="n = 41"))
    plain, copied = [await driver.run(name, Command(python=look)) for name in (cold, warm)]
    assert plain.exit_code == 0
    assert copied.stdout == plain.stdout
    assert b"-1" not in copied.stdout
    await driver.destroy([cold, warm])


async def test_many_copies_at_once_though_one_that_waited_to_be_one_was_killed(driver: ZygoteDriver) -> None:
    snapshot = Snapshot("warm", "host", warm="n = 41")
    await driver.prepare(snapshot)
    group = (await driver._templates.server_of(snapshot)).group
    if group is None or not group.directories:
        pytest.skip("without control groups nobody knows which processes these are")
    members = [int(line) for line in (group.directories[0] / "cgroup.procs").read_text().split()]
    os.kill(max(members), signal.SIGKILL)
    names = [fresh() for _ in range(24)]
    assert len(await start(driver, names, StartSpec(snapshot))) == 24
    said = await asyncio.gather(*(driver.run(name, Command(python="n += 1; n")) for name in names))
    assert {result.stdout for result in said} == {b"42\n"}
    await driver.destroy(names)


async def test_code_that_fails_to_warm_fails_the_start_with_its_traceback(driver: ZygoteDriver) -> None:
    (outcome,) = await start(driver, [fresh()], StartSpec(Snapshot("cold", "host", warm="import no_such_module")))
    assert isinstance(outcome, StartFailed)
    assert "No module named 'no_such_module'" in outcome.detail


@pytest.mark.parametrize(
    ("code", "told"),
    [("import known_by_nobody", "warm: .*known_by_nobody"), ("while True: pass", "warm: .* within 1 s")],
)  # fmt: skip
async def test_code_that_cannot_warm_a_template_is_whose_it_was(
    driver: ZygoteDriver, monkeypatch: pytest.MonkeyPatch, code: str, told: str
) -> None:
    monkeypatch.setattr("shoal_executor.drivers.zygote.forkserver._WARM_S", 1.0 if "while" in code else 60.0)
    with pytest.raises(BadInputError, match=f"(?s){told}"):
        await driver.prepare(Snapshot("cold", "host", warm=code))
