"""The placement's cores in their shells: one for each cell's log."""

from shoal.runtime.lease import Owner
from shoal.runtime.process import Context
from shoal.runtime.shell import Shell
from shoal.runtime.spread import Spread, run_together
from shoal.wire import streams, subjects
from shoal_placement.core.placement import PlacementCore


async def run(context: Context, policy: str, what_is_left: bool = False) -> None:
    """Lead this process's share of the cells and stand by for the others, until told to stop."""
    owner = Owner.local()
    spread = Spread(context.bus, "placement", owner, context.cells)
    shells = [
        Shell(
            context.bus,
            PlacementCore(cell),
            name=f"placement.{cell}",
            stream=streams.placement(cell).name,
            tick_subject=subjects.placement_tick(cell),
            owner=owner,
            turns=spread,
            settings={"policy": policy},
            what_is_left=what_is_left,
        )
        for cell in range(context.cells)
    ]
    await run_together(shells, spread, context.stop)
