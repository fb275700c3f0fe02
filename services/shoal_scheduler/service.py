"""The scheduler's cores in their shells: one for each cell's log."""

from shoal.runtime.lease import Owner
from shoal.runtime.process import Context
from shoal.runtime.shell import Shell
from shoal.runtime.spread import Spread, run_together
from shoal.wire import streams, subjects
from shoal_scheduler.core.scheduler import SchedulerCore


async def run(context: Context, quota: int, order: str, what_is_left: bool = False) -> None:
    """Lead this process's share of the cells and stand by for the others, until told to stop."""
    owner = Owner.local()
    spread = Spread(context.bus, "scheduler", owner, context.cells)
    shells = [
        Shell(
            context.bus,
            SchedulerCore(cell, cells=context.cells),
            name=f"scheduler.{cell}",
            stream=streams.rollout(cell).name,
            tick_subject=subjects.rollout_system(cell),
            owner=owner,
            turns=spread,
            settings={"order": order, "quota": str(quota), "message_bytes": str(context.bus.max_payload)},
            what_is_left=what_is_left,
        )
        for cell in range(context.cells)
    ]
    await run_together(shells, spread, context.stop)
