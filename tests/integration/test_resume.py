"""Trajectories with real sandboxes: resumed by another trainer, brought back after they were lost, exported."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

import shoal
from chaos.test_kill import kill_node
from shoal.cli.exits import Exit
from shoal.cli.system import LocalSystem
from shoal.client.outputs import fetch
from shoal.machine import ranges
from shoal.wire.messages import Blob, SandboxesBegan
from shoal.wire.outputs import heading

pytestmark = [
    pytest.mark.broker,
    pytest.mark.sandbox,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("mkfs.erofs") is None,
        reason="snapshots of live sandboxes need root, and mkfs.erofs of erofs-utils",
    ),
]

COUNT = "echo x >> count; wc -l < count"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[LocalSystem, Path]]:
    state = tmp_path_factory.mktemp("resume")
    async with LocalSystem(state, port=0) as system:
        yield system, state


async def one(rollout: shoal.Rollout) -> shoal.Sandbox:
    (sandbox,) = [sandbox async for sandbox in rollout.ready()]
    return sandbox


async def counts(sandbox: shoal.Sandbox, number: int) -> list[str]:
    """Return what each of so many steps says, each of which counts how often any was done."""
    return [(await sandbox.run(COUNT, check=True)).stdout.strip() for _ in range(number)]


async def test_a_trainer_that_comes_later_goes_on_where_the_first_was(system: tuple[LocalSystem, Path]) -> None:
    async def program(run: shoal.Run, number: int) -> list[str]:
        sandbox = await one(await run.rollout("host", key="only", timeout="5m"))
        said = await counts(sandbox, number)
        await sandbox.files.write("large", b"0123456789" * 70_000)
        said.append((await sandbox.run("md5sum < large; cat > fed; wc -c < fed", stdin=b"y" * 300_000)).stdout)
        return said

    for number in (3, 3):
        async with shoal.connect(system[0].url) as cluster, cluster.resume("later") as run:
            said = await program(run, number)
            assert said[:3] == ["1", "2", "3"]
            assert said[3].endswith("300000\n")
    async with shoal.connect(system[0].url) as cluster, cluster.resume("later") as run:
        with pytest.raises(shoal.TrajectoryDiverged, match=r"write .* bytes to large"):
            await program(run, 4)
        (info,) = await run.rollouts()
        await (await run.attach(info.rollout)).release()


async def test_a_large_output_comes_whole_for_whoever_asks(system: tuple[LocalSystem, Path]) -> None:
    line = "yes 0123456789abcde | head -c 15000000; yes | head -c 300000 >&2"
    whole = b"0123456789abcde\n" * 937_500
    for _ in range(2):
        async with shoal.connect(system[0].url) as cluster, cluster.resume("large") as run:
            sandbox = await one(await run.rollout("host", key="only", timeout="5m"))
            result = await sandbox.run(line, output_limit="16MiB")
            assert result.stdout_bytes == whole
            assert (len(result.stderr_bytes), result.truncated) == (300_000, False)
    async with shoal.connect(system[0].url) as cluster:
        cut, full = [[row async for row in cluster.trajectory("large", whole=whole)] for whole in (False, True)]
        assert (len(cut[0].stdout or ""), len(cut[0].stdout_blob)) == (262_144, 64)
        assert (full[0].stdout, full[0].stdout_blob) == (whole.decode(), "")
        # It opens to nobody who only knows what it is called.
        async with shoal.connect(system[0].url, tenant="stranger") as other:
            mine = await one(await other.rollout("host", run="large", timeout="1m"))
            blob = Blob(cut[0].stdout_blob, len(heading("default")) + len(whole))
            with pytest.raises(Exception, match="no output of tenant stranger"):
                await fetch(mine.rollout, blob, "local")
            await mine.release()


async def test_across_a_sleep_a_step_is_the_same(system: tuple[LocalSystem, Path]) -> None:
    async with shoal.connect(system[0].url) as cluster, cluster.rollout("host", timeout="5m") as rollout:
        sandbox = await one(rollout)
        for name in ("a", "b", "a"):
            await sandbox.run(COUNT, id=name)
        await sandbox.hibernate(id="nap")
        assert (await sandbox.run(COUNT, id="c")).stdout == "3\n"
        assert (await sandbox.run(COUNT, id="a")).stdout == "1\n"  # of the attempt before
        assert (await sandbox.run(COUNT, id="d")).stdout == "4\n"
        assert sandbox.attempt == 1


async def began(url: str, run: str, n: int) -> None:
    """Wait until so many sandboxes of a run have begun again."""
    again: set[int] = set()
    async with shoal.connect(url) as cluster, aclosing(cluster.events(run, follow=True, since="10m")) as events:
        while len(again) < n:
            message = (await anext(events)).message
            if isinstance(message, SandboxesBegan) and message.attempt:
                again.update(ranges.indices(message.indices))


@pytest.mark.timeout(240)
async def test_what_a_loss_has_undone_is_done_again_and_nothing_else_is(system: tuple[LocalSystem, Path]) -> None:
    n = 6
    url, state = system[0].url, system[1]

    async def step(run: shoal.Run, upto: int) -> dict[int, list[str]]:
        rollout = await run.rollout(
            "host", n, key="only", on_lost="resume", checkpoint_commands=3, timeout="5m"
        )  # fmt: skip
        found = {sandbox.index: sandbox async for sandbox in rollout.ready()}
        said = await asyncio.gather(*(counts(found[index], upto) for index in range(n)))
        return dict(enumerate(said))

    async with shoal.connect(url) as cluster, cluster.resume("undone") as run:
        assert await step(run, 7) == {index: ["1", "2", "3", "4", "5", "6", "7"] for index in range(n)}
        while len([row async for row in cluster.trajectory("undone")]) < 7 * n:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
    await kill_node(state)
    async with asyncio.timeout(120):
        await began(url, "undone", n)
        # A trainer that saw nothing of it: 6 steps are in the snapshot, the seventh is done again on top of that.
        for upto in (7, 9):
            async with shoal.connect(url) as cluster, cluster.resume("undone") as run:
                expected = [str(number + 1) for number in range(upto)]
                assert await step(run, upto) == dict.fromkeys(range(n), expected)
        async with shoal.connect(url) as cluster:
            rows = [row async for row in cluster.trajectory("undone")]
            marked = [(row.index, row.id) for row in rows if row.undone]
            assert sorted(marked) == [(index, "#7") for index in range(n)]
            (info,) = await cluster.rollouts(run="undone")
            await (await cluster.attach(info.rollout)).release()


async def test_a_sandbox_that_is_gone_is_brought_back_with_what_was_done_in_it(
    system: tuple[LocalSystem, Path],
) -> None:
    async with shoal.connect(system[0].url) as cluster:
        async with cluster.rollout("host", timeout="5m", run="back") as rollout:
            sandbox = await one(rollout)
            await sandbox.run("echo before > note; date +%N > stamp; cat stamp")
            await sandbox.snapshot()
            await sandbox.files.write("large", b"0123456789" * 30_000)
            await sandbox.run("cat >> note; md5sum large >> note", stdin=b"z" * 100_000)
            slow = asyncio.create_task(sandbox.run("until [ -e go ]; do sleep 0.01; done; echo went >> note"))
            await sandbox.run("sleep 0.1; touch go")  # each needs the other: they overlap
            await slow
            note = await sandbox.files.read("note")
        replay = await sandbox.resume()
        assert (replay.replayed, replay.divergences) == (6, [])
        assert await replay.sandbox.files.read("note") == note
        await replay.sandbox.run("date +%N", id="now")
        await replay.sandbox.release()
        with pytest.raises(shoal.ReplayDiverged, match=r"step now"):
            await replay.sandbox.resume()
        again = await replay.sandbox.resume(diverged="report")
        assert [each.step for each in again.divergences] == ["now"]
        assert (await again.sandbox.run("wc -c < note")).ok
        await again.sandbox.release()


async def test_the_story_is_exported(system: tuple[LocalSystem, Path], tmp_path: Path) -> None:
    def cli(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "shoal.cli", "trajectory", *arguments, "--url", system[0].url]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    async with shoal.connect(system[0].url) as cluster:
        async with cluster.rollout("host", 2, run="told", timeout="5m") as rollout:
            async for sandbox in rollout.ready():
                await sandbox.run(f"echo {sandbox.index}")
                await sandbox.files.write("a", "b")
        await rollout.wait(30)
        await cluster.map("host", ["echo job"], run="told")
    done = await asyncio.to_thread(cli, "export", "told", "-o", str(tmp_path / "told.jsonl"))
    assert done.returncode == Exit.OK, done.stderr
    assert "5 steps" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert sorted((row["kind"], row["stdout"] or "") for row in rows) == [
        ("run", "0\n"), ("run", "1\n"), ("run", "job\n"), ("write", ""), ("write", ""),
    ]  # fmt: skip
    assert sorted(row["end"] for row in rows if row["end"]) == ["released", "released", "succeeded"]
    done = await asyncio.to_thread(cli, "export", "told", "-o", str(tmp_path / "told.parquet"), "--json")
    assert json.loads(done.stdout)["steps"] == 5
    done = await asyncio.to_thread(cli, "show", f"{rollout.id}-0")
    assert "echo 0" in done.stdout
    done = await asyncio.to_thread(cli, "export", "nobody-knows", "-o", "-")
    assert (done.returncode, done.stdout) == (Exit.UNKNOWN_ROLLOUT, "")
