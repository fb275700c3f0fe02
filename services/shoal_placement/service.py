"""The placement's core in its shell, over its cell's log."""

from shoal.runtime.process import Context
from shoal.runtime.shell import Shell
from shoal.wire import streams, subjects
from shoal.wire.quantities import BadValueError
from shoal_placement.core.placement import PlacementCore


async def run(context: Context, cell: int) -> None:
    """Serve the cell until told to stop. Raises BadValueError for a cell the cluster does not have."""
    if not 0 <= cell < context.cells:
        raise BadValueError("cell", f"{cell} is not one of the cluster's cells, 0 to {context.cells - 1}")
    shell = Shell(
        context.bus,
        PlacementCore(cell),
        name=f"placement.{cell}",
        stream=streams.placement(cell).name,
        tick_subject=subjects.placement_tick(cell),
    )
    await shell.run(context.stop)
