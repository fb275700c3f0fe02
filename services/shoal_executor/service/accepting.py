"""What an executor is told, looked at before anything follows from it.

What a message says its sender chose, and any tenant may send one to any executor. But the subject that it came on is
one that the broker let its sender use.
"""

import re
from functools import lru_cache
from typing import Final

import msgspec

from shoal.machine import ranges
from shoal.machine.lineage import identified
from shoal.runtime.sealing import Seals
from shoal.wire import subjects
from shoal.wire.messages import (
    AnyMessage,
    Command,
    DestroySandboxes,
    FileOp,
    GiveUp,
    ManageFile,
    PreemptSandboxes,
    PrefetchSnapshot,
    Ranges,
    ReadBlob,
    Snapshot,
    StartSandboxes,
    TakeSnapshot,
)
from shoal.wire.quantities import BadValueError
from shoal_executor.core import Asked

_MOST: Final = 2**24
"""An index is below this: a core keeps a bit for each, up to the highest."""
_MOST_ID: Final = 1024
"""Characters of an id that may be remembered before its command comes: a trainer's has 200, and its sandbox's name."""
_LONGEST_MS: Final = 2**53
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_REMEMBERED: Final = 1024
_ByTenants = Asked | GiveUp | ReadBlob
_ByIndices = DestroySandboxes | PreemptSandboxes
_HOST: Final = Snapshot("host", "host")


class Accepting:
    """What may be told to the executor of this name, in a cluster of so many cells and with these seals."""

    def __init__(self, executor: str, cells: int, seals: Seals) -> None:
        self._executor = executor
        self._control = subjects.executor_control(executor)
        self._cells = cells
        self._seals = seals
        self._speaker = lru_cache(_REMEMBERED)(self._checked_speaker)  # most are heard again and again

    def check(self, message: AnyMessage, subject: str) -> None:
        """Raise BadValueError for what nobody could mean, or who sent it may not say."""
        if isinstance(message, _ByTenants):
            self._on(subject, self._speaker(message.cell, message.tenant, message.run))
            if not isinstance(message, ReadBlob):
                _check_asked(message)
            return
        self._on(subject, self._control)
        if isinstance(message, StartSandboxes):
            self._speaker(message.cell, message.tenant, message.run)
            subjects.token(message.rollout, "rollout")
            _check_indices(message.indices)
            n, given = ranges.count(message.indices), len(message.commands)
            if given not in (0, 1, n):
                raise BadValueError("commands", f"{given} for {n} sandboxes; give none, one, or one for each")
        elif isinstance(message, _ByIndices):
            _check_indices(message.indices)
        elif isinstance(message, PrefetchSnapshot):
            check_given(message.snapshot, message.tenant, self._seals)

    def _checked_speaker(self, cell: int, tenant: str, run: str) -> str:
        """Return where a tenant speaks to this executor; raise BadValueError where it could not be answered."""
        subjects.trajectory(cell, tenant, run)
        if cell >= self._cells:
            raise BadValueError("cell", f"{cell} is no cell of this cluster, which has {self._cells}")
        return subjects.executor_command(self._executor, tenant)

    @staticmethod
    def _on(subject: str, right: str) -> None:
        if subject != right:
            raise BadValueError("subject", f"{subject!r} is not where this is said; it is said on {right!r}")


def _check_asked(asked: Asked | GiveUp) -> None:
    if not 0 <= asked.index < _MOST:
        raise BadValueError("index", f"{asked.index} is no index of a sandbox; it is 0 or more, and below {_MOST}")
    if asked.attempt < 0:
        raise BadValueError("attempt", f"{asked.attempt} is no attempt; the first is 0")
    if isinstance(asked, ManageFile) and (asked.op is FileOp.RENAME) != bool(asked.to):
        raise BadValueError("to", "it is the new path of what is renamed: give it for that, and for nothing else")
    if isinstance(asked, GiveUp) and not 0 < len(asked.id) <= _MOST_ID:
        raise BadValueError("id", f"it has {len(asked.id)} characters; a command's has 1 to {_MOST_ID}")
    if isinstance(asked, TakeSnapshot):
        if asked.name:
            subjects.token(asked.name, "name")
        if asked.memory not in ("", "yes", "no"):
            raise BadValueError("memory", f"{asked.memory!r} is no wish; write 'yes', 'no' or nothing")


def _check_indices(indices: Ranges) -> None:
    if not ranges.valid(indices, _MOST):
        right = f"pairs of a first index and how many, ascending and apart, and all below {_MOST}"
        raise BadValueError("indices", f"{indices[:4]} are none; write {right}")


def unfit(command: Command) -> str | None:
    """Return the field of a trainer's command that cannot be used and what would be right, or None."""
    if bool(command.argv) + bool(command.line) + bool(command.python) != 1:
        return "command: it needs either argv, line or python, and only one of them"
    if not 0 <= command.timeout_ms <= _LONGEST_MS:
        return f"timeout_ms: {command.timeout_ms} cannot be used; give 0 for none, or up to {_LONGEST_MS}"
    if command.output_limit < 0:
        return f"output_limit: {command.output_limit} cannot be used; give 0 or more bytes"
    kept = "the session" if command.session else "the interpreter" if command.python else ""
    for field in ("stdin", "user") if kept else ():
        if getattr(command, field):
            return f"{field}: {kept} has its own for all its commands; leave it out"
    return None


def check_snapshot(snapshot: Snapshot) -> None:
    """Raise BadValueError for a snapshot that does not go by what it is made of, or whose parts cannot be any."""
    for blob in snapshot.blobs:
        if not _DIGEST.fullmatch(blob.digest) or blob.size < 0:
            right = "64 hexadecimal digits, and 0 bytes or more"
            raise BadValueError("snapshot.blobs", f"{blob.digest[:80]!r} of {blob.size} bytes is none; it has {right}")
    if not _is_host(snapshot) and identified(snapshot).digest != snapshot.digest:
        raise BadValueError(
            "snapshot.digest",
            f"{snapshot.digest[:80]!r} is not the digest of what the snapshot says; give it unchanged",
        )


def check_given(snapshot: Snapshot, tenant: str, seals: Seals) -> None:
    """Raise BadValueError for a snapshot in a tenant's message that the cluster did not make for this tenant.

    A client's message has all of it. Its digest is what caches go by, and its disks are what the kernel mounts.
    """
    check_snapshot(snapshot)
    if not _is_host(snapshot) and not seals.right(tenant, snapshot):
        which = "has none" if not snapshot.seal else f"has one that is not of this cluster for tenant {tenant!r}"
        raise BadValueError(
            "snapshot.seal",
            f"{snapshot.digest[:12]} {which}; give a snapshot of this tenant's, as cluster.snapshots() lists it now",
        )


def _is_host(snapshot: Snapshot) -> bool:
    """Return whether it is the plain host, which is anybody's."""
    return msgspec.structs.replace(snapshot, seal="") == _HOST
