"""A run's trajectories as rows, and files of them."""

import hashlib
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest

import shoal
from shoal.cli.exits import Exit, Failure
from shoal.cli.writing import Parquet, writer
from shoal.client.rows import TrajectoryStep
from shoal.wire.codec import decode, encode
from shoal.wire.messages import (
    Blob,
    Command,
    CommandFinished,
    CommandResult,
    EndReason,
    RolloutSubmitted,
    Step,
)
from shoal.wire.outputs import heading
from unit.client_fabric import EXECUTOR, Fabric, all_ready, all_run

LARGE = "x" * 100_000


def script(fabric: Fabric, request: RolloutSubmitted) -> None:
    (all_run if request.spec.commands else all_ready)(fabric, request)


async def rows_of(fabric: Fabric, run: str = "grpo-7", **options: bool) -> list[TrajectoryStep]:
    async with shoal.connect(bus=fabric.connect()) as cluster:
        return [row async for row in cluster.trajectory(run, **options)]  # type: ignore[arg-type]  # `whole` alone


async def test_every_step_is_a_row_with_what_came_of_it() -> None:
    async with Fabric(script, cells=3) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.resume("grpo-7") as run:
            rollout = await run.rollout("host", 2, key="step-1")
            found = {sandbox.index: sandbox async for sandbox in rollout.ready()}
            sandbox = found[0]
            await sandbox.run(["echo", "a"], stdin="in", env={"A": "1"}, cwd="/tmp", user="me")
            await sandbox.python("x = 1", idempotent=False)
            await sandbox.files.write("f", b"\xff1")
            await sandbox.files.read_bytes("f")
            with pytest.raises(shoal.FileError):
                await sandbox.files.read("g")
            snapshot = await sandbox.snapshot("s")
            await sandbox.rollback(snapshot)
            await found[1].run("exit 3", id="mine")
            await sandbox.release()
        await cluster.map("host", ["one", "two"], run="grpo-7")
        await cluster.map("host", ["another run's"], run="other")
        jobs: list[TrajectoryStep] = []
        mine: list[TrajectoryStep] = []
        for row in await rows_of(fabric):
            (mine if row.key else jobs).append(row)
        assert sorted((row.command, row.stdout, row.exit_code, row.end) for row in jobs) == [
            ("one", "one", 0, "succeeded"), ("two", "two", 0, "succeeded"),
        ]  # fmt: skip
        assert [(row.index, row.step, row.kind, row.id) for row in mine] == [
            (0, 1, "run", "#1"), (0, 2, "python", "#2"), (0, 3, "write", "#3"), (0, 4, "read", "#4"),
            (0, 5, "read", "#5"), (0, 6, "snapshot", "#6"), (0, 7, "rollback", "#7"), (1, 1, "run", "mine"),
        ]  # fmt: skip
        first, python, write, read, failed, taken, back, other = mine
        assert (first.command, first.argv, first.stdin, first.env) == ("echo a", ["echo", "a"], "in", {"A": "1"})
        assert (first.cwd, first.user, first.stdout, first.stderr) == ("/tmp", "me", "echo a", "oops\n")
        assert (first.run, first.rollout, first.sandbox) == ("grpo-7", rollout.id, f"{rollout.id}-0")
        assert first.asked_ms is not None
        assert first.ended_ms is not None
        assert first.asked_ms <= first.ended_ms
        assert (first.duration_ms, first.idempotent, python.idempotent) == (1.5, True, False)
        assert (write.path, write.data, write.input_size) == ("f", "\ufffd1", 2)
        assert write.input_digest == hashlib.sha256(b"\xff1").hexdigest()
        assert (read.data, read.error) == ("\ufffd1", "")
        assert (failed.path, failed.error, failed.detail) == ("g", "file_error", "no such file")
        assert taken.snapshot == back.snapshot == snapshot.digest
        assert (other.exit_code, other.end) == (3, None)
        assert [row.end for row in mine[:7]] == [None] * 6 + ["released"]
        assert not any(row.undone for row in mine)


async def test_what_a_loss_has_undone_is_marked_and_what_is_said_twice_is_one_row() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", run="grpo-7", on_lost="resume")
        (sandbox,) = [each async for each in rollout.ready()]
        for line in ("a", "b", "c"):
            await sandbox.run(line, id=line)
        await sandbox.run("a", id="a")  # it is answered again
        fabric.saved(rollout.id, 0, "s1", ((1, 1), (3, 1)))
        fabric.ended(rollout.id, 0)
        fabric.ready(rollout.id, 0, attempt=1, digest="s1")
        with pytest.raises(shoal.SandboxResumed):
            await _forever(sandbox)
        await sandbox.run("b", id="b")
        fabric.ended(rollout.id, 0, attempt=1, reason=EndReason.OUT_OF_MEMORY)
        fabric.concluded(rollout.id)
        await rollout.wait(10)
        rows = [row for row in await rows_of(fabric) if row.command != "never"]
        assert [(row.command, row.attempt, row.step, row.undone, row.end) for row in rows] == [
            ("a", 0, 1, False, None), ("b", 0, 2, True, None), ("c", 0, 3, False, None),
            ("b", 1, rows[-1].step, False, "out_of_memory"),
        ]  # fmt: skip
        story = [row async for row in cluster.story(f"{rollout.id}-0")]
        states = [(row.attempt, row.kind, row.snapshot) for row in story if not row.step]
        assert states == [(0, "began", "host"), (0, "kept", "s1"), (1, "began", "s1")]
        assert [row.detail for row in story if row.kind == "kept"] == ["with steps 1, 3"]


