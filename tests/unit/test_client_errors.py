"""A trainer's errors: what they are, and that they come whole out of another process."""

import copy
import pickle
from collections.abc import Callable

import pytest

import shoal
from shoal.client.results import CommandResult
from shoal.wire.messages import EndReason
from unit.client_fabric import Fabric, all_ready

RESULT = CommandResult(1, b"out", b"err\n", 0.5)
DIVERGENCE = shoal.Divergence("~1", "true", RESULT, 2)
MADE: dict[str, Callable[[], shoal.ShoalError]] = {
    "BadRequest": lambda: shoal.BadRequest("n", "is none"),
    "BuildFailed": lambda: shoal.BuildFailed("name", "no"),
    "CommandFailed": lambda: shoal.CommandFailed("r-0", "false", RESULT),
    "FileError": lambda: shoal.FileError("r-0", "f", "is none"),
    "InfrastructureError": lambda: shoal.InfrastructureError("broken"),
    "NoSuchSnapshot": lambda: shoal.NoSuchSnapshot("gone"),
    "NotAllowed": lambda: shoal.NotAllowed("nats://somewhere", "user acme may not publish"),
    "NotConnected": lambda: shoal.NotConnected("nats://nowhere", "closed"),
    "NotIdempotent": lambda: shoal.NotIdempotent("r-0", "~1", "true", RESULT),
    "OutputGone": lambda: shoal.OutputGone("r-0", "gone", RESULT),
    "PlatformTimeout": lambda: shoal.PlatformTimeout("no answer"),
    "QueueFull": lambda: shoal.QueueFull("r", "queue_full", "full", 2.0),
    "Rejected": lambda: shoal.Rejected("r", "no_room", "full"),
    "ReplayDiverged": lambda: shoal.ReplayDiverged("r-0", DIVERGENCE, live()),
    "ReplayStopped": lambda: shoal.ReplayStopped("r-0", "~1", "true", "it must not be", live()),
    "LogGone": lambda: shoal.LogGone("nats://somewhere", "it was made anew"),
    "RolledBack": lambda: shoal.RolledBack("r-0"),
    "RolloutEnded": lambda: shoal.RolloutEnded("r", "cancelled", 2),
    "SandboxEnded": lambda: shoal.SandboxEnded("r-0", EndReason.TIMED_OUT),
    "SandboxLost": lambda: shoal.SandboxLost("r-0", EndReason.NODE_LOST, "n1", restarting=True),
    "SandboxResumed": lambda: shoal.SandboxResumed("r-0", EndReason.NODE_LOST, "n1", ("true",), 1, 2),
    "ShoalError": lambda: shoal.ShoalError("no"),
    "SnapshotError": lambda: shoal.SnapshotError("r-0", "busy", "a command runs"),
    "StreamFull": lambda: shoal.StreamFull("S", "full"),
    "Timeout": lambda: shoal.Timeout("too late"),
    "TrajectoryDiverged": lambda: shoal.TrajectoryDiverged("r-0", "~1", "this", "that"),
    "Unreachable": lambda: shoal.Unreachable("nats://nowhere", "nobody"),
}


def live() -> shoal.Replay:
    """Return what holds something that cannot leave its process."""
    return shoal.Replay(lambda: None, None)  # type: ignore[arg-type]  # as unpicklable as a sandbox


@pytest.mark.parametrize(
    "name", [name for name in shoal.__all__ if isinstance(getattr(shoal, name), type)
             and issubclass(getattr(shoal, name), BaseException)]
)  # fmt: skip
def test_every_error_comes_out_of_another_process_as_it_was(name: str) -> None:
    error = MADE[name]()
    assert type(error) is getattr(shoal, name)
    error.add_note("by the way")
    for number in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, number))
        told = dict(error.__dict__)
        if "replay" in told:
            told["replay"] = None  # a live handle stays where it is
        assert (type(again), str(again), again.args, again.__dict__) == (type(error), str(error), error.args, told)
    twin = copy.copy(error)
    assert (type(twin), str(twin), twin.__dict__) == (type(error), str(error), error.__dict__)


@pytest.mark.parametrize("name", ["PlatformTimeout", "Unreachable", "SandboxLost", "StreamFull", "OutputGone"])
def test_what_the_platform_failed_in_is_masked_and_never_scored(name: str) -> None:
    assert isinstance(MADE[name](), shoal.InfrastructureError)


def test_a_limit_of_the_trainers_own_is_no_failure_of_the_platform() -> None:
    assert not isinstance(shoal.Timeout("not concluded"), shoal.InfrastructureError)
    assert isinstance(shoal.PlatformTimeout("no answer"), shoal.Timeout | TimeoutError)
    assert isinstance(shoal.Unreachable("nats://nowhere", "nobody"), ConnectionError)


async def test_no_answer_and_no_readiness_are_the_platforms_and_waiting_is_the_trainers() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect(), answer_grace=0.05) as cluster:
        fabric.silent = True
        async with cluster.rollout("host") as rollout:
            async for sandbox in rollout.ready():
                with pytest.raises(shoal.InfrastructureError, match="no answer"):
                    await sandbox.run("x", timeout=0.01)
            for given in ("10ms", 0.01, 0):
                with pytest.raises(shoal.Timeout, match=r"not concluded within 0(\.01)? s") as told:
                    await rollout.wait(given)
                assert not isinstance(told.value, shoal.InfrastructureError)
            for wrong in ("soon", -1, True, False):
                with pytest.raises(shoal.BadRequest, match="timeout"):
                    await rollout.wait(wrong)
        fabric.script = lambda fabric, request: fabric.concluded(request.rollout, "timed_out")
        with pytest.raises(shoal.InfrastructureError, match="2 of its 2"):
            _ = [sandbox async for sandbox in (await cluster.rollout("host", n=2)).ready()]


async def test_what_the_connection_broke_of_is_not_told_as_a_wait_that_was_too_short() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        rollout = await cluster.rollout("host")
        rollout.broken(shoal.PlatformTimeout("the broker says nothing"))
        with pytest.raises(shoal.PlatformTimeout, match="the broker says nothing"):
            await rollout.wait("10s")


async def failing(cluster: shoal.Cluster, *, attached: bool, body: Exception | None) -> None:
    """Lose the connection while a rollout is held, and raise what is given."""
    async with await cluster.rollout("host") if attached else cluster.rollout("host"):
        await cluster.close()
        if body is not None:
            raise body


@pytest.mark.parametrize("attached", [True, False])
async def test_a_release_that_fails_does_not_hide_what_the_body_raised(attached: bool) -> None:
    async with Fabric(all_ready) as fabric:
        with pytest.raises(KeyError, match="body") as told:
            await failing(await shoal.connect(bus=fabric.connect()), attached=attached, body=KeyError("body"))
        assert "closed" in told.value.__notes__[0]
        with pytest.raises(shoal.ShoalError, match="closed"):
            await failing(await shoal.connect(bus=fabric.connect()), attached=attached, body=None)
