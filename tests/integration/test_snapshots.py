"""Snapshots of live sandboxes, as a trainer meets them: taken, forked, gone back to, resumed from."""

import asyncio
import hashlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

import shoal
from host import with_argument
from shoal.cli.system import LocalSystem
from shoal.machine.lineage import identified
from shoal.wire.messages import Blob, SandboxSaved

pytestmark = [
    pytest.mark.broker,
    pytest.mark.sandbox,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("mkfs.erofs") is None,
        reason="snapshots of live sandboxes need root, and mkfs.erofs of erofs-utils",
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[LocalSystem, Path]]:
    state = tmp_path_factory.mktemp("snapshots")
    async with LocalSystem(state, port=0) as system:
        yield system, state


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(system: tuple[LocalSystem, Path]) -> AsyncIterator[shoal.Cluster]:
    async with shoal.connect(system[0].url) as cluster:
        yield cluster


async def one(rollout: shoal.Rollout) -> shoal.Sandbox:
    (sandbox,) = [sandbox async for sandbox in rollout.ready()]
    return sandbox


async def test_python_keeps_its_state(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host") as rollout:
        sandbox = await one(rollout)
        assert (await sandbox.python("import math\nx = 41")).ok
        assert (await sandbox.python("x + 1, math.pi > 3")).stdout == "(42, True)\n"
        with pytest.raises(shoal.CommandFailed, match="ZeroDivisionError"):
            await sandbox.python("1 / 0", check=True)
        with pytest.raises(shoal.BadRequest, match="code"):
            await sandbox.python(" ")


async def test_warm_code_runs_once_and_every_sandbox_goes_on_from_there(cluster: shoal.Cluster) -> None:
    code = "import json, random\nseed, count = random.random(), 41"
    async with cluster.rollout("host", n=8, warm=code) as rollout:
        sandboxes = [sandbox async for sandbox in rollout.ready()]
        assert {sandbox.isolation for sandbox in sandboxes} == {"zygote"}
        said = [(await sandbox.python("count += 1\ncount, seed")).stdout for sandbox in sandboxes]
        assert len(set(said)) == 1
        assert said[0].startswith("(42, ")
        (fork,) = await sandboxes[0].fork()
        assert (await fork.python("count, seed")).stdout == said[0].replace("(42,", "(41,")  # its disk is the parent's
        async with cluster.rollout("host") as plain:  # which has a root of its own
            assert (await (await one(plain)).run("cat /etc/hosts")).ok
        assert (await sandboxes[1].run("cat /etc/hosts")).ok
    async with cluster.rollout("host", warm="import no_such_module") as rollout:
        failed = await one(rollout)
        with pytest.raises(shoal.SandboxEnded, match="no_such_module") as told:
            await failed.run("true")
        assert (told.value.reason, failed.attempt) == (shoal.EndReason.BAD_INPUT, 0)
    with pytest.raises(shoal.Rejected, match="isolation"):
        await cluster.rollout("host", warm=code, isolation="simulated")


async def test_warm_code_that_does_not_end_is_its_givers_and_no_verdict(cluster: shoal.Cluster) -> None:
    loop = "while True: pass  # for ever"
    async with cluster.rollout("host", n=2, warm=loop, timeout="6s", retries=0) as rollout:
        sandboxes = [sandbox async for sandbox in rollout.ready()]
        assert len(sandboxes) == 2
        for failed in sandboxes:
            with pytest.raises(shoal.SandboxEnded, match=r"warm: its code has not come to its end within \d\.\d s"):
                await failed.run("true")
    async with cluster.rollout("host", n=2, command="true", warm=loop, timeout="4s") as rollout:
        outcomes = [outcome async for outcome in rollout.outcomes()]
        assert [outcome.reason for outcome in outcomes] == [shoal.EndReason.BAD_INPUT] * 2
        assert "the rollout's time is nearly up" in outcomes[0].detail


async def test_forks_go_on_from_this_very_moment_and_so_does_the_parent(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host", resources=shoal.Resources(memory="128MiB"), env={"WHO": "me"}) as rollout:
        parent = await one(rollout)
        await parent.run("echo one > note; rm /etc/hosts; mkdir -p a/b")
        forks = await parent.fork(6)
        await parent.run("echo two > note")
        look = "cat note; test -e /etc/hosts; echo $? $WHO; ls"
        said = [(await fork.run(look)).stdout for fork in forks]
        assert said == ["one\n1 me\na\nnote\n"] * 6
        await forks[0].run("echo mine > note")
        (grandchild,) = await forks[0].fork()
        assert [(await each.run("cat note")).stdout for each in (grandchild, forks[1], parent)] == [
            "mine\n", "one\n", "two\n",
        ]  # fmt: skip
        assert forks[0].rollout.run == rollout.run
        for each in (forks[0], grandchild):
            await each.rollout.release()
            await each.rollout.wait(30)


async def test_a_snapshot_is_started_from_by_itself_by_name_and_by_digest(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host") as rollout:
        sandbox = await one(rollout)
        await sandbox.run("echo kept > note")
        snapshot = await sandbox.snapshot("of-a-test")
        assert snapshot.name == "of-a-test"
        assert snapshot.size > 0
        assert snapshot.parent == "host"
    for start in (snapshot, "of-a-test", f"snapshot:{snapshot.digest}", f"snapshot:{snapshot.digest[:12]}"):
        results = await cluster.map(start, ["cat note"] * 2)
        assert [result.stdout for result in results] == ["kept\n"] * 2
    with pytest.raises(shoal.Rejected, match="of-another-test"):
        await cluster.rollout("of-another-test")
    async with shoal.connect(cluster.url, tenant="stranger") as stranger:
        with pytest.raises(shoal.Rejected, match="snapshot"):
            await stranger.rollout(snapshot)


async def test_a_rollback_makes_a_sandbox_what_it_was(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host", env={"WHO": "me"}) as rollout:
        sandbox = await one(rollout)
        await sandbox.run("echo one > note")
        snapshot = await sandbox.snapshot()
        await sandbox.run("echo two > note; touch new")
        cut = asyncio.create_task(sandbox.run("sleep 60"))
        await sandbox.run("until pgrep -f 'sleep 6[0]'; do :; done")
        await sandbox.rollback(snapshot)
        with pytest.raises(shoal.RolledBack):
            await cut
        assert (await sandbox.run("cat note; ls; echo $WHO; pgrep sleep")).stdout == "one\nnote\nme\n"
        await sandbox.run("echo three > note")
        later = await sandbox.snapshot()
        assert later.parent == snapshot.digest
        assert [(await fork.run("cat note")).stdout for fork in await sandbox.fork(1)] == ["three\n"]
        with pytest.raises(shoal.BadRequest, match="snapshot"):
            await sandbox.rollback("of-a-test")  # type: ignore[arg-type]  # what somebody may try


async def test_what_cannot_be_kept_is_an_error_and_the_sandbox_goes_on(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host") as rollout:
        sandbox = await one(rollout)
        with pytest.raises(shoal.SnapshotError, match="memory"):
            await sandbox.snapshot(memory=True)
        with pytest.raises(shoal.BadRequest, match="name"):
            await sandbox.snapshot("no name")
        assert (await sandbox.run("echo on")).stdout == "on\n"


async def kill_node(state: Path) -> None:
    """Kill an executor with everything that would let its sandboxes outlive it."""
    from shoal_executor.drivers.zygote.forkserver import entries

    pids = [entry.pid for _, entry in entries(state / "executor" / "forks")]
    assert pids
    pids[:0] = set(with_argument("shoal_executor")) & set(with_argument(str(state / "executor")))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


async def test_a_sandbox_sleeps_and_its_next_command_wakes_it(cluster: shoal.Cluster) -> None:
    (node,) = await cluster.nodes()
    async with cluster.rollout("host", env={"WHO": "me"}) as rollout:
        sandbox = await one(rollout)
        await sandbox.run("echo 1 > note; rm /etc/hosts")
        async with asyncio.timeout(30):
            await sandbox.hibernate()
            assert sandbox.asleep
            assert sandbox.node == ""
            await sandbox.hibernate()  # it does already
            while rollout.status().asleep != 1:
                await asyncio.sleep(0.1)
        both = asyncio.gather(sandbox.run("cat note; echo $WHO"), sandbox.files.write("more", "2"))
        async with asyncio.timeout(30):
            said, _ = await both
        assert said.stdout == "1\nme\n"
        assert (sandbox.asleep, sandbox.attempt, sandbox.node) == (False, 1, node.node)
        assert (await sandbox.run("cat more; test -e /etc/hosts || echo gone")).stdout == "2gone\n"
        await sandbox.run('sleep 60 & until [ "$(cat /proc/$!/comm)" = sleep ]; do :; done')  # it was forked as sh
        with pytest.raises(shoal.SnapshotError, match="sleep") as refused:
            await sandbox.hibernate()
        assert refused.value.code == "unsupported"
        assert (await sandbox.run("pkill sleep; cat note")).stdout == "1\n"
        await sandbox.hibernate()
        assert (await sandbox.run("cat note")).stdout == "1\n"  # before the log may have told that it slept
        await sandbox.hibernate()
    async with asyncio.timeout(30):
        assert (await rollout.wait()).counts == {shoal.EndReason.RELEASED: 1}


async def test_idle_sandboxes_go_to_sleep_by_themselves(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host", n=4, idle_after=0.5) as rollout:
        sandboxes = sorted([sandbox async for sandbox in rollout.ready()], key=lambda each: each.index)
        for sandbox in sandboxes:
            await sandbox.run(f"echo {sandbox.index} > note")
        async with asyncio.timeout(60):
            while rollout.status().asleep != 4:
                await asyncio.sleep(0.1)
            async with shoal.connect(cluster.url) as another:  # which wakes them, too
                there = await another.attach(rollout.id)
                found = [sandbox async for sandbox in there.ready()]
                assert {(await each.run("cat note")).stdout for each in found} == {"0\n", "1\n", "2\n", "3\n"}
            assert [(await each.run("cat note")).stdout for each in sandboxes] == ["0\n", "1\n", "2\n", "3\n"]


@pytest.mark.timeout(240)
async def test_sandboxes_of_a_lost_node_resume_from_their_last_snapshot(
    system: tuple[LocalSystem, Path], cluster: shoal.Cluster
) -> None:
    rollout = await cluster.rollout("host", n=32, on_lost="resume", checkpoint_commands=2, timeout="5m", run="resumed")
    first = [sandbox async for sandbox in rollout.ready()]
    for number, line in enumerate(("echo {} > note", "echo saved >> note", "echo lost >> note")):
        await asyncio.gather(*(sandbox.run(line.format(sandbox.index)) for sandbox in first))
        if number == 1:
            async with asyncio.timeout(60):
                saved: set[int] = set()
                async for event in cluster.events("resumed", follow=True, since="10m"):
                    if isinstance(event.message, SandboxSaved):
                        saved.add(event.message.index)
                    if len(saved) == 32:
                        break
    await kill_node(system[1])
    async with asyncio.timeout(120):
        with pytest.raises(shoal.SandboxResumed, match="under way") as told:
            await first[0].run("sleep 300")
        assert told.value.undone == ("echo lost >> note",)
        for sandbox in first[1:]:
            with pytest.raises(shoal.SandboxResumed, match="echo lost"):
                await sandbox.run("cat note")
        said = {sandbox.index: (await sandbox.run("cat note")).stdout for sandbox in first}
        # Each goes on from its own, and what is kept of it next is that and what follows.
        await asyncio.gather(*(sandbox.run("echo more >> note") for sandbox in first[:3]))
        later = [await sandbox.snapshot() for sandbox in first[:3]]
        results = [(await cluster.map(snapshot, ["cat note"]))[0].stdout for snapshot in later]
    assert results == [f"{sandbox.index}\nsaved\nmore\n" for sandbox in first[:3]]
    assert said == {index: f"{index}\nsaved\n" for index in range(32)}
    assert {sandbox.attempt for sandbox in first} == {1}
    await rollout.release()
    summary = await rollout.wait(60)
    assert summary.lost == 0


async def test_nothing_is_gone_back_to_that_the_cluster_did_not_make_for_this_tenant(
    system: tuple[LocalSystem, Path], cluster: shoal.Cluster
) -> None:
    url = system[0].url
    async with shoal.connect(url, tenant="umbra") as theirs, theirs.rollout("host") as rollout:
        sandbox = await one(rollout)
        await sandbox.run("echo theirs > note")
        foreign = await sandbox.snapshot("foreign")
    async with cluster.rollout("host") as rollout:
        sandbox = await one(rollout)
        await sandbox.run("echo mine > note")
        mine = await sandbox.snapshot()
        # An output is stored as a blob that its writer chose: here a disk, which the kernel would mount.
        (disk,) = mine.wire.layers
        stored = await sandbox.run(f"head -c {8 * 1024**2} /dev/zero", output_limit="16MiB")
        blob = Blob(hashlib.sha256(stored.stdout_bytes).hexdigest(), len(stored.stdout_bytes))
        output = identified(msgspec.structs.replace(mine.wire, kind="disk", disks=(blob,), layers=()))
        sealed = msgspec.structs.replace(output, seal=mine.wire.seal)
        made_up = identified(msgspec.structs.replace(foreign.wire, layers=(*foreign.wire.layers, disk)))
        for snapshot in (foreign.wire, output, sealed, made_up):
            with pytest.raises(shoal.SnapshotError, match=r"snapshot\.seal: .*cluster\.snapshots\(\)"):
                await sandbox.rollback(shoal.Snapshot(snapshot))
        assert (await sandbox.run("cat note")).stdout == "mine\n"  # it goes on as it was
        await sandbox.run("echo more >> note")
        before = msgspec.structs.replace(mine.wire, seal="")  # as a version before the seals told it
        await sandbox.rollback(shoal.Snapshot(before))
        assert (await sandbox.run("cat note")).stdout == "mine\n"


async def test_a_fork_of_what_went_back_to_another_rollouts_snapshot(cluster: shoal.Cluster) -> None:
    async with cluster.rollout("host") as rollout:
        sandbox = await one(rollout)
        await sandbox.run("echo earlier > note")
        earlier = await sandbox.snapshot()
    async with cluster.rollout("host") as rollout:
        sandbox = await one(rollout)
        await sandbox.rollback(earlier)
        (info,) = [each for each in await cluster.snapshots() if each.digest == earlier.digest]
        assert info.held == 1  # by this rollout
        (fork,) = await sandbox.fork()
        assert (await fork.run("cat note")).stdout == "earlier\n"
        await fork.rollout.release()
