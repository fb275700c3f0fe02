"""A sandbox that is gone, brought back: from its last snapshot, with what was done after that, compared."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import shoal
from shoal.bus.protocol import Bus
from shoal.wire.messages import (
    CommandResult,
    EndReason,
    FileOp,
    ManageFile,
    RolloutRejected,
    RolloutSubmitted,
    RunCommand,
)
from unit.client_fabric import Fabric, all_ready

LARGE = "x" * 100_000


async def one(rollout: shoal.Rollout) -> shoal.Sandbox:
    (sandbox,) = [sandbox async for sandbox in rollout.ready()]
    return sandbox


async def lost(fabric: Fabric, rollout: shoal.Rollout, sandbox: shoal.Sandbox) -> shoal.Sandbox:
    """Have a sandbox be lost for good."""
    fabric.ended(rollout.id, sandbox.index, reason=EndReason.NODE_LOST)
    fabric.concluded(rollout.id)
    await rollout.wait(10)
    return sandbox


def asked_of(fabric: Fabric, rollout: str) -> list[str]:
    """Return what was asked of a rollout's sandbox, in that order."""
    return [
        asked.command.line if isinstance(asked, RunCommand) else type(asked).__name__
        for asked in fabric.asked
        if asked.rollout == rollout
    ]


async def test_what_came_after_the_last_snapshot_is_done_again_and_compared() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", files={"in": "1"}, env={"A": "1"}, on_lost="fail", run="r7")
        sandbox = await one(rollout)
        await sandbox.run("before")
        snapshot = await sandbox.snapshot()
        await sandbox.run("a", stdin=LARGE)
        await sandbox.files.write("large", LARGE)
        await sandbox.files.read("large")
        with pytest.raises(shoal.FileError):
            await sandbox.files.read("absent")
        await sandbox.run("exit 3", id="mine")
        with pytest.raises(shoal.BadRequest, match="lives"):
            await sandbox.resume()
        await lost(fabric, rollout, sandbox)
        with pytest.raises(shoal.SandboxLost):
            await sandbox.run("late")
        replay = await sandbox.resume(timeout="2m")
        assert replay.origin is not None
        assert replay.origin.digest == snapshot.digest
        assert (replay.replayed, replay.divergences, replay.recorded) == (4, [], [])
        again = replay.sandbox
        assert asked_of(fabric, again.rollout.id) == ["a", "WriteFile", "ReadFile", "exit 3"]
        assert fabric.files[again.rollout.id, 0, "large"] == LARGE.encode()
        spec = fabric.requests[again.rollout.id].spec
        assert (spec.template, spec.n, spec.files, spec.env) == (f"snapshot:{snapshot.digest}", 1, (), (("A", "1"),))
        assert (spec.timeout_ms, again.rollout.run) == (120_000, "r7")
        assert (await again.run("go on")).stdout == "go on"
        assert (await again.run("exit 3", id="mine")).exit_code == 3  # the same step, done in the new one
        assert asked_of(fabric, again.rollout.id)[4:] == ["go on", "exit 3"]
        assert fabric.ran[f"{again.name}:mine"] == 1


async def test_files_that_were_made_appended_to_renamed_and_removed_are_so_again() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await one(rollout)
        files = sandbox.files
        await files.write("a", "1")
        await files.write("a", "2", append=True)
        await files.make_dir("d")
        await files.rename("a", "b")
        await files.list()
        await files.write("gone", "3")
        await files.remove("gone", recursive=True)
        with pytest.raises(shoal.FileError, match="gone: no such file"):
            await files.remove("gone")
        assert not await files.exists("gone")
        await lost(fabric, rollout, sandbox)
        replay = await sandbox.resume()
        assert (replay.replayed, replay.divergences) == (8, [])  # the times of files are no difference
        again = [each for each in fabric.asked if each.rollout == replay.sandbox.rollout.id]
        assert [(each.op, each.path, each.to, each.recursive) for each in again if isinstance(each, ManageFile)] == [
            (FileOp.MAKE_DIR, "d", "", False),
            (FileOp.RENAME, "a", "b", False),
            (FileOp.LIST, ".", "", False),
            (FileOp.REMOVE, "gone", "", True),
            (FileOp.STAT, "gone", "", False),
        ]
        assert [type(each).__name__ for each in again][:3] == ["WriteFile", "WriteFile", "ManageFile"]
        assert fabric.files[replay.sandbox.rollout.id, 0, "b"] == b"12"


