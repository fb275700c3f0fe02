"""The client against a scripted cluster."""

import asyncio

import pytest

import shoal
from shoal.wire.messages import (
    EndReason,
    OnLost,
    RolloutCancelled,
    RolloutConcluded,
    RolloutQueued,
    RolloutRejected,
    RolloutReleased,
    RolloutSubmitted,
)
from unit.client_fabric import Fabric, all_ready, all_run, job_result


def reject(fabric: Fabric, request: RolloutSubmitted) -> None:
    fabric.say(request.rollout, RolloutRejected(request.rollout, "unknown_template", "write host"))


async def test_sandboxes_run_commands_and_keep_files() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", n=3, run="a")
        seen = []
        async for sandbox in rollout.ready():
            result = await sandbox.run("echo hi", timeout=30)
            assert (result.stdout, result.exit_code, result.ok, result.duration) == ("echo hi", 0, True, 0.0015)
            assert (await sandbox.run(["echo", "a b"])).stdout == "echo a b"
            assert sandbox.ready_ms is not None
            assert sandbox.first_command_ms is not None
            seen.append(sandbox.index)
        assert sorted(seen) == [0, 1, 2]
        await rollout.release()
        await rollout.release()
        await fabric.until(lambda: any(isinstance(m, RolloutReleased) for m in fabric.heard))
        fabric.concluded(rollout.id, "released")
        summary = await rollout.wait()
        assert (summary.reason, summary.counts) == ("released", {EndReason.RELEASED: 3})
        assert [m for m in fabric.heard if isinstance(m, RolloutReleased)] == [RolloutReleased(rollout.id, ((0, 3),))]
        with pytest.raises(shoal.SandboxEnded, match="released"):
            await sandbox.run("late")


async def test_large_files_travel_in_pieces() -> None:
    content = bytes(range(256)) * 2500
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.rollout("host") as rollout:
            async for sandbox in rollout.ready():
                await sandbox.files.write("big", content)
                assert fabric.pieces == [262144, 262144, len(content) - 524288]
                assert await sandbox.files.read_bytes("big") == content
                await sandbox.files.write("empty", "")
                assert await sandbox.files.read("empty") == ""
                with pytest.raises(shoal.FileError, match="no such file"):
                    await sandbox.files.read("absent")
                with pytest.raises(shoal.FileError, match="read_bytes"):
                    await sandbox.files.read("big")


async def test_output_streams_each_piece_once_and_a_failing_callback_is_heard() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.rollout("host") as rollout:
            got: list[tuple[str, bytes]] = []
            async for sandbox in rollout.ready():
                await sandbox.run("x", on_output=lambda channel, data: got.append((channel, data)))
                assert got == [("stdout", b"0"), ("stdout", b"1"), ("stderr", b"2")]

                def fail(channel: str, data: bytes) -> None:
                    raise KeyError(channel)

                with pytest.raises(KeyError):
                    await sandbox.run("x", on_output=fail)


async def test_a_command_that_fails_is_a_result_unless_checked() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.rollout("host") as rollout:
            async for sandbox in rollout.ready():
                assert (await sandbox.run("exit 3")).exit_code == 3
                assert (await sandbox.run("sleep")).timed_out
                with pytest.raises(shoal.CommandFailed, match=r"'exit 3'.*exited with 3: oops"):
                    await sandbox.run("exit 3", check=True)


async def test_a_command_id_is_scoped_to_its_sandbox_and_a_repetition_reaches_the_executor() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.rollout("host", n=2) as rollout:
            async for sandbox in rollout.ready():
                await sandbox.run("x", id="step-1")
                await sandbox.run("x", id="step-1")
        ids = [message.id for message in fabric.commands]
        assert ids == [f"{rollout.id}-{index}:step-1" for index in (0, 0, 1, 1)]


async def test_no_answer_is_a_timeout_and_never_a_result() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect(), answer_grace=0.05) as cluster:
        fabric.silent = True
        async with cluster.rollout("host") as rollout:
            async for sandbox in rollout.ready():
                with pytest.raises(shoal.Timeout, match="no answer"):
                    await sandbox.run("x", timeout=0.01)


async def test_a_loss_fails_the_command_under_way() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        fabric.silent = True
        rollout = await cluster.rollout("host")
        async for sandbox in rollout.ready():
            running = asyncio.create_task(sandbox.run("x"))
            await fabric.until(lambda: bool(fabric.commands))
            fabric.ended(rollout.id, 0, reason=EndReason.DIED)
            with pytest.raises(shoal.SandboxLost) as caught:
                await running
            assert (caught.value.reason, caught.value.restarting) == (EndReason.DIED, False)
            assert sandbox.lost
        assert [outcome.reason for outcome in rollout.failures] == [EndReason.DIED]


