"""Shoal: a sandbox fabric for agentic reinforcement learning.

    async with shoal.connect() as cluster:
        rollout = await cluster.rollout("host", n=64, run="grpo-7", timeout="10m")
        async for sandbox in rollout.ready():
            result = await sandbox.run("python3 solve.py", timeout=30)

`shoal.connect_sync()` has the same without `async`. Public names are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.client.catalogue import SnapshotInfo
    from shoal.client.cluster import Cluster, connect
    from shoal.client.dead import DeadLetterInfo, DeadLetterRetry
    from shoal.client.diverging import NotIdempotent, ReplayDiverged, ReplayStopped, TrajectoryDiverged
    from shoal.client.errors import (
        BadRequest,
        BuildFailed,
        CommandFailed,
        FileError,
        InfrastructureError,
        LogGone,
        NoSuchSnapshot,
        NotAllowed,
        NotConnected,
        OutputGone,
        PlatformTimeout,
        QueueFull,
        Rejected,
        RolledBack,
        RolloutEnded,
        SandboxEnded,
        SandboxLost,
        SandboxResumed,
        ShoalError,
        SnapshotError,
        StreamFull,
        Timeout,
        Unreachable,
    )
    from shoal.client.files import FileInfo, Listing
    from shoal.client.replaying import Divergence, Replay
    from shoal.client.requests import Resources, command
    from shoal.client.results import (
        CommandResult,
        Event,
        NodeInfo,
        RolloutInfo,
        RolloutStatus,
        RolloutSummary,
        SandboxOutcome,
    )
    from shoal.client.rollout import Rollout
    from shoal.client.rows import TrajectoryStep
    from shoal.client.run import Run
    from shoal.client.sandbox import Files, Sandbox
    from shoal.client.scheduling import Scheduling
    from shoal.client.snapshots import Snapshot
    from shoal.sync import connect as connect_sync
    from shoal.wire.messages import EndReason, Limits

__all__ = [
    "BadRequest",
    "BuildFailed",
    "Cluster",
    "CommandFailed",
    "CommandResult",
    "DeadLetterInfo",
    "DeadLetterRetry",
    "Divergence",
    "EndReason",
    "Event",
    "FileError",
    "FileInfo",
    "Files",
    "InfrastructureError",
    "Limits",
    "Listing",
    "LogGone",
    "NoSuchSnapshot",
    "NodeInfo",
    "NotAllowed",
    "NotConnected",
    "NotIdempotent",
    "OutputGone",
    "PlatformTimeout",
    "QueueFull",
    "Rejected",
    "Replay",
    "ReplayDiverged",
    "ReplayStopped",
    "Resources",
    "RolledBack",
    "Rollout",
    "RolloutEnded",
    "RolloutInfo",
    "RolloutStatus",
    "RolloutSummary",
    "Run",
    "Sandbox",
    "SandboxEnded",
    "SandboxLost",
    "SandboxOutcome",
    "SandboxResumed",
    "Scheduling",
    "ShoalError",
    "Snapshot",
    "SnapshotError",
    "SnapshotInfo",
    "StreamFull",
    "Timeout",
    "TrajectoryDiverged",
    "TrajectoryStep",
    "Unreachable",
    "command",
    "connect",
    "connect_sync",
]

_HOMES = {
    "shoal.client.catalogue": ("SnapshotInfo",),
    "shoal.client.cluster": ("Cluster", "connect"),
    "shoal.client.dead": ("DeadLetterInfo", "DeadLetterRetry"),
    "shoal.client.diverging": ("NotIdempotent", "ReplayDiverged", "ReplayStopped", "TrajectoryDiverged"),
    "shoal.client.errors": (
        "BadRequest", "BuildFailed", "CommandFailed", "FileError", "InfrastructureError", "LogGone", "NoSuchSnapshot",
        "NotAllowed", "NotConnected", "OutputGone", "PlatformTimeout", "QueueFull", "Rejected", "RolledBack",
        "RolloutEnded", "SandboxEnded", "SandboxLost", "SandboxResumed", "ShoalError", "SnapshotError", "StreamFull",
        "Timeout", "Unreachable",
    ),
    "shoal.client.replaying": ("Divergence", "Replay"),
    "shoal.client.requests": ("Resources", "command"),
    "shoal.client.results": (
        "CommandResult", "Event", "NodeInfo", "RolloutInfo", "RolloutStatus", "RolloutSummary", "SandboxOutcome",
    ),
    "shoal.client.rollout": ("Rollout",),
    "shoal.client.rows": ("TrajectoryStep",),
    "shoal.client.run": ("Run",),
    "shoal.client.files": ("FileInfo", "Listing"),
    "shoal.client.sandbox": ("Files", "Sandbox"),
    "shoal.client.scheduling": ("Scheduling",),
    "shoal.client.snapshots": ("Snapshot",),
    "shoal.wire.messages": ("EndReason", "Limits"),
}  # fmt: skip
_MODULES = ("archive", "sync")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    elif name == "connect_sync":
        value = importlib.import_module("shoal.sync").connect
    elif name in _MODULES:
        value = importlib.import_module(f"shoal.{name}")
    else:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