async def test_a_listing_that_is_another_is_a_divergence() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await one(rollout)
        await sandbox.files.write("f", "12")
        await sandbox.files.list()
        await lost(fabric, rollout, sandbox)
        fabric.spoiled.add("f")
        says = r"\(list \.\) gave 'f \(file, 7 bytes, 644\)', and had given 'f \(file, 2 bytes, 644\)'"
        with pytest.raises(shoal.ReplayDiverged, match=says):
            await sandbox.resume()


async def test_without_a_snapshot_it_is_done_from_the_start() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", 2, files={"in": "1"})
        found = {sandbox.index: sandbox async for sandbox in rollout.ready()}
        await found[1].run("a")
        await found[1].run("b")
        await rollout.release()
        replay = await found[1].resume()
        assert (replay.origin, replay.replayed) == (None, 2)
        assert asked_of(fabric, replay.sandbox.rollout.id) == ["a", "b"]
        spec = fabric.requests[replay.sandbox.rollout.id].spec
        assert (spec.template, spec.n, len(spec.files)) == ("host", 1, 1)


async def test_a_snapshot_that_is_kept_no_longer_means_from_the_start() -> None:
    def script(fabric: Fabric, request: RolloutSubmitted) -> None:
        if request.spec.template.startswith("snapshot:"):
            fabric.say(request.rollout, RolloutRejected(request.rollout, "unknown_template", "it is gone"))
        else:
            all_ready(fabric, request)

    async with Fabric(script) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await one(rollout)
        await sandbox.run("a")
        await sandbox.snapshot()
        await sandbox.run("b")
        replay = await (await lost(fabric, rollout, sandbox)).resume()
        assert (replay.origin, asked_of(fabric, replay.sandbox.rollout.id)) == (None, ["a", "b"])


async def test_a_command_that_was_given_up_is_done_again_for_as_long_as_it_took_and_may_give_something_else() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await one(rollout)
        fabric.result = lambda line: CommandResult(137, b"half", duration_us=2_500_000, given_up=True)
        await sandbox.run("sleep inf", timeout=100)
        fabric.result = lambda line: CommandResult(137, b"hal", timed_out=True)
        replay = await (await lost(fabric, rollout, sandbox)).resume()
        assert (replay.replayed, replay.divergences) == (1, [])
        assert [asked.command.timeout_ms for asked in fabric.commands] == [100_000, 2500]


async def test_what_gives_something_else_is_an_error_or_listed() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await one(rollout)
        for line in ("a", "b", "c"):
            await sandbox.run(line, id=line)
        await sandbox.files.write("f", "12", id="f")
        await sandbox.files.read("f")
        await lost(fabric, rollout, sandbox)
        fabric.result = lambda line: CommandResult(int(line == "b"), line.encode(), b"oops\n", 999_999)
        says = r"step b \(run 'b'\).*exit_code=1.*had given.*exit_code=0"
        with pytest.raises(shoal.ReplayDiverged, match=says) as told:
            await sandbox.resume()
        assert asked_of(fabric, told.value.replay.sandbox.rollout.id) == ["a", "b"]
        (only,) = told.value.replay.divergences
        assert isinstance(only.expected, shoal.CommandResult)
        assert isinstance(only.got, shoal.CommandResult)
        assert (only.step, only.expected.exit_code, only.got.exit_code) == ("b", 0, 1)
        fabric.spoiled.add("f")
        replay = await sandbox.resume(diverged="report")
        first, read = replay.divergences
        assert (first.step, read.expected, read.got) == ("b", b"12", b"spoiled")
        assert replay.replayed == 5
        for bad in ({"diverged": "hide"}, {"not_idempotent": "again"}):
            with pytest.raises(shoal.BadRequest):
                await sandbox.resume(**bad)  # type: ignore[arg-type]  # what no type allows is refused at run time, too


