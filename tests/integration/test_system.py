"""The whole system, real broker, real services, real sandboxes, as a trainer meets it."""

import asyncio
import os
import tarfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

import shoal
from host import with_argument
from shoal.cli.system import LocalSystem
from shoal.wire.messages import EndReason

pytestmark = [pytest.mark.broker, pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 3], ids=["one-broker", "three-brokers"])
async def system(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LocalSystem]:
    async with LocalSystem(tmp_path_factory.mktemp("system"), port=0, brokers=request.param) as system:
        yield system


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(system: LocalSystem) -> AsyncIterator[shoal.Cluster]:
    async with shoal.connect(system.url) as cluster:
        yield cluster


def _note(pieces: list[object], *piece: object) -> None:
    pieces.append(piece)


async def vanish(mark: str) -> None:
    async with asyncio.timeout(30):
        while await asyncio.to_thread(with_argument, mark):
            await asyncio.sleep(0.02)


async def test_256_sandboxes_all_say_42(cluster: shoal.Cluster) -> None:
    results = await cluster.map("host", ["python3 -c 'print(6*7)'"] * 256)
    assert Counter((result.exit_code, result.stdout) for result in results) == {(0, "42\n"): 256}
    assert [result.index for result in results] == list(range(256))
    assert not any(result.infrastructure for result in results)
    assert {result.isolation for result in results} == {"zygote"}


async def test_write_run_check_fix_in_one_sandbox(cluster: shoal.Cluster) -> None:
    rollout = await cluster.rollout("host", n=3, run="agent", timeout="5m")
    async for sandbox in rollout.ready():
        await sandbox.files.write("solve.py", "open('out.txt', 'w').write(str(6 * 9))")
        assert (await sandbox.run("python3 solve.py", timeout=30)).ok
        assert await sandbox.files.read("out.txt") == "54"
        await sandbox.files.write("solve.py", "open('out.txt', 'w').write(str(6 * 7))")
        assert (await sandbox.run("python3 solve.py && cat out.txt", timeout=30)).stdout == "42"
        failed = await sandbox.run(["sh", "-c", "echo no >&2; exit 3"])
        assert (failed.exit_code, failed.stderr, failed.ok) == (3, "no\n", False)
        assert (await sandbox.run("sleep 60", timeout=0.3)).timed_out
        assert (await sandbox.run("cd /usr; x=1", session=True)).ok
        assert (await sandbox.run("pwd; echo $x", session=True)).stdout == "/usr\n1\n"
        with pytest.raises(shoal.FileError):
            await sandbox.files.read("absent")
        large = os.urandom(700_000)
        await sandbox.files.write("large", large)
        assert await sandbox.files.read_bytes("large") == large
        pieces: list[object] = []
        await sandbox.run("echo streamed", on_output=partial(_note, pieces))
        assert "streamed" in str(pieces)
        # A command id that was carried out is answered, not carried out again.
        for _ in range(3):
            counted = await sandbox.run("echo x >> count; wc -l < count", id="once")
            assert counted.stdout.strip() == "1"
    await rollout.release()
    summary = await rollout.wait()
    assert summary.counts == {EndReason.RELEASED: 3}


async def test_what_a_command_does_wrong_is_told_apart(cluster: shoal.Cluster) -> None:
    hog = "python3 -c 'b = [b\"x\" * (16 << 20) for _ in range(64)]'"
    commands = ["true", "exit 9", hog, "sleep 60", "no-such-program-here"]
    results = await cluster.map(
        "host", commands, command_timeout=5, resources=shoal.Resources(memory="64MiB"), run="reasons"
    )
    assert [result.reason for result in results] == [
        EndReason.SUCCEEDED,
        EndReason.COMMAND_FAILED,
        EndReason.OUT_OF_MEMORY,
        EndReason.TIMED_OUT,
        EndReason.COMMAND_FAILED,
    ]
    assert not any(result.infrastructure for result in results)
    assert results[1].exit_code == 9
    assert results[4].exit_code == 127


async def test_input_files_environment_and_user(cluster: shoal.Cluster) -> None:
    results = await cluster.map(
        "host",
        ['cat in.txt; echo "$WORD"; id -u; pwd'],
        files={"in.txt": b"given\n"},
        env={"WORD": "said"},
    )
    assert results[0].stdout == "given\nsaid\n0\n/root\n"
    (nobody,) = await cluster.map("host", ["id -u"], user="nobody")
    assert nobody.stdout == "65534\n"


