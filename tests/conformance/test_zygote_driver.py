import asyncio
import contextlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from conformance.drivers import DriverConformance, fresh, one, sh, start
from shoal.wire.messages import Command, Snapshot
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.protocol import DriverError, NoSuchSandboxError, Started, StartFailed, StartSpec
from shoal_executor.drivers.zygote.driver import ZygoteDriver

pytestmark = pytest.mark.sandbox


@pytest_asyncio.fixture
async def driver(tmp_path: Path) -> AsyncIterator[ZygoteDriver]:
    driver = ZygoteDriver(tmp_path / "state")
    await driver.open(lambda *_: None)
    yield driver
    await driver.close()


class TestZygoteDriver(DriverConformance):
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
    assert len(await start(driver, [StartSpec(name, snapshot) for name in names])) == 2
    assert (await driver.read_file(names[0], "/data")).data == b"of the template"
    await driver.write_file(names[0], "/data", b"changed")
    await driver.write_file(names[0], "/new", b"new")
    assert (await driver.read_file(names[0], "/data")).data == b"changed"
    assert (await driver.read_file(names[1], "/data")).data == b"of the template"
    # The agent needs nothing of the image; a shell line needs a shell, and says so.
    assert (await driver.run(names[0], Command(line="true"))).exit_code == 127
    await driver.destroy(names)
    assert before == sorted((path.relative_to(root), path.stat().st_mtime_ns) for path in root.rglob("*"))


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
        assert not (tmp_path / "state/images/tarhostile").exists()
        assert list(outside.iterdir()) == []
        return
    await driver.prepare(snapshot)
    image = tmp_path / "state/images/tarhostile"
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
    assert await start(driver, [StartSpec(name, Snapshot("tar-whole", "tar", str(whole)))]) == [Started(name)]
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
    (outcome,) = await start(driver, [StartSpec(fresh(), Snapshot("dir-led", "dir", str(root)))])
    assert isinstance(outcome, StartFailed)
    assert f"/{place} is a symbolic link" in outcome.detail


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


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
async def test_a_compressed_archive_is_a_template(driver: ZygoteDriver, tmp_path: Path, packing: str) -> None:
    archive = tmp_path / f"root.tar.{packing}"
    (tmp_path / "file").write_text("packed")
    with tarfile.open(archive, f"w:{packing}") as tar:  # type: ignore[call-overload]  # it wants the mode as a literal
        tar.add(tmp_path / "file", "file")
    snapshot = Snapshot(f"tar-{packing}", "tar", str(archive))
    name = fresh()
    assert await start(driver, [StartSpec(name, snapshot)]) == [Started(name)]
    assert (await driver.read_file(name, "/file")).data == b"packed"


async def test_starts_nobody_waits_for_leave_nothing(driver: ZygoteDriver) -> None:
    host = Snapshot("host", "host")
    starts = driver.start([StartSpec(fresh(), host) for _ in range(24)])
    seen = await anext(starts)
    await starts.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert await driver.list() == [seen.name]


async def test_templates_made_at_once_share_no_uids(driver: ZygoteDriver, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has ranges of uids to give")
    snapshots = []
    for number in range(3):
        (tmp_path / f"r{number}").mkdir()
        snapshots.append(Snapshot(f"dir-{tmp_path.name}-{number}", "dir", str(tmp_path / f"r{number}")))
    await asyncio.gather(*(driver.prepare(snapshot) for snapshot in snapshots))
    bases = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if any(word.startswith(bytes(tmp_path) + b"/r") for word in words):
                bases.append(words[-3])
    assert len(bases) == len(set(bases)) == 3


async def test_without_root_it_isolates_and_says_what_it_cannot_limit(tmp_path: Path) -> None:
    nobody = 65_534
    if os.geteuid() != 0:
        pytest.skip("this test becomes another user, which needs root; the others ran without root already")
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, nobody, nobody)
    reachable = ["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
    program = f"""
import asyncio, pathlib
from shoal.wire.messages import Command, Snapshot
from shoal_executor.drivers.protocol import DriverError, NoSuchSandboxError, Started, StartFailed, StartSpec
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.zygote.driver import ZygoteDriver
async def main():
    driver = ZygoteDriver(pathlib.Path({str(state)!r}))
    report = await driver.open(lambda *_: None)
    assert {{limit.split()[0] for limit in report.unenforced}} == {{"memory", "pids", "cpu"}}, report
    outcomes = [o async for o in driver.start([StartSpec("a-0", Snapshot("host", "host"))])]
    assert outcomes == [Started("a-0")], outcomes
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
    used = fresh()
    for number, root in enumerate(roots):
        root.mkdir(mode=0o755)
        snapshot = Snapshot(f"dir-{number}", "dir", str(root))
        await driver.prepare(snapshot)
        if number == 0:
            assert await start(driver, [StartSpec(used, snapshot)]) == [Started(used)]
    assert set(driver._templates._servers) == {"dir-0", "dir-2", "dir-3"}  # the first has a sandbox
    assert (await driver.run(used, Command(("nothing",)))).exit_code == 127
    again = fresh()
    assert await start(driver, [StartSpec(again, Snapshot("dir-1", "dir", str(roots[1])))]) == [Started(again)]
    await driver.close()