async def test_a_sandbox_lost_before_it_was_ready_comes_out_as_lost() -> None:
    def script(fabric: Fabric, request: RolloutSubmitted) -> None:
        fabric.ready(request.rollout, 1)
        fabric.ended(request.rollout, 0)

    async with Fabric(script) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", n=2)
        found = {sandbox.index: sandbox async for sandbox in rollout.ready()}
        assert sorted(found) == [0, 1]
        assert (found[0].lost, found[1].lost) == (True, False)
        with pytest.raises(shoal.InfrastructureError, match="do not score it"):
            await found[0].run("x")


async def test_a_refusal_tells_why_a_sandbox_is_gone() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", n=2)
        first, second = await _all(rollout)
        with pytest.raises(shoal.SandboxLost):
            await first.run("gone node_lost")
        with pytest.raises(shoal.SandboxEnded, match="memory"):
            await second.run("gone out_of_memory")


async def test_what_came_too_late_for_its_deadline_is_not_waited_for_as_if_it_came_back() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        (sandbox,) = await _all(await cluster.rollout("host", on_lost="resume"))
        with pytest.raises(shoal.SandboxLost, match="most of that went by before it was there"):
            await asyncio.wait_for(sandbox.run("gone deadline"), 5)


async def test_ready_waits_for_the_log_when_a_command_told_first_that_its_sandbox_is_lost() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", n=2, on_lost="restart")
        first = [sandbox async for sandbox in rollout.ready()]
        with pytest.raises(shoal.SandboxLost):
            await first[0].run("gone node_lost")
        assert first[0].lost
        second = asyncio.create_task(_all(rollout))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not second.done()
        fabric.ended(rollout.id, 0, 1)
        fabric.ready(rollout.id, 0, 1, attempt=1)
        assert [(sandbox.index, sandbox.attempt) for sandbox in await second] == [(0, 1), (1, 1)]


async def _all(rollout: shoal.Rollout) -> list[shoal.Sandbox]:
    return [sandbox async for sandbox in rollout.ready()]


async def test_a_restarted_sandbox_comes_out_anew() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", on_lost="restart")
        fabric.silent = True
        (first,) = [sandbox async for sandbox in rollout.ready()]
        running = asyncio.create_task(first.run("x"))
        await fabric.until(lambda: bool(fabric.commands))
        fabric.ended(rollout.id, 0)
        fabric.ended(rollout.id, 0)  # late: of an attempt that is over
        with pytest.raises(shoal.SandboxLost, match="started again"):
            await running
        fabric.silent = False
        fabric.ready(rollout.id, 0, attempt=1)
        again = [sandbox async for sandbox in rollout.ready()]
        assert [(sandbox.attempt, sandbox.lost) for sandbox in again] == [(1, False)]
        assert (await again[0].run("again")).ok
        with pytest.raises(shoal.SandboxLost, match="started again"):
            await first.run("x")
        assert rollout.failures == []


async def test_each_outcome_comes_once_whatever_is_repeated_or_late() -> None:
    def script(fabric: Fabric, request: RolloutSubmitted) -> None:
        id = request.rollout
        fabric.ended(id, 0)  # is restarted: commands travel along
        fabric.finished(id, job_result(0, b"of a lost attempt"))
        fabric.finished(id, job_result(1, b"one"), job_result(1, b"twice"))
        fabric.finished(id, job_result(0, b"zero", 7), attempt=1)
        fabric.finished(id, job_result(0, b"late"), attempt=1)
        fabric.say(id, RolloutReleased(id, ((0, 99),)))  # nobody has so many
        fabric.concluded(id)

    async with Fabric(script) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host", n=2, command="x")
        assert fabric.requests[rollout.id].spec.on_lost is OnLost.RESTART
        for _ in range(2):
            outcomes = [outcome async for outcome in rollout.outcomes()]
            assert [(o.index, o.attempt, o.stdout, o.exit_code) for o in outcomes] == [
                (1, 0, "one", 0),
                (0, 1, "zero", 7),
            ]
        assert all(o.ready_ms is not None and o.first_command_ms is not None for o in outcomes)
        summary = await rollout.wait()
        assert (summary.succeeded, summary.failed, summary.lost, summary.reason) == (1, 1, 0, "finished")
        with pytest.raises(shoal.BadRequest, match="outcomes"):
            await anext(rollout.ready())


async def test_a_lost_sandbox_has_no_exit_code() -> None:
    def script(fabric: Fabric, request: RolloutSubmitted) -> None:
        fabric.ended(request.rollout, 0)

    async with Fabric(script) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        (outcome,) = await cluster.map("host", ["x"], on_lost="fail")
        assert outcome.infrastructure
        assert outcome.result is None
        with pytest.raises(shoal.SandboxLost):
            _ = outcome.exit_code == 0
        with pytest.raises(shoal.SandboxLost):
            _ = outcome.ok


async def test_a_rejection_is_an_error_wherever_one_waits() -> None:
    async with Fabric(reject) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        with pytest.raises(shoal.Rejected, match="write host") as caught:
            await cluster.rollout("nonsense")
        assert caught.value.code == "unknown_template"
        with pytest.raises(shoal.Rejected):
            await cluster.map("nonsense", ["x"])
        rollout = await cluster.attach(await cluster.submit("nonsense"))
        with pytest.raises(shoal.Rejected):
            await rollout.wait()