async def test_what_must_not_be_done_twice_stops_it_or_is_taken_as_recorded() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await one(rollout)
        await sandbox.run("a")
        await sandbox.run("pay", idempotent=False, id="pay")
        await sandbox.run("b")
        await lost(fabric, rollout, sandbox)
        with pytest.raises(shoal.ReplayStopped, match=r"step pay \(run 'pay'\): it is marked idempotent=False") as told:
            await sandbox.resume()
        assert asked_of(fabric, told.value.replay.sandbox.rollout.id) == ["a"]
        replay = await sandbox.resume(not_idempotent="recorded")
        assert (replay.recorded, replay.replayed) == (["pay"], 2)
        assert asked_of(fabric, replay.sandbox.rollout.id) == ["a", "b"]


async def test_an_input_that_is_kept_no_longer_stops_it() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await one(rollout)
        await sandbox.files.write("large", LARGE, id="large")
        await lost(fabric, rollout, sandbox)
        fabric.broker.log("SHOAL_EXECUTOR_e1").purge(1)
        says = r"step large \(write 100000 bytes to large\): its input is in the log"
        with pytest.raises(shoal.ReplayStopped, match=says):
            await sandbox.resume()


async def test_what_overlapped_overlaps_again_and_what_did_not_does_not() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await one(rollout)
        held = asyncio.create_task(sandbox.run("hold until b"))
        await fabric.until(lambda: bool(fabric.held))
        await sandbox.run("b")
        assert (await held).stdout == "hold until b"
        await sandbox.run("c")
        await lost(fabric, rollout, sandbox)
        async with asyncio.timeout(10):
            replay = await sandbox.resume()
        assert (replay.replayed, replay.divergences) == (3, [])


async def test_in_a_run_that_is_resumed_it_is_brought_back_once() -> None:
    async def program(run: shoal.Run) -> list[str]:
        sandbox = await one(await run.rollout("host", key="only"))
        said = [(await sandbox.run(line)).stdout for line in ("a", "b")]
        if sandbox.ended is None:
            await lost(fabric, sandbox.rollout, sandbox)
        replay = await sandbox.resume()
        return [*said, (await replay.sandbox.run("c")).stdout, replay.sandbox.name]

    async def life(program: Callable[[shoal.Run], Awaitable[list[str]]]) -> list[str]:
        async with shoal.connect(bus=fabric.connect()) as cluster, cluster.resume("grpo-7") as run:
            return await program(run)

    async with Fabric(all_ready) as fabric:
        first = await life(program)
        assert await life(program) == first
        assert set(fabric.ran.values()) == {1}
        assert sorted(id.partition(":")[2] for id in fabric.ran) == ["#1", "#1", "#2", "#2", "#4"]


def test_it_is_brought_back_without_async_as_well() -> None:
    fabric: Fabric | None = None

    def bus() -> Bus:  # called in the client's thread, whose loop the fabric shares
        nonlocal fabric
        fabric = Fabric(all_ready)
        asyncio.get_running_loop().create_task(fabric.__aenter__())
        return fabric.connect()

    with shoal.connect_sync(bus=bus) as cluster:
        with cluster.rollout("host") as rollout:
            (sandbox,) = rollout.ready()
            sandbox.run("a")
            sandbox.run("pay", idempotent=False)
        with pytest.raises(shoal.ReplayStopped) as told:
            sandbox.resume()
        assert told.value.replay.sandbox.run("x").stdout == "x"  # type: ignore[attr-defined]  # it waits for nothing
        replay = sandbox.resume(not_idempotent="recorded")
        assert (replay.replayed, replay.sandbox.run("y").stdout) == (1, "y")
