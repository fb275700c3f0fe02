"""Sandboxes whose memory is kept, as a trainer meets them: forked, put to sleep, gone back to, resumed."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import shoal
from host import with_argument
from shoal.cli.system import LocalSystem
from shoal.wire.messages import SandboxSaved

pytestmark = [
    pytest.mark.broker,
    pytest.mark.sandbox,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("runsc", "mkfs.erofs")),
        reason="isolation gvisor needs root, runsc, and mkfs.erofs of erofs-utils",
    ),
]
COUNTING = "i=0; while :; do i=$((i+1)); echo $i > count; sleep 0.02; done >/dev/null 2>&1 &"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[LocalSystem, Path]]:
    state = tmp_path_factory.mktemp("gvisor")
    async with LocalSystem(state, port=0, driver="zygote,gvisor") as system:
        yield system, state
    assert str(state) not in Path("/proc/self/mounts").read_text()


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(system: tuple[LocalSystem, Path]) -> AsyncIterator[shoal.Cluster]:
    async with shoal.connect(system[0].url) as cluster:
        yield cluster


async def one(rollout: shoal.Rollout) -> shoal.Sandbox:
    (sandbox,) = [sandbox async for sandbox in rollout.ready()]
    return sandbox


async def grows(sandbox: shoal.Sandbox, beyond: int = 0) -> int:
    """Return a count of the sandbox's that is larger than another."""
    async with asyncio.timeout(30):
        while True:
            said = (await sandbox.run("cat count")).stdout.strip()
            if said and int(said) > beyond:
                return int(said)


async def test_the_isolation_is_chosen_and_shown(cluster: shoal.Cluster) -> None:
    for isolation in ("gvisor", "zygote"):
        (result,) = await cluster.map("host", ["uname -r"], isolation=isolation)
        assert result.isolation == isolation
        assert (result.stdout.strip() == os.uname().release) == (isolation == "zygote")
    with pytest.raises(shoal.Rejected, match="isolation: no node offers 'simulated'; use one of: gvisor, zygote"):
        await cluster.rollout("host", isolation="simulated")