async def test_time_up_and_cancelled_before_all_were_ready() -> None:
    async with Fabric() as fabric, shoal.connect(bus=fabric.connect()) as cluster:

        def script(fabric: Fabric, request: RolloutSubmitted) -> None:
            fabric.ready(request.rollout, 0)
            fabric.concluded(request.rollout, "timed_out")

        fabric.script = script
        rollout = await cluster.rollout("host", n=2)
        with pytest.raises(shoal.Timeout, match="1 of its 2"):
            _ = [sandbox async for sandbox in rollout.ready()]

        def never(fabric: Fabric, request: RolloutSubmitted) -> None:
            fabric.say(request.rollout, RolloutConcluded(request.rollout, (), "timed_out", ((0, 2),)))

        fabric.script = never
        rollout = await cluster.rollout("host", n=2)
        with pytest.raises(shoal.Timeout, match="2 of its 2"):
            _ = [sandbox async for sandbox in rollout.ready()]
        assert [(each.reason, each.infrastructure) async for each in rollout.outcomes()] == [
            (shoal.EndReason.NOT_STARTED, True)
        ] * 2

        def late(fabric: Fabric, request: RolloutSubmitted) -> None:
            fabric.ready(request.rollout, 0)
            fabric.say(request.rollout, RolloutConcluded(request.rollout, (), "timed_out", (), ((0, 2),)))

        fabric.script = late
        rollout = await cluster.rollout("host", n=2, on_lost="resume")
        with pytest.raises(shoal.Timeout, match="1 of its 2"):
            _ = [sandbox async for sandbox in rollout.ready()]
        for outcome in [each async for each in rollout.outcomes()]:
            assert (outcome.reason, outcome.infrastructure) == (shoal.EndReason.DEADLINE, True)
            with pytest.raises(shoal.SandboxLost, match=r"(of|in) its rollout's"):
                _ = outcome.ok
        fabric.script = lambda fabric, request: fabric.say(
            request.rollout, RolloutQueued(request.rollout, 4, 2, "the cluster is full")
        )
        rollout = await cluster.rollout("host", n=2)
        status = rollout.status()
        assert (status.state, status.waiting, status.ahead, status.waiting_reason) == (
            "queued",
            2,
            4,
            "the cluster is full",
        )
        with pytest.raises(shoal.Timeout, match="not concluded"):
            await rollout.wait(0.01)
        await cluster.cancel(rollout.id)
        with pytest.raises(shoal.RolloutEnded, match="cancelled"):
            _ = [sandbox async for sandbox in rollout.ready()]
        assert any(isinstance(message, RolloutCancelled) for message in fabric.heard)


async def test_map_keeps_the_order_and_splits_what_is_too_large() -> None:
    async with Fabric(all_run, cells=3) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        commands = [f"{number} " + "x" * 300_000 for number in range(5)]
        outcomes = await cluster.map("host", commands)
        assert [outcome.stdout for outcome in outcomes] == commands
        assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3, 4]
        assert [outcome.sandbox[-2:] for outcome in outcomes] == ["-0", "-1", "-0", "-1", "-0"]
        assert [len(request.spec.commands) for request in fabric.requests.values()] == [2, 2, 1]
        assert await cluster.map("host", []) == []
        same = await cluster.map("host", ["true"] * 50)
        assert len(same) == 50
        assert [len(request.spec.commands) for request in fabric.requests.values()][-1] == 1
        with pytest.raises(shoal.BadRequest, match="template"):
            await cluster.map("host", ["x" * 800_000])


async def test_two_clients_of_one_run_see_their_own() -> None:
    async with (
        Fabric(all_run) as fabric,
        shoal.connect(bus=fabric.connect()) as one,
        shoal.connect(bus=fabric.connect()) as other,
    ):
        mine, theirs = await asyncio.gather(one.map("host", ["a"] * 9), other.map("host", ["b"] * 9))
        assert {outcome.stdout for outcome in mine} == {"a"}
        assert {outcome.stdout for outcome in theirs} == {"b"}


async def test_attach_goes_on_where_the_log_is() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        id = await cluster.submit("host", n=2, run="r7")
        await fabric.until(lambda: id in fabric.requests)
        rollout = await cluster.attach(id)
        assert (rollout.run, rollout.status().ready) == ("r7", 2)
        async for sandbox in rollout.ready():
            assert (await sandbox.run("x")).ok
        await rollout.release()
        assert {outcome.reason async for outcome in rollout.outcomes()} == {EndReason.RELEASED}
        fabric.concluded(id, "released")
        assert (await rollout.wait()).reason == "released"
        again = await cluster.attach(id, run="r7")
        assert (await again.wait()).counts == {EndReason.RELEASED: 2}
        with pytest.raises(shoal.BadRequest, match="shoal ls"):
            await cluster.attach("rnothing")
