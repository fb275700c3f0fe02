"""A trainer's errors: what they are, and that they come whole out of another process."""

import copy
import pickle
from collections.abc import Callable

import pytest

import shoal
from shoal.client.results import CommandResult
from shoal.wire.messages import EndReason

RESULT = CommandResult(1, b"out", b"err\n", 0.5)
DIVERGENCE = shoal.Divergence("~1", "true", RESULT, 2)
MADE: dict[str, Callable[[], shoal.ShoalError]] = {
    "BadRequest": lambda: shoal.BadRequest("n", "is none"),
    "BuildFailed": lambda: shoal.BuildFailed("name", "no"),
    "CommandFailed": lambda: shoal.CommandFailed("r-0", "false", RESULT),
    "FileError": lambda: shoal.FileError("r-0", "f", "is none"),
    "InfrastructureError": lambda: shoal.InfrastructureError("broken"),
    "NoSuchSnapshot": lambda: shoal.NoSuchSnapshot("gone"),
    "NotIdempotent": lambda: shoal.NotIdempotent("r-0", "~1", "true", RESULT),
    "OutputGone": lambda: shoal.OutputGone("r-0", "gone", RESULT),
    "QueueFull": lambda: shoal.QueueFull("r", "queue_full", "full", 2.0),
    "Rejected": lambda: shoal.Rejected("r", "no_room", "full"),
    "ReplayDiverged": lambda: shoal.ReplayDiverged("r-0", DIVERGENCE, live()),
    "ReplayStopped": lambda: shoal.ReplayStopped("r-0", "~1", "true", "it must not be", live()),
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