async def test_a_sandbox_does_not_outlive_its_rollout(cluster: shoal.Cluster) -> None:
    def mark(number: int) -> str:
        return f"{number}.{os.getpid()}"

    rollout = await cluster.rollout("host", n=2, run="lifetimes", timeout="2s")
    async for sandbox in rollout.ready():
        await sandbox.run(f"setsid sleep {mark(70001)} >/dev/null 2>&1 &")
    summary = await rollout.wait(timeout=60)
    assert summary.counts == {EndReason.TIMED_OUT: 2}
    await vanish(mark(70001))

    rollout = await cluster.rollout("host", n=2, run="lifetimes")
    async for sandbox in rollout.ready():
        await sandbox.run(f"setsid sleep {mark(70002)} >/dev/null 2>&1 &")
    await rollout.cancel()
    assert (await rollout.wait(timeout=60)).counts == {EndReason.CANCELLED: 2}
    await vanish(mark(70002))

    async with await cluster.rollout("host", n=1, run="lifetimes") as released:
        async for sandbox in released.ready():
            await sandbox.run(f"setsid sleep {mark(70003)} >/dev/null 2>&1 &")
    await vanish(mark(70003))


async def test_two_tenants_at_once_see_only_their_own(system: LocalSystem) -> None:
    async def trainer(tenant: str, run: str) -> tuple[str, list[str], set[str]]:
        async with shoal.connect(system.url, tenant=tenant) as cluster:
            rollout = await cluster.rollout("host", n=24, run=run, command=f"echo {tenant}-{run}")
            outcomes = [outcome async for outcome in rollout.outcomes()]
            seen = {info.rollout for info in await cluster.rollouts(run=run)}
            return rollout.id, [outcome.stdout.strip() for outcome in outcomes], seen

    one, other = await asyncio.gather(trainer("acme", "grpo-1"), trainer("zeta", "grpo-1"))
    assert one[1] == ["acme-grpo-1"] * 24
    assert other[1] == ["zeta-grpo-1"] * 24
    assert one[0] in one[2]
    assert other[0] not in one[2]
    assert one[0] not in other[2]


async def test_directories_and_archives_are_templates(cluster: shoal.Cluster, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/motd").write_text("hello from the template")
    root.chmod(0o755)
    with tarfile.open(tmp_path / "root.tar.gz", "w:gz") as tar:
        tar.add(root, ".")
    for template in (f"dir:{root}", f"tar:{tmp_path / 'root.tar.gz'}"):
        async with await cluster.rollout(template, n=2, run="templates") as rollout:
            async for sandbox in rollout.ready():
                assert await sandbox.files.read("/etc/motd") == "hello from the template"
                await sandbox.files.write("/etc/motd", "changed")
    assert (root / "etc/motd").read_text() == "hello from the template"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("nope", "is called 'nope'; `shoal template ls`"),
        ("dir:/no/such/place", "/no/such/place"),
        ("tar:/no/such/file.tar", "/no/such/file.tar"),
        ("tar:/etc/passwd", "/etc/passwd"),
    ],
)
async def test_an_unknown_template_is_rejected_with_what_to_do(
    cluster: shoal.Cluster, template: str, says: str
) -> None:
    with pytest.raises(shoal.Rejected, match=says):
        await cluster.rollout(template, n=1)


async def test_a_full_cluster_means_waiting(tmp_path: Path) -> None:
    async with LocalSystem(tmp_path, port=0, slots=4) as small, shoal.connect(small.url) as cluster:
        first = await cluster.rollout("host", n=4, run="holds")
        async for _ in first.ready():
            pass
        second = await cluster.rollout("host", n=2, run="waits", command="echo at last")
        status = second.status()
        assert (status.state, status.waiting) == ("queued", 2)
        assert status.waiting_reason
        await first.release()
        assert [outcome.stdout async for outcome in second.outcomes()] == ["at last\n"] * 2


async def test_the_nodes_are_free_when_all_is_done(cluster: shoal.Cluster) -> None:
    until = time.monotonic() + 30
    while True:
        (node,) = await cluster.nodes()
        if node.live == node.starting == 0:
            break
        assert time.monotonic() < until
        await asyncio.sleep(0.1)
