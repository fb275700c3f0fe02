"""The scheduler's core in its shell, over its cell's log."""

from shoal.runtime.process import Context
from shoal.runtime.shell import Shell
from shoal.wire import streams, subjects
from shoal.wire.quantities import BadValueError
from shoal_scheduler.core.scheduler import SchedulerCore


async def run(context: Context, cell: int, quota: int) -> None:
    """Serve the cell until told to stop. Raises BadValueError for a cell the cluster does not have."""
    if not 0 <= cell < context.cells:
        raise BadValueError("cell", f"{cell} is not one of the cluster's cells, 0 to {context.cells - 1}")
    shell = Shell(
        context.bus,
        SchedulerCore(cell, quota),
        name=f"scheduler.{cell}",
        stream=streams.rollout(cell).name,
        tick_subject=subjects.rollout_system(cell),
    )
    await shell.run(context.stop)
