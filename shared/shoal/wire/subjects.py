"""Subjects, built from checked tokens. Nobody writes a subject by hand."""

import re
import zlib
from typing import Final

from shoal.wire.quantities import BadValueError

_TOKEN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,63}")
_STREAM: Final = re.compile(r"SHOAL_[A-Z]+(_[A-Za-z0-9_\-]{1,64})?")  # one that ends in a token is longer than a token
SYSTEM: Final = "_"
"""Stands for tenant and run in messages of the system to itself; no tenant can be named so."""


def token(value: str, field: str) -> str:
    """Return value if it can be one token of a subject. Raises BadValueError naming the field otherwise."""
    if not _TOKEN.fullmatch(value):
        raise BadValueError(
            field,
            f"{value!r} cannot be used; write 1 to 64 letters, digits, '-' or '_', beginning with a letter or digit",
        )
    return value


def _owner(value: str, field: str) -> str:
    return SYSTEM if value == SYSTEM else token(value, field)


def _cell(cell: int) -> str:
    if not 0 <= cell < 10_000:
        raise BadValueError("cell", f"{cell} is not a cell number from 0 to 9999")
    return str(cell)


def cell_of(rollout: str, cells: int) -> int:
    """Return the cell that owns a rollout: a stable hash of its id over the number of cells."""
    return zlib.crc32(rollout.encode()) % cells


def rollout_request(cell: int, tenant: str, run: str) -> str:
    """Return the subject for what a trainer asks."""
    return f"shoal.rollout.{_cell(cell)}.{token(tenant, 'tenant')}.{token(run, 'run')}.request"


def rollout_sandbox(cell: int, tenant: str, run: str) -> str:
    """Return the subject for what executors and placement report of sandboxes."""
    return f"shoal.rollout.{_cell(cell)}.{token(tenant, 'tenant')}.{token(run, 'run')}.sandbox"


def rollout_outcome(cell: int, tenant: str, run: str) -> str:
    """Return the subject for what the scheduler decides."""
    return f"shoal.rollout.{_cell(cell)}.{token(tenant, 'tenant')}.{token(run, 'run')}.outcome"


def rollout_system(cell: int) -> str:
    """Return the subject for what the system tells a scheduler: templates, capacity, ticks."""
    return f"shoal.rollout.{_cell(cell)}.{SYSTEM}.{SYSTEM}.system"


def rollout_filter(cell: int, tenant: str = "*", run: str = "*", kind: str = "*") -> str:
    """Return the filter for a part of a cell's rollout log; `*` stands for any."""
    parts = [
        value if value == "*" else token(value, name)
        for value, name in ((tenant, "tenant"), (run, "run"), (kind, "kind"))
    ]
    return f"shoal.rollout.{_cell(cell)}." + ".".join(parts)


def placement_request(cell: int) -> str:
    """Return the subject for what a scheduler wants placed or released."""
    return f"shoal.placement.{_cell(cell)}.request"


def placement_prefetch(cell: int, tenant: str) -> str:
    """Return the subject for what a client wants fetched ahead."""
    return f"shoal.placement.{_cell(cell)}.{token(tenant, 'tenant')}.prefetch"


def placement_node(cell: int) -> str:
    """Return the subject for what executors say of their nodes."""
    return f"shoal.placement.{_cell(cell)}.node"


def placement_release(cell: int) -> str:
    """Return the subject for slots that became free."""
    return f"shoal.placement.{_cell(cell)}.release"


def placement_tick(cell: int) -> str:
    """Return the subject for passing time."""
    return f"shoal.placement.{_cell(cell)}.tick"


def executor_control(executor: str) -> str:
    """Return the subject for what an executor is told by the system."""
    return f"shoal.executor.{token(executor, 'executor')}.control"


def executor_command(executor: str, tenant: str) -> str:
    """Return the subject for a trainer's commands to sandboxes of one executor."""
    return f"shoal.executor.{token(executor, 'executor')}.{token(tenant, 'tenant')}.command"


def trajectory(cell: int, tenant: str, run: str) -> str:
    """Return the subject for a run's commands and their results."""
    return f"shoal.trajectory.{_cell(cell)}.{token(tenant, 'tenant')}.{token(run, 'run')}"


def blob(cell: int, tenant: str, run: str) -> str:
    """Return the subject for pieces of blobs that a run's trainers asked for."""
    return f"shoal.blob.{_cell(cell)}.{token(tenant, 'tenant')}.{token(run, 'run')}"


def snapshot(tenant: str, kind: str) -> str:
    """Return the subject for the snapshot catalogue; kind is request, answer, progress, added, held or such."""
    return f"shoal.snapshot.{_owner(tenant, 'tenant')}.{token(kind, 'kind')}"


def dead(stream: str) -> str:
    """Return the subject for messages of a stream that nobody could use."""
    if not _STREAM.fullmatch(stream):
        raise BadValueError("stream", f"{stream!r} is not the name of a stream")
    return f"shoal.dead.{stream}"
