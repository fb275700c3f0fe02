"""Streams, as data: which subjects each keeps, for how long, and how many there are in a cluster."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from shoal.wire.subjects import token

_DAY: Final = 86_400.0

CLUSTER_BUCKET: Final = "SHOAL_CLUSTER"
"""Key-value bucket with what is fixed when a cluster is made, in decimal."""
CELLS_KEY: Final = "cells"
"""How many cells there are."""
REPLICAS_KEY: Final = "replicas"
"""On how many brokers each stream and bucket is kept; 1 where it is missing."""
DRAINED_KEYS: Final = "drained"
"""Its keys that begin so name the nodes that are to take no more sandboxes: `drained_key`."""
PASSED_KEYS: Final = "passed"
"""Its keys that begin so say, by partition, which messages are left out by all who fold: `passed_key`."""
ID_KEY: Final = "id"
"""Which cluster it is: a random name that it got when it was set up. What is archived says where it is from."""
SECRET_BUCKET: Final = "SHOAL_SECRET"  # noqa: S105 - the name of where it is
"""Key-value bucket with what only services may read. No archive has it."""
SEAL_KEY: Final = "seal"
"""With which snapshots are sealed (`shoal.runtime.sealing`)."""
LEASE_BUCKET: Final = "SHOAL_LEASE"
"""Key-value bucket with who serves each partition and how far it is done (`shoal.runtime.lease`)."""
CHECKPOINT_BUCKET: Final = "SHOAL_CHECKPOINT"
"""Key-value bucket with the states of partitions (`shoal.runtime.checkpoints`)."""
_PASSING: Final = "SHOAL_BLOB_"
TRAJECTORY_S: Final = 8 * _DAY
"""How long trajectories stay, and the outputs they refer to."""
KEPT_S: Final = 8 * _DAY
"""How long folded messages stay at least. A day longer than the longest rollout: all that one under way needs is there.

What is older is in checkpoints alone: tenants, their limits, names of templates and snapshots. So nobody begins with
what is left of a log, unless told to (`shoal.runtime.options.state_option`).
"""

DEDUPE_S: Final = 120.0
"""How long a broker drops copies. Each id is in its memory as long, and its garbage collector looks at all of them."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream; a full one refuses new messages rather than lose old ones; if it `makes_room`, the oldest go.

    `max_age_s` is the broker's to enforce, whoever has read the message or not; 0 for a stream that is folded: of that
    the shell removes what is older than `KEPT_S` *and* covered by a checkpoint (`shoal.runtime.retention`). For
    `dedupe_s` the broker knows an id and drops what comes again under it; whoever receives does so for ever.
    """

    name: str
    subjects: tuple[str, ...]
    max_age_s: float
    max_bytes: int
    dedupe_s: float = DEDUPE_S
    replicas: int = 1
    makes_room: bool = False


def drained_key(node: str) -> str:
    """Return the key under which a node is listed while it is drained: any name can be part of it in hexadecimal."""
    return f"{DRAINED_KEYS}.{node.encode().hex()}"


def drained_nodes(keys: Iterable[str]) -> set[str]:
    """Return the nodes that these keys name."""
    return {bytes.fromhex(key.partition(".")[2]).decode() for key in keys}


def passed_key(partition: str) -> str:
    """Return the key of the record of a partition's messages that are passed over (`shoal.machine.passing`)."""
    return f"{PASSED_KEYS}.{partition}"


def rollout(cell: int) -> Stream:
    """Return the log of a cell's rollouts: the scheduler's inbox, and what trainers follow."""
    return Stream(f"SHOAL_ROLLOUT_{cell}", (f"shoal.rollout.{cell}.>",), 0, 16 * 1024**3)


def placement(cell: int) -> Stream:
    """Return a cell's placement inbox."""
    return Stream(f"SHOAL_PLACEMENT_{cell}", (f"shoal.placement.{cell}.>",), 0, 16 * 1024**3)


def executor(name: str) -> Stream:
    """Return one executor's inbox."""
    return Stream(f"SHOAL_EXECUTOR_{token(name, 'executor')}", (f"shoal.executor.{name}.>",), 8 * _DAY, 4 * 1024**3)


def trajectory(cell: int) -> Stream:
    """Return the log of what a cell's sandboxes ran and what came of it."""
    return Stream(f"SHOAL_TRAJECTORY_{cell}", (f"shoal.trajectory.{cell}.>",), TRAJECTORY_S, 16 * 1024**3)


def blob(cell: int) -> Stream:
    """Return where executors put pieces of blobs for trainers that asked for them, and fetch them at once."""
    return Stream(f"{_PASSING}{cell}", (f"shoal.blob.{cell}.>",), 600.0, 4 * 1024**3)


def is_log(name: str) -> bool:
    """Return whether a stream says what happened; others only carry copies, and nobody has to keep them."""
    return not name.startswith(_PASSING)


def snapshot() -> Stream:
    """Return the snapshot catalogue's inbox."""
    return Stream("SHOAL_SNAPSHOT", ("shoal.snapshot.>",), 0, 1024**3)


def dead() -> Stream:
    """Return where messages go that nobody could use. However many there are stops nobody: the oldest go."""
    return Stream("SHOAL_DEAD", ("shoal.dead.>",), 30 * _DAY, 1024**3, makes_room=True)


def cluster(cells: int) -> tuple[Stream, ...]:
    """Return all streams of a cluster but those of its executors, which each makes for itself."""
    kinds = (rollout, placement, trajectory, blob)
    per_cell = [kind(cell) for cell in range(cells) for kind in kinds]
    return (*per_cell, snapshot(), dead())


def stream_of(subject: str) -> str:
    """Return the name of the stream that keeps a subject. Raises ValueError for a subject that is not Shoal's."""
    parts = subject.split(".")
    if len(parts) >= 3 and parts[0] == "shoal":
        match parts[1]:
            case "rollout" | "placement" | "trajectory" | "blob" | "executor":
                return f"SHOAL_{parts[1].upper()}_{parts[2]}"
            case "snapshot" | "dead":
                return f"SHOAL_{parts[1].upper()}"
    raise ValueError(f"{subject!r} belongs to no stream")


def subjects_overlap(left: str, right: str) -> bool:
    """Return whether some subject matches both patterns (`*` one token, a last `>` one or more)."""
    a, b = left.split("."), right.split(".")
    for i in range(max(len(a), len(b))):
        if i >= len(a) or i >= len(b):
            return False
        if a[i] == ">" or b[i] == ">":
            return True
        if a[i] != b[i] and "*" not in (a[i], b[i]):
            return False
    return True


def overlapping(streams: Iterable[Stream]) -> list[tuple[str, str]]:
    """Return the pairs of different streams that would both keep some subject."""
    known = list(streams)
    return [
        (one.name, other.name)
        for i, one in enumerate(known)
        for other in known[i + 1 :]
        if any(subjects_overlap(x, y) for x in one.subjects for y in other.subjects)
    ]
