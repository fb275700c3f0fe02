"""Templates as a trainer meets them: made once, listed, started from, kept and removed."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import shoal
from shoal.cli.system import LocalSystem
from shoal.wire.messages import BuildProgress, PrefetchSnapshot

pytestmark = [
    pytest.mark.broker,
    pytest.mark.sandbox,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("mkfs.erofs") is None,
        reason="templates are made as root, with mkfs.erofs of erofs-utils",
    ),
]
SETUP = ["mkdir -p /opt/lib", "echo 'value = 42' > /opt/lib/known.py; echo done"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalSystem]:
    async with LocalSystem(tmp_path_factory.mktemp("templates"), port=0) as system:
        yield system


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(system: LocalSystem) -> AsyncIterator[shoal.Cluster]:
    async with shoal.connect(system.url) as cluster:
        yield cluster


async def test_a_template_is_made_once_whoever_asks_and_started_from(cluster: shoal.Cluster) -> None:
    steps: list[str] = []
    env, warm = {"PYTHONPATH": "/opt/lib"}, "import known\nknown.value += 1"

    async def make(name: str) -> shoal.Snapshot:
        return await cluster.build_template(
            name, "host", setup=SETUP, warm=warm, env=env, on_progress=lambda step, _: steps.append(step)
        )

    made = await asyncio.gather(*(make(f"tools-{number}") for number in range(4)))
    assert len({each.digest for each in made}) == 1
    assert {"[1/2] mkdir -p /opt/lib", "running the warm code"} <= set(steps)
    async with cluster.rollout("tools-3", n=2) as rollout:
        async for sandbox in rollout.ready():
            assert sandbox.isolation == "zygote"
            assert (await sandbox.python("import sys; known.value, 'known' in sys.modules")).stdout == "(43, True)\n"
            assert (await sandbox.run("cat /opt/lib/known.py")).stdout == "value = 42\n"
    begun = [event async for event in cluster.events(since="5m") if isinstance(event.message, BuildProgress)]
    keys = {event.message.key for event in begun if isinstance(event.message, BuildProgress)}
    assert len(keys) == 1  # four asked at once
    again = await make("tools-0")
    assert again.digest == made[0].digest
    more = await cluster.build_template("more", "template:tools-1", setup=["echo two > /opt/two"])
    assert more.digest != made[0].digest
    async with cluster.rollout(more) as rollout:
        async for sandbox in rollout.ready():
            assert (await sandbox.run("cat /opt/two")).stdout == "two\n"
            assert (await sandbox.python("known.value")).stdout == "43\n"


async def test_what_cannot_be_made_says_why_and_registers_nothing(cluster: shoal.Cluster) -> None:
    with pytest.raises(shoal.BuildFailed, match=r"exited with 3:\noh no"):
        await cluster.build_template("bad", "host", setup=["true", "echo oh no >&2; exit 3", "touch /never"])
    with pytest.raises(shoal.BuildFailed, match="no_such_module"):
        await cluster.build_template("bad", "host", warm="import no_such_module")
    with pytest.raises(shoal.BuildFailed, match=r"set-up command 'sleep 60' timed out"):
        await cluster.build_template("bad", "host", setup=["sleep 60"], timeout=0.5)
    with pytest.raises(shoal.BuildFailed, match="not an existing directory"):
        await cluster.build_template("bad", "dir:/no/such/place")
    with pytest.raises(shoal.BuildFailed, match="is called 'nope'"):
        await cluster.build_template("bad", "template:nope")
    for name, source, field in (("bad", "nope:x", "source"), ("no name", "host", "name")):
        with pytest.raises(shoal.BadRequest, match=field):
            await cluster.build_template(name, source)
    assert "bad" not in {name for info in await cluster.snapshots() for name in info.names}
    with pytest.raises(shoal.Rejected, match="bad"):
        await cluster.rollout("bad")


async def test_snapshots_are_listed_with_their_lineage_kept_and_removed(cluster: shoal.Cluster) -> None:
    base = await cluster.build_template("base", "host", setup=["echo base > /opt/base"])
    async with cluster.rollout("base", timeout="2m") as rollout:
        (sandbox,) = [each async for each in rollout.ready()]
        first = await sandbox.snapshot("first")
        await sandbox.run("echo more > note")
        second = await sandbox.snapshot()
    infos = {info.digest: info for info in await cluster.snapshots()}
    assert infos[first.digest].parent == base.digest
    assert infos[second.digest].origin == sandbox.name
    assert infos[second.digest].names == ()
    assert infos[base.digest].template
    assert not infos[first.digest].template
    await cluster.pin_snapshot(second)
    assert next(info for info in await cluster.snapshots() if info.digest == second.digest).pinned
    await cluster.prefetch("base")
    async with asyncio.timeout(30):
        while not any(isinstance(e.message, PrefetchSnapshot) for e in [e async for e in cluster.events(since="1m")]):
            await asyncio.sleep(0.1)
    with pytest.raises(shoal.NoSuchSnapshot, match="nope"):
        await cluster.prefetch("nope")
    assert "grew from it" in await cluster.remove_snapshot("base")
    with pytest.raises(shoal.NoSuchSnapshot, match="base"):
        await cluster.remove_snapshot("base")
    async with shoal.connect(cluster.url, tenant="stranger") as stranger:
        assert await stranger.snapshots() == []
        with pytest.raises(shoal.NoSuchSnapshot):
            await stranger.pin_snapshot(second)
    results = await cluster.map(second, ["cat note /opt/base"])
    assert [result.stdout for result in results] == ["more\nbase\n"]


async def test_the_command_line(system: LocalSystem, tmp_path: Path) -> None:
    await asyncio.to_thread(command_line, system.url, tmp_path)


def command_line(url: str, tmp_path: Path) -> None:
    def run(*words: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "shoal.cli", *words, "--url", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    root = tmp_path / "root"
    for name in ("bin", "etc", "usr"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox" if Path("/bin/busybox").exists() else "/bin/true", root / "bin" / "true")
    assert "template small is" in run("template", "build", "small", "--from", "dir:root")
    (shown,) = [json.loads(line) for line in run("template", "show", "small", "--json").splitlines()]
    assert (shown["kind"], shown["disks"], shown["names"]) == ("disk", 1, ["small"])
    built = run("template", "build", "next", "--from", "template:small", "--env", "A=1", "--json").splitlines()
    assert json.loads(built[-1])["template"] == "next"
    assert "next" in run("template", "ls")
    assert shown["digest"][:12] in run("snapshot", "tree")
    assert "is pinned" in run("snapshot", "pin", shown["digest"][:12])
    assert "pinned" in run("snapshot", "ls")
    assert "no longer pinned" in run("snapshot", "pin", "--off", "small")
    assert "is being fetched by every node" in run("snapshot", "prefetch", "next")
    assert "small is removed" in run("snapshot", "rm", "small")
    assert "is none of this tenant's" in run("template", "rm", "small", status=4)
    assert "exited with 7" in run("template", "build", "bad", "--from", "host", "--setup", "exit 7", status=19)
