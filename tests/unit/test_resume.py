"""A run that goes on after its trainer died, against a scripted cluster."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

import shoal
from shoal.bus.protocol import Bus
from shoal.client.record import Memory
from shoal.wire.messages import (
    Blob,
    Command,
    CommandFinished,
    CommandRefused,
    CommandResult,
    Hibernated,
    RolloutRejected,
    RolloutSubmitted,
    SandboxesWanted,
    Step,
    StepBegun,
)
from shoal.wire.outputs import heading
from unit.client_fabric import EXECUTOR, Fabric, all_ready, all_run

T = TypeVar("T")


async def life(fabric: Fabric, program: Callable[[shoal.Run], Awaitable[T]], **policy: Any) -> T:
    """One life of a trainer: of what it knew nothing is left."""
    async with shoal.connect(bus=fabric.connect(), answer_grace=5) as cluster:
        async with cluster.resume("grpo-7", **policy) as run:
            return await program(run)


async def one(rollout: shoal.Rollout) -> shoal.Sandbox:
    (sandbox,) = [sandbox async for sandbox in rollout.ready()]
    return sandbox


async def says(run: shoal.Run, *lines: str, **options: object) -> list[str]:
    """Run these in the one sandbox of a rollout."""
    sandbox = await one(await run.rollout("host", key="only", **options))  # type: ignore[arg-type]  # real ones
    return [(await sandbox.run(line)).stdout for line in lines]


def steps(fabric: Fabric) -> dict[str, int]:
    """Return how often each step was really done, by its id."""
    return {id.partition(":")[2]: count for id, count in fabric.ran.items()}


async def test_what_was_done_is_recorded_and_asks_nobody_and_what_follows_is_live() -> None:
    async def program(run: shoal.Run, more: bool = False) -> list[object]:
        rollout = await run.rollout("host", 2, key="step-1")
        found: list[object] = [rollout.id]
        async for sandbox in rollout.ready():
            for number in range(3):
                result = await sandbox.run(f"echo {number}", stdin=str(number))
                found += [sandbox.index, result.stdout, result.stderr, result.duration]
            await sandbox.files.write("a", "1" * 600_000)
            found.append(await sandbox.files.read("a"))
            with pytest.raises(shoal.FileError, match="no such file"):
                await sandbox.files.read("absent")
            with pytest.raises(shoal.CommandFailed):
                await sandbox.run("exit 3", check=True)
            found += [await sandbox.python("x = 1"), (await sandbox.snapshot("kept")).digest]
            if more:
                found.append((await sandbox.run("more")).stdout)
        return found

    async with Fabric(all_ready) as fabric:
        first = await life(fabric, program)
        asked = len(fabric.broker.messages("SHOAL_EXECUTOR_e1"))
        for _ in range(2):
            assert await life(fabric, program) == first
        assert len(fabric.broker.messages("SHOAL_EXECUTOR_e1")) == asked
        assert len([message for message in fabric.heard if isinstance(message, RolloutSubmitted)]) == 1
        longer = await life(fabric, lambda run: program(run, more=True))
        assert [each for each in longer if each != "more"] == first
        assert len(fabric.broker.messages("SHOAL_EXECUTOR_e1")) == asked + 2
        assert set(fabric.ran.values()) == {1}


async def test_a_step_that_was_asked_and_not_answered_is_asked_again_under_its_id() -> None:
    async with Fabric(all_ready) as fabric:
        fabric.silent = True
        dying = asyncio.create_task(life(fabric, lambda run: says(run, "a", "b")))
        await fabric.until(lambda: bool(fabric.commands))
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        fabric.silent = False
        assert await life(fabric, lambda run: says(run, "a", "b")) == ["a", "b"]
        assert [command.id.partition(":")[2] for command in fabric.commands] == ["#1", "#1", "#2"]


async def test_another_command_than_the_recorded_one_is_an_error_that_names_both() -> None:
    async with Fabric(all_ready) as fabric:
        await life(fabric, lambda run: says(run, "a", "b", "c"))
        with pytest.raises(shoal.TrajectoryDiverged, match=r"#2 .* was run 'b'.* 'other'") as caught:
            await life(fabric, lambda run: says(run, "a", "other", "c"))
        assert (caught.value.step, caught.value.recorded, caught.value.asked) == ("#2", "run 'b'", "run 'other'")
        assert steps(fabric) == {"#1": 1, "#2": 1, "#3": 1}
        with pytest.raises(shoal.BadRequest, match="diverged"):
            await life(fabric, lambda run: says(run), diverged="silently")

        # By choice it goes on live from there, and whoever comes after that has the new story.
        assert await life(fabric, lambda run: says(run, "a", "other", "c"), diverged="live") == ["a", "other", "c"]
        assert steps(fabric) == {"#1": 1, "#2": 1, "#3": 1, "#2~1": 1, "#3~1": 1}
        assert await life(fabric, lambda run: says(run, "a", "other", "c", "d")) == ["a", "other", "c", "d"]
        with pytest.raises(shoal.TrajectoryDiverged):
            await life(fabric, lambda run: says(run, "a", "b"))
        assert await life(fabric, lambda run: says(run, "a", "b"), diverged="live") == ["a", "b"]
        assert steps(fabric)["#2~2"] == steps(fabric)["#4~1"] == 1
        assert set(fabric.ran.values()) == {1}


@pytest.mark.parametrize(
    "other",
    [
        lambda s: s.run("a", stdin="y"),
        lambda s: s.run("a", stdin="x", env={"A": "1"}),
        lambda s: s.run("a", session=True),
        lambda s: s.run(["a"], stdin="x"),
        lambda s: s.python("a"),
        lambda s: s.files.write("a", "x"),
        lambda s: s.files.read("a"),
        lambda s: s.snapshot(),
        lambda s: s.hibernate(),
    ],
)
async def test_whatever_differs_in_what_is_asked_is_noticed(
    other: Callable[[shoal.Sandbox], Awaitable[object]],
) -> None:
    async def program(run: shoal.Run, ask: Callable[[shoal.Sandbox], Awaitable[object]]) -> object:
        return await ask(await one(await run.rollout("host", key="only")))

    async with Fabric(all_ready) as fabric:
        await life(fabric, lambda run: program(run, lambda s: s.run("a", stdin="x", timeout=1)))
        await life(fabric, lambda run: program(run, lambda s: s.run("a", stdin="x", timeout=9, output_limit=9)))
        with pytest.raises(shoal.TrajectoryDiverged, match="was run 'a'"):
            await life(fabric, lambda run: program(run, other))
        assert len(fabric.ran) == 1


@pytest.mark.parametrize(("content", "mode", "name"), [("2", 0o600, "x"), ("1", 0o644, "x"), ("1", 0o600, "y")])
async def test_other_files_and_snapshots_are_noticed(content: str, mode: int, name: str) -> None:
    async def program(run: shoal.Run, content: str, mode: int, name: str) -> None:
        sandbox = await one(await run.rollout("host", key="only"))
        await sandbox.files.write("a", content, mode=mode)
        await sandbox.rollback(await sandbox.snapshot(name))

    async with Fabric(all_ready) as fabric:
        for _ in range(2):
            await life(fabric, lambda run: program(run, "1", 0o600, "x"))
        with pytest.raises(shoal.TrajectoryDiverged):
            await life(fabric, lambda run: program(run, content, mode, name))
        assert steps(fabric) == {"#1": 1, "#2": 1, "#3": 1}


async def test_what_came_of_steps_is_read_again_where_memory_let_go_of_it() -> None:
    async def program(run: shoal.Run) -> list[str]:
        run._link.memory = Memory(1)
        sandbox = await one(await run.rollout("host", key="only"))
        assert sandbox.rollout.record is not None
        said = [(await sandbox.run(f"{number}")).stdout for number in range(5)]
        assert all(told.answer is None for told in sandbox.rollout.record.story(0).steps(0))
        return said

    async with Fabric(all_ready) as fabric:
        for _ in range(2):
            assert await life(fabric, program) == ["0", "1", "2", "3", "4"]
        assert set(fabric.ran.values()) == {1}


async def test_rollouts_that_are_over_come_out_as_they_were() -> None:
    async def program(run: shoal.Run) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for key in ("one", "two"):
            async with run.rollout("host", 3, key=key) as rollout:
                async for sandbox in rollout.ready():
                    found.append((sandbox.name, (await sandbox.run(f"{key} {sandbox.index}")).stdout))
                    if sandbox.index == 1:
                        await sandbox.release()
        async with run.rollout("host", key="job", commands=["x", "y"]) as job:
            found += sorted([(outcome.sandbox, outcome.stdout) async for outcome in job.outcomes()])
        return found

    def script(fabric: Fabric, request: RolloutSubmitted) -> None:
        if request.spec.commands:
            all_run(fabric, request)
        else:
            fabric.ready(request.rollout, 2)
            fabric.ready(request.rollout, 0, 1)

    async with Fabric(script) as fabric:
        first = await life(fabric, program)
        assert [name[-1:] for name, _ in first[:3]] == ["2", "0", "1"]
        for request in fabric.requests.values():
            if not request.spec.commands:
                fabric.concluded(request.rollout, "released")
        assert await life(fabric, program) == first
        assert set(fabric.ran.values()) == {1}

        async def more(run: shoal.Run) -> None:
            rollout = await run.rollout("host", 3, key="one")
            async for sandbox in rollout.ready():
                await sandbox.run(f"one {sandbox.index}")
                await sandbox.run("more")

        with pytest.raises(shoal.SandboxEnded, match="released"):
            await life(fabric, more)
        listed = await life(fabric, lambda run: run.rollouts())
        assert [(info.key, info.run) for info in listed] == [("one", "grpo-7"), ("two", "grpo-7"), ("job", "grpo-7")]


async def test_an_exception_leaves_a_rollout_to_be_resumed() -> None:
    async def program(run: shoal.Run, fails: bool) -> str:
        async with run.rollout("host", key="only") as rollout:
            said = (await (await one(rollout)).run("a")).stdout
            if fails:
                raise KeyError(said)
        return said

    async with Fabric(all_ready) as fabric:
        with pytest.raises(KeyError):
            await life(fabric, lambda run: program(run, fails=True))
        assert await life(fabric, lambda run: program(run, fails=False)) == "a"
        assert set(fabric.ran.values()) == {1}


async def test_a_key_stands_for_one_rollout() -> None:
    async with Fabric(all_ready) as fabric:
        await life(fabric, lambda run: says(run, "a"))
        with pytest.raises(shoal.TrajectoryDiverged, match=r"'only'.* n=1,.* n=2,.*another key") as caught:
            await life(fabric, lambda run: says(run, "a", n=2, warm="x"))
        assert (caught.value.sandbox, caught.value.step) == ("", "only")
        for key in ("", "x" * 501, "a\0b"):
            with pytest.raises(shoal.BadRequest, match="key"):
                await life(fabric, lambda run, key=key: _asked(run, key))  # type: ignore[misc]  # bound now
        ids = {(await life(fabric, lambda run, key=key: _asked(run, key))).id for key in "abc"}  # type: ignore[misc]
        assert len(ids) == 3


async def _asked(run: shoal.Run, key: str) -> shoal.Rollout:
    return await run.rollout("host", key=key)


async def test_what_was_not_admitted_is_asked_again_under_another_id() -> None:
    full = True

    def script(fabric: Fabric, request: RolloutSubmitted) -> None:
        if full:
            fabric.say(request.rollout, RolloutRejected(request.rollout, "queue_full", "n: too many", 1000))
        else:
            all_ready(fabric, request)

    async with Fabric(script) as fabric:
        for _ in range(2):
            with pytest.raises(shoal.QueueFull):
                await life(fabric, lambda run: says(run, "a"))
        full = False
        assert await life(fabric, lambda run: says(run, "a")) == ["a"]
        assert await life(fabric, lambda run: says(run, "a")) == ["a"]
        assert len(fabric.requests) == 3
        assert {request.key for request in fabric.requests.values()} == {"only"}


async def _forever(sandbox: shoal.Sandbox) -> None:
    while True:  # until the log has told of the loss
        await sandbox.run("never")


async def test_after_a_loss_the_handle_is_where_its_snapshot_is() -> None:
    async def program(run: shoal.Run, lose: bool) -> list[str]:
        rollout = await run.rollout("host", key="only", on_lost="resume")
        sandbox = await one(rollout)
        said = [(await sandbox.run(line)).stdout for line in ("a", "b", "c")]
        if lose:
            fabric.saved(rollout.id, 0, "s1", ((1, 1),))
            fabric.ended(rollout.id, 0)
            fabric.ready(rollout.id, 0, attempt=1, digest="s1")
            with pytest.raises(shoal.SandboxResumed) as told:
                await _forever(sandbox)
            assert (told.value.count, told.value.undone) == (2, ("b", "c"))
            both = await asyncio.gather(sandbox.run("b"), sandbox.run("c"))  # what is undone is done again, as itself
            said += [each.stdout for each in both]
        return [*said, (await sandbox.run("d")).stdout]

    async with Fabric(all_ready) as fabric:
        assert await life(fabric, lambda run: program(run, lose=True)) == ["a", "b", "c", "b", "c", "d"]
        assert {id: count for id, count in steps(fabric).items() if id != "#4"} == {"#1": 1, "#2": 2, "#3": 2}
        before = dict(fabric.ran)
        assert await life(fabric, lambda run: program(run, lose=False)) == ["a", "b", "c", "d"]
        assert fabric.ran == before


async def test_a_loss_that_a_command_tells_of_first_takes_the_handle_back_as_well() -> None:
    async def program(run: shoal.Run, *lines: str) -> list[str]:
        rollout = await run.rollout("host", key="only", on_lost="resume")
        sandbox = await one(rollout)
        said = [(await sandbox.run(line)).stdout for line in ("a", "b")]
        with pytest.raises(shoal.SandboxResumed):
            await sandbox.run("gone node_lost")
        fabric.saved(rollout.id, 0, "s1", ((1, 1),))
        fabric.ended(rollout.id, 0)
        fabric.ready(rollout.id, 0, attempt=1, digest="s1")
        return said + [(await sandbox.run(line)).stdout for line in ("b", "c")]

    async with Fabric(all_ready) as fabric:
        assert await life(fabric, program) == ["a", "b", "b", "c"]
        assert steps(fabric) == {"#1": 1, "#2": 2, "#3": 2}
        before = dict(fabric.ran)
        options = {"on_lost": "resume"}
        assert await life(fabric, lambda run: says(run, "a", "b", "c", **options)) == ["a", "b", "c"]
        assert fabric.ran == before


async def test_what_goes_on_live_keeps_its_branch_whatever_its_sandbox_is_meanwhile() -> None:
    async def program(run: shoal.Run) -> str:
        sandbox = await one(await run.rollout("host", key="only"))
        await sandbox.run("a")
        await sandbox.hibernate()
        return (await sandbox.run("c")).stdout

    async with Fabric(all_ready) as fabric:
        await life(fabric, lambda run: says(run, "a", "b"))
        (id,) = fabric.requests
        going = asyncio.create_task(life(fabric, program, diverged="live"))
        await fabric.until(lambda: any(isinstance(message, SandboxesWanted) for message in fabric.heard))
        nap = fabric.told[id, 0, 0, f"{id}-0:#2~1"]
        assert isinstance(nap, Hibernated)
        fabric.ready(id, 0, attempt=1, digest=nap.digest)
        assert await going == "c"
        assert await life(fabric, program) == "c"
        assert steps(fabric) == {"#1": 1, "#2": 1, "#2~1": 1, "#3~1": 1}


async def test_a_key_asked_for_twice_at_once_is_one_rollout() -> None:
    async def program(run: shoal.Run) -> None:
        first, second = await asyncio.gather(*(run.rollout("host", key="only") for _ in range(2)))
        assert first is second
        assert (await (await one(first)).run("a")).stdout == "a"

    async with Fabric(all_ready) as fabric:
        await life(fabric, program)
        assert len([message for message in fabric.heard if isinstance(message, RolloutSubmitted)]) == 1


async def test_a_trainer_that_was_away_during_a_loss_goes_on_from_the_snapshot() -> None:
    async with Fabric(all_ready) as fabric:
        options = {"on_lost": "resume"}
        await life(fabric, lambda run: says(run, "a", "b", "c", **options))
        (id,) = fabric.requests
        fabric.saved(id, 0, "s1", ((1, 2),))
        fabric.ended(id, 0)
        fabric.ready(id, 0, attempt=1, digest="s1")
        assert await life(fabric, lambda run: says(run, "a", "b", "c", "d", **options)) == ["a", "b", "c", "d"]
        assert steps(fabric) == {"#1": 1, "#2": 1, "#3": 2, "#4": 1}
        # What is undone may be something else now.
        fabric.ended(id, 0, attempt=1)
        fabric.ready(id, 0, attempt=2, digest="s1")
        assert await life(fabric, lambda run: says(run, "a", "b", "x", **options)) == ["a", "b", "x"]


async def test_what_must_not_be_done_twice_is_not() -> None:
    async def program(run: shoal.Run) -> list[object]:
        sandbox = await one(await run.rollout("host", key="only", on_lost="resume"))
        found: list[object] = [(await sandbox.run("a")).stdout]
        found.append((await sandbox.run("pay", idempotent=False)).stdout)
        await sandbox.files.write("receipt", "1", idempotent=False)
        return found

    async with Fabric(all_ready) as fabric:
        await life(fabric, program)
        assert await life(fabric, program) == ["a", "pay"]
        (id,) = fabric.requests
        fabric.saved(id, 0, "s1", ((1, 1),))
        fabric.ended(id, 0)
        fabric.ready(id, 0, attempt=1, digest="s1")
        with pytest.raises(shoal.NotIdempotent, match=r"#2 .*run 'pay'.*idempotent=False") as caught:
            await life(fabric, program)
        assert caught.value.result is not None
        assert caught.value.result.stdout == "pay"
        assert set(fabric.ran.values()) == {1}
        assert await life(fabric, program, not_idempotent="recorded") == ["a", "pay"]
        assert set(fabric.ran.values()) == {1}
        with pytest.raises(shoal.BadRequest, match="not_idempotent"):
            await life(fabric, program, not_idempotent="again")


async def test_what_must_not_be_done_twice_and_whose_end_nobody_heard_is_not_done_again() -> None:
    async def program(run: shoal.Run) -> None:
        sandbox = await one(await run.rollout("host", key="only", on_lost="resume"))
        await sandbox.run("pay", idempotent=False)

    async with Fabric(all_ready) as fabric:
        await life(fabric, lambda run: says(run, on_lost="resume"))
        (id,) = fabric.requests
        step = Step(1, 0, "e1", 1, idempotent=False)
        fabric.tell(id, StepBegun(f"{id}-0:#1", id, 0, 0, step, "run", Command(line="pay")))
        fabric.ended(id, 0)
        fabric.ready(id, 0, attempt=1)
        for policy in ("raise", "recorded"):
            with pytest.raises(shoal.NotIdempotent, match="no result of it is recorded") as caught:
                await life(fabric, program, not_idempotent=policy)
            assert caught.value.result is None
        assert not fabric.ran


async def test_a_step_of_its_own_name_is_one_step_for_everybody() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        plain = await cluster.rollout("host", run="grpo-7")
        sandbox = await one(plain)
        assert (await sandbox.run("a", id="step-1")).stdout == "a"
        with pytest.raises(shoal.TrajectoryDiverged, match="step-1"):
            await sandbox.run("b", id="step-1")
        for bad in ("", "x" * 201, "#1", "~a"):
            with pytest.raises(shoal.BadRequest, match="id"):
                await sandbox.run("a", id=bad)

        async def program(run: shoal.Run) -> str:
            (info,) = await run.rollouts()
            assert info.key == ""
            resumed = await one(await run.attach(info.rollout))
            said: list[tuple[str, bytes]] = []
            result = await resumed.run("a", id="step-1", on_output=lambda *piece: said.append(piece))
            assert said == [("stdout", b"a"), ("stderr", b"oops\n")]
            with pytest.raises(shoal.BadRequest, match=r"run\.rollouts"):
                await run.attach("rnothing")
            return result.stdout

        assert await life(fabric, program) == "a"
        assert steps(fabric) == {"step-1": 1}


async def test_a_command_is_the_same_across_a_sleep_and_when_its_answer_is_let_go() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await one(rollout)
        await sandbox.run("a", id="step-1")
        await sandbox.hibernate(id="nap")
        waking = asyncio.create_task(sandbox.run("b", id="step-2"))
        await fabric.until(lambda: any(isinstance(message, SandboxesWanted) for message in fabric.heard))
        nap = fabric.told[rollout.id, 0, 0, f"{rollout.id}-0:nap"]
        assert isinstance(nap, Hibernated)
        fabric.ready(rollout.id, 0, attempt=1, digest=nap.digest)
        assert (await waking).stdout == "b"
        assert (await sandbox.run("a", id="step-1")).stdout == "a"  # of the attempt before
        with pytest.raises(shoal.TrajectoryDiverged):
            await sandbox.run("c", id="step-1")
        assert steps(fabric) == {"step-1": 1, "nap": 1, "step-2": 1}

    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        sandbox = await one(rollout)
        await sandbox.run("a", id="step-1")
        key = (rollout.id, 0, 0, f"{rollout.id}-0:step-1")
        asked = (Step(), "run", Command(line="a"))
        fabric.told[key] = CommandRefused(key[3], *key[:3], "answer_gone", "it is in the log", None, *asked)
        assert (await sandbox.run("a", id="step-1")).stdout == "a"


async def test_sleep_and_forks_are_steps_as_well() -> None:
    async def program(run: shoal.Run) -> list[str]:
        sandbox = await one(await run.rollout("host", key="only"))
        await sandbox.run("a")
        forks = await sandbox.fork(2)
        said = [(await fork.run(f"fork {fork.index}")).stdout for fork in forks]
        await sandbox.hibernate()
        return said

    async with Fabric(all_ready) as fabric:
        first = await life(fabric, program)
        assert await life(fabric, program) == first == ["fork 0", "fork 1"]
        assert len(fabric.requests) == 2
        parent, forks = fabric.requests
        fabric.say(parent, SandboxesWanted(parent, ((0, 1),)))
        hibernated = fabric.told[parent, 0, 0, f"{parent}-0:#3"]
        assert isinstance(hibernated, Hibernated)
        fabric.ready(parent, 0, attempt=1, digest=hibernated.digest)
        assert await life(fabric, program) == first  # awake: it slept all the same
        fabric.concluded(forks, "released")
        assert await life(fabric, program) == first
        assert set(fabric.ran.values()) == {1}


async def test_a_large_output_is_fetched_whole_and_its_lack_is_said() -> None:
    whole = bytes(range(256)) * 4000
    blob = Blob(hashlib.sha256(heading("default") + whole).hexdigest(), len(heading("default")) + len(whole))

    async def program(run: shoal.Run) -> bytes:
        sandbox = await one(await run.rollout("host", key="only"))
        result = await sandbox.run("large", output_limit="2MiB")
        assert (result.stdout_dropped, result.stdout_tail) == (9, 24)
        return result.stdout_bytes

    async with Fabric(all_ready) as fabric:
        await life(fabric, lambda run: says(run))
        (id,) = fabric.requests
        result = CommandResult(0, whole[:1000], stdout_dropped=9, stdout_blob=blob, stdout_tail=24)
        command = Command(line="large", output_limit=2**21)
        step = Step(1, 0, EXECUTOR, 1)
        fabric.tell(id, CommandFinished(f"{id}-0:#1", id, 0, 0, command, result, step))
        with pytest.raises(shoal.OutputGone, match="it is not here") as caught:
            await life(fabric, program)
        assert caught.value.result.stdout_bytes == whole[:1000]
        assert caught.value.result.stdout_tail == 0
        fabric.blobs[blob] = heading("zeta") + whole
        with pytest.raises(shoal.OutputGone, match="is not blob"):
            await life(fabric, program)
        fabric.blobs[blob] = heading("default") + whole
        assert await life(fabric, program) == whole
        assert not fabric.ran
        with pytest.raises(shoal.BadRequest, match="16 MiB"):
            shoal.command("x", output_limit="17MiB")
        with pytest.raises(shoal.BadRequest, match="256 KiB"):
            await life(fabric, lambda run: says(run, command=shoal.command("x", output_limit="1MiB")))


def test_a_run_is_resumed_without_async_as_well() -> None:
    fabric: Fabric | None = None

    def bus() -> Bus:  # called in the client's thread, whose loop the fabric shares
        nonlocal fabric
        fabric = Fabric(all_ready)
        asyncio.get_running_loop().create_task(fabric.__aenter__())
        return fabric.connect()

    with shoal.connect_sync(bus=bus) as cluster:
        for _ in range(2):
            with cluster.resume("grpo-7") as run:
                rollout = run.rollout("host", 2, key="only")
                for sandbox in rollout.ready():
                    assert sandbox.run("a", check=True).stdout == "a"
                    sandbox.files.write("f", "1")
                    assert sandbox.files.read("f") == "1"
                assert [info.key for info in run.rollouts()] == ["only"]
            assert run.attach(rollout.id).id == rollout.id
        assert len(list(cluster.trajectory("grpo-7"))) == 6
        assert [step.kind for step in cluster.story(f"{rollout.id}-0")] == ["began", "run", "write", "read"]