async def test_forks_go_on_with_all_that_runs(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host", isolation="gvisor") as rollout:
        parent = await one(rollout)
        await parent.run(COUNTING)
        await parent.run("cd /tmp; x=5; exec 9> open; echo 1 >&9", session=True)
        await parent.python("import itertools\nnumbers = itertools.count(1)\nnext(numbers)")
        before = await grows(parent, 3)
        forks = await parent.fork(3)
        assert {fork.isolation for fork in forks} == {"gvisor"}
        for each in (parent, *forks):
            assert (await each.python("next(numbers)")).stdout == "2\n"
            said = await each.run("echo 2 >&9; echo $x $PWD; cat open", session=True)
            assert said.stdout == "5 /tmp\n1\n2\n"
            await grows(each, await grows(each, before))
        await forks[0].rollout.release()
        await forks[0].rollout.wait(30)


async def test_a_memory_snapshot_is_gone_back_to_and_only_its_isolation_starts_it(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host", isolation="gvisor") as rollout:
        sandbox = await one(rollout)
        await sandbox.python("n = 1")
        snapshot = await sandbox.snapshot("with-memory", memory=True)
        await sandbox.python("n = 2")
        await sandbox.rollback(snapshot)
        assert (await sandbox.python("n")).stdout == "1\n"
        disk = await sandbox.snapshot(memory=False)
        async with cluster.rollout(disk, isolation="gvisor") as another:
            assert "NameError" in (await (await one(another)).python("n")).stderr
    (result,) = await cluster.map("with-memory", ["cat /proc/version"])
    assert result.isolation == "gvisor"
    with pytest.raises(shoal.Rejected, match="isolation: the snapshot's memory is for 'gvisor', not 'zygote'"):
        await cluster.rollout("with-memory", isolation="zygote")


async def test_what_runs_when_a_template_is_made_runs_in_every_sandbox_of_it(cluster: shoal.Cluster) -> None:
    serve = "python3 -m http.server --bind 127.0.0.1 8000 --directory /srv >/dev/null 2>&1 &"
    wait = "until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8000))'; do sleep 0.1; done"
    made = await cluster.build_template(
        "served", "host", setup=["echo served > /srv/note", serve, wait], warm="n = 41", isolation="gvisor",
        env={"WHO": "template"},
    )  # fmt: skip
    fetch = "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8000/note\").read().decode())'"
    async with cluster.rollout("served", n=2) as rollout:
        async for sandbox in rollout.ready():
            assert sandbox.isolation == "gvisor"
            assert (await sandbox.run(fetch)).stdout == "served\n\n"
            assert (await sandbox.python("n += 1; n")).stdout == "42\n"
            assert (await sandbox.run("echo $WHO")).stdout == "template\n"
    with pytest.raises(shoal.Rejected, match="isolation: the snapshot's memory is for 'gvisor', not 'zygote'"):
        await cluster.rollout("served", isolation="zygote")
    more = await cluster.build_template("more", "template:served", setup=["echo more > /srv/note"], isolation="gvisor")
    (result,) = await cluster.map(more, [fetch])
    assert result.stdout == "more\n\n"
    disks = await cluster.build_template("only-disks", "template:served", setup=["test -e /srv/note"])
    (plain,) = await cluster.map(disks, ["cat /srv/note"], isolation="zygote")
    assert plain.stdout == "served\n"
    assert made.digest != more.digest
    with pytest.raises(shoal.BadRequest, match="isolation"):
        await cluster.build_template("no", "host", isolation="simulated")


async def test_what_cannot_be_kept_is_an_error_and_the_sandbox_goes_on(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host", isolation="gvisor") as rollout:
        sandbox = await one(rollout)
        await sandbox.python("import tempfile\nf = tempfile.TemporaryFile(dir='/root')\nf.write(b'abc')")
        with pytest.raises(shoal.SnapshotError, match="deleted") as refused:
            await sandbox.snapshot()
        assert refused.value.code == "unsupported"
        assert (await sandbox.python("f.seek(0); f.read()")).stdout == "b'abc'\n"
        await sandbox.python("f.close()")
        assert (await sandbox.snapshot()).size > 0


async def test_one_that_sleeps_has_lost_nothing(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host", isolation="gvisor", env={"WHO": "me"}) as rollout:
        sandbox = await one(rollout)
        await sandbox.run(COUNTING)
        await sandbox.run("cd /tmp; x=5", session=True)
        before = await grows(sandbox)
        async with asyncio.timeout(60):
            await sandbox.hibernate()
            assert sandbox.asleep
            after = await grows(sandbox, before)
            await grows(sandbox, after)
            assert (await sandbox.run("echo $x $PWD $WHO", session=True)).stdout == "5 /tmp me\n"


async def test_idle_ones_sleep_by_themselves_with_all_that_runs(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host", n=2, isolation="gvisor", idle_after=0.5) as rollout:
        sandboxes = [sandbox async for sandbox in rollout.ready()]
        for sandbox in sandboxes:
            await sandbox.python("n = 1")
        async with asyncio.timeout(60):
            while rollout.status().asleep != 2:
                await asyncio.sleep(0.1)
        assert [(await sandbox.python("n")).stdout for sandbox in sandboxes] == ["1\n", "1\n"]


def kill_executor(state: Path) -> None:
    for pid in set(with_argument("shoal_executor")) & set(with_argument(str(state / "executor-gvisor"))):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(240)
async def test_those_of_a_killed_executor_resume_with_what_was_in_memory(
    system: tuple[LocalSystem, Path], cluster: shoal.Cluster
) -> None:
    rollout = await cluster.rollout(
        "host", n=4, isolation="gvisor", on_lost="resume", checkpoint_commands=2, timeout="5m", run="with-memory"
    )
    sandboxes = [sandbox async for sandbox in rollout.ready()]
    for code in ("n = {}", "n += 100", "n += 1000"):
        await asyncio.gather(*(sandbox.python(code.format(sandbox.index)) for sandbox in sandboxes))
        if code == "n += 100":
            async with asyncio.timeout(60):
                saved: set[int] = set()
                async for event in cluster.events("with-memory", follow=True, since="10m"):
                    if isinstance(event.message, SandboxSaved):
                        saved.add(event.message.index)
                    if len(saved) == 4:
                        break
    kill_executor(system[1])
    async with asyncio.timeout(120):
        for sandbox in sandboxes:
            with pytest.raises(shoal.SandboxResumed, match="1000"):
                await sandbox.python("n")
            assert (await sandbox.python("n")).stdout == f"{sandbox.index + 100}\n"
    await rollout.release()
    assert (await rollout.wait(60)).lost == 0