async def _forever(sandbox: shoal.Sandbox) -> None:
    while True:  # until the log has told of the loss
        await sandbox.run("never")


async def test_what_is_large_is_fetched_where_it_is_wanted() -> None:
    whole = b"0123456789" * 100_000
    blob = Blob(hashlib.sha256(heading("default") + whole).hexdigest(), len(heading("default")) + len(whole))
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", run="grpo-7")
        (sandbox,) = [each async for each in rollout.ready()]
        await sandbox.files.write("f", LARGE)
        result = CommandResult(0, whole[:1000], stdout_blob=blob, stderr_blob=blob)
        step = Step(2, 0, EXECUTOR, 1)
        told = CommandFinished(f"{sandbox.name}:x", rollout.id, 0, 0, Command(line="x"), result, step)
        fabric.tell(rollout.id, told)
        write, run = await rows_of(fabric)
        assert (write.data, write.input_size) == (None, 100_000)
        assert (len(run.stdout or ""), run.stdout_blob, run.stderr_blob) == (1000, blob.digest, blob.digest)
        fabric.blobs[blob] = heading("default") + whole
        write, run = await rows_of(fabric, whole=True)
        assert write.data == LARGE
        assert (run.stdout, run.stderr, run.stdout_blob) == (whole.decode(), whole.decode(), "")
        fabric.blobs.clear()
        fabric.broker.log("SHOAL_EXECUTOR_e1").purge(1)
        write, run = await rows_of(fabric, whole=True)
        assert (write.data, run.stdout_blob) == (None, blob.digest)


async def test_a_run_that_nobody_knows_and_a_sandbox_that_is_none() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", run="other")
        with pytest.raises(shoal.BadRequest, match="shoal ls") as caught:
            await rows_of(fabric)
        assert caught.value.field == "rollout"
        for name, field in (("x", "sandbox"), ("r1-0", "rollout"), (f"{rollout.id}-7", "rollout")):
            with pytest.raises(shoal.BadRequest) as caught:
                _ = [row async for row in cluster.story(name)]
            assert caught.value.field == field


async def test_what_a_sandbox_began_as_is_told_where_nothing_was_done_in_it() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", 2, run="grpo-7")
        assert [each.index async for each in rollout.ready()] == [0, 1]
        assert await rows_of(fabric) == []
        (began,) = [row async for row in cluster.story(f"{rollout.id}-1")]
        assert (began.kind, began.snapshot, began.index, began.attempt) == ("began", "host", 1, 0)


async def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", run="grpo-7")
        async for sandbox in rollout.ready():
            await sandbox.run("a")
            await sandbox.run("b")
        async for _ in cluster.trajectory("grpo-7", progress=lambda *pair: told.append(pair)):
            pass
        assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def sample(number: int) -> TrajectoryStep:
    step = TrajectoryStep("r", "r1", "k", "host", f"r1-{number}", number, 0, 1, "#1", "run", f"echo é {number}")
    step.argv, step.env, step.stdout, step.duration_ms, step.exit_code = ["echo"], {"A": "1"}, "out\n", 1.5, number
    return step


@pytest.mark.parametrize("count", [0, 3, 2500])
def test_files_hold_every_row(tmp_path: Path, count: int) -> None:
    import pyarrow.parquet

    given = [sample(number) for number in range(count)]
    for name in ("rows.jsonl", "rows.parquet"):
        with writer(str(tmp_path / name)) as file:
            assert not (tmp_path / name).exists()
            for row in given:
                file.add(row)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert lines == [asdict(row) for row in given]
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    assert table.schema.names == [field.name for field in fields(TrajectoryStep)]
    found = table.to_pylist(maps_as_pydicts="strict")
    assert found == [asdict(row) for row in given]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "rows.parquet"]


def fail(output: str) -> None:
    with writer(output) as file:
        file.add(sample(1))
        raise KeyError(output)


def test_a_file_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("before")
    for name in ("rows.jsonl", "rows.parquet"):
        with pytest.raises(KeyError):
            fail(str(tmp_path / name))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("rows.jsonl", "before")]


@pytest.mark.parametrize(
    ("output", "word"), [("rows.txt", ".jsonl"), ("/nonexistent/rows.jsonl", "cannot write"), ("d.jsonl", "directory")]
)
def test_what_cannot_be_written_is_said(tmp_path: Path, output: str, word: str) -> None:
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(Failure, match=word) as caught:
        writer(str(tmp_path / output))
    assert caught.value.status is Exit.USAGE


def test_parquet_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Failure, match=r"shoal\[parquet\]"):
        Parquet(tmp_path / "rows.parquet")
    assert list(tmp_path.iterdir()) == []


def test_the_trajectory_of_before_is_read() -> None:
    old = CommandFinished("r1-0.0:x", "r1", 0, 0, Command(line="x"), CommandResult(0))
    assert decode(encode(old)) == old
