"""The scheduler, as replay knows it."""

from typing import Final

from shoal.machine import ranges
from shoal.machine.ledger import Ledger
from shoal.machine.service import Service, Table
from shoal.wire import streams
from shoal_scheduler.core.checkpoint import State
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_scheduler.core.state import DumpedRollout


def _rollout(dumped: DumpedRollout) -> tuple[object, ...]:
    request, ledger = dumped.request, Ledger.load(dumped.request.spec, dumped.ledger)
    rollout = dumped.load()
    ended = ", ".join(f"{count} {reason}" for reason, count in ledger.counts())
    return (
        request.rollout, request.tenant, request.run, request.spec.template, request.spec.n, rollout.unsent,
        rollout.in_flight, ledger.ready_count(), ledger.asleep_count(), ended or "-", dumped.queued[0] or "-",
    )  # fmt: skip


def summary(state: State) -> list[Table]:
    """Return the rollouts, the tenants and the room."""
    own = [each for each in state.rollouts if each.guest is None]
    guests = [each for each in state.rollouts if each.guest is not None]
    columns = (
        "rollout", "tenant", "run", "template", "n", "waiting", "in flight", "ready", "asleep", "ended", "waits for",
    )  # fmt: skip
    tenants = [(each.name, each.limits.weight, each.limits.sandboxes or "-", each.part[0]) for each in state.tenants]
    lent = [(each.guest, each.request.tenant, each.request.spec.n, ranges.count(each.fresh)) for each in guests]
    pools = [
        (pool.isolation, ", ".join(f"{k}={v}" for k, v in pool.labels) or "-", pool.nodes, pool.total.slots)
        for pool in state.capacity.pools
    ]
    return [
        Table("rollouts", columns, [_rollout(each) for each in own]),
        Table("tenants", ("tenant", "weight", "quota", "this cell's part"), tenants),
        Table("room", ("isolation", "labels", "nodes", "slots"), pools),
        *([Table("lent to other cells", ("cell, ask", "tenant", "tickets", "waiting"), lent)] if lent else []),
        Table("settings", ("name", "value"), state.settings),
    ]


SERVICE: Final = Service(
    "scheduler", True, lambda cell: streams.rollout(cell).name, lambda cell, cells: SchedulerCore(cell, cells=cells),
    State, summary,
)  # fmt: skip
