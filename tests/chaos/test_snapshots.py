"""Snapshots, sleep and builds while things break: processes killed, disks full, blobs damaged."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import shoal
from host import processes
from shoal.cli.system import LocalSystem

pytestmark = [
    pytest.mark.broker,
    pytest.mark.sandbox,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("mkfs.erofs") is None,
        reason="snapshots of live sandboxes need root, and mkfs.erofs of erofs-utils",
    ),
]


def pid_of(module: str, state: Path) -> int:
    """Return the process of a service whose options name this state directory."""
    for pid, line in processes().items():
        if module.encode() in line.split(b"\0") and bytes(state) in line:
            return pid
    raise AssertionError(f"{module} is not running")


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[LocalSystem]:
    async with LocalSystem(tmp_path / "state", port=0) as system:
        yield system


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A blob store with hardly any room."""
    place = tmp_path / "state" / "blobs"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=True, timeout=30)
    yield place
    subprocess.run(["umount", place], check=True, timeout=30)


async def one(rollout: shoal.Rollout) -> shoal.Sandbox:
    (sandbox,) = [sandbox async for sandbox in rollout.ready()]
    return sandbox


async def test_an_executor_killed_while_a_sandbox_falls_asleep_loses_nothing(
    system: LocalSystem, tmp_path: Path
) -> None:
    async with shoal.connect(system.url) as cluster, asyncio.timeout(150):
        async with cluster.rollout("host", timeout="10m") as rollout:
            sandbox = await one(rollout)
            for number, delay_s in enumerate((0.0, 0.005, 0.015, 0.04, 0.1)):
                await sandbox.run(f"echo {number} >> note")
                sleeping = asyncio.create_task(sandbox.hibernate())
                await asyncio.sleep(delay_s)
                os.kill(pid_of("shoal_executor", tmp_path / "state"), signal.SIGKILL)
                await sleeping
                said = await sandbox.run("cat note")
                assert said.stdout.split() == [str(each) for each in range(number + 1)]


async def test_a_service_killed_in_the_middle_of_a_build_makes_it_all_the_same(
    system: LocalSystem, tmp_path: Path
) -> None:
    begun = asyncio.Event()

    def progress(step: str, _line: str) -> None:
        if "sleep" in step:
            begun.set()

    async with shoal.connect(system.url) as cluster, asyncio.timeout(120):
        building = asyncio.create_task(
            cluster.build_template("tools", "host", setup=["sleep 2; echo made > /opt/made"], on_progress=progress)
        )
        await begun.wait()
        os.kill(pid_of("shoal_snapshot", tmp_path / "state"), signal.SIGKILL)
        made = await building
        results = await cluster.map(made, ["cat /opt/made"] * 2)
        assert [result.stdout for result in results] == ["made\n"] * 2


async def test_what_does_not_fit_into_the_store_is_said_and_the_sandbox_goes_on(small: Path, tmp_path: Path) -> None:
    async with LocalSystem(tmp_path / "state", port=0) as system, shoal.connect(system.url) as cluster:
        async with cluster.rollout("host") as rollout:
            sandbox = await one(rollout)
            await sandbox.run("head -c 3000000 /dev/urandom > large; echo on > note")
            with pytest.raises(shoal.SnapshotError, match="no room left"):
                await sandbox.snapshot("full")
            with pytest.raises(shoal.SnapshotError, match="no room left"):
                await sandbox.hibernate()
            assert (await sandbox.run("cat note; rm large")).stdout == "on\n"
            assert await cluster.snapshots() == []  # nothing half-registered
            assert not [path for path in small.rglob("*") if path.is_file() and path.name != ".lock"]
            await sandbox.hibernate()
            assert (await sandbox.run("cat note")).stdout == "on\n"


@pytest.mark.parametrize("damage", ["changed", "truncated", "gone"])
async def test_a_damaged_blob_is_found_and_named(system: LocalSystem, tmp_path: Path, damage: str) -> None:
    async with shoal.connect(system.url) as cluster:
        async with cluster.rollout("host") as rollout:
            sandbox = await one(rollout)
            await sandbox.run("echo kept > note")
            snapshot = await sandbox.snapshot("kept")
        (blob,) = snapshot.wire.layers
        stored = tmp_path / "state" / "blobs" / blob.digest[:2] / blob.digest
        cached = tmp_path / "state" / "executor" / "cache" / blob.digest
        content = stored.read_bytes()
        for path in (stored, cached):
            path.chmod(0o600)
            if damage == "gone":
                path.unlink()
            else:
                path.write_bytes(content[:-1] if damage == "truncated" else b"x" + content[1:])
        os.kill(
            pid_of("shoal_executor", tmp_path / "state"), signal.SIGKILL
        )  # the next one trusts no file of its cache
        async with asyncio.timeout(60), cluster.rollout("kept", max_attempts=1) as rollout:
            failed = await one(rollout)
            says = {"changed": "was changed", "truncated": "bytes", "gone": "is not in"}[damage]
            with pytest.raises(shoal.SandboxLost, match=says):
                await failed.run("cat note")
        stored.parent.mkdir(exist_ok=True)
        stored.write_bytes(content)
        (result,) = await cluster.map("kept", ["cat note"])  # mended, it is of use again
        assert result.stdout == "kept\n"
