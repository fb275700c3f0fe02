"""The scheduler's state as bytes, and back. What follows from the rollouts is worked out again."""

from typing import TYPE_CHECKING

import msgspec

from shoal_scheduler.core.pace import Pace
from shoal_scheduler.core.state import DumpedTenant, State

if TYPE_CHECKING:
    from shoal_scheduler.core.scheduler import SchedulerCore


def dump(core: "SchedulerCore") -> bytes:
    """Return the whole state; equal states give equal bytes."""
    books = core.books
    state = State(
        [rollout.dump() for rollout in books.rollouts.values()],
        list(books.waiting),
        list(core.past.items()),
        [(*key, snapshot, when) for key, (snapshot, when) in core.templates.items()],
        [(*key, list(askers)) for key, askers in core.unresolved.items()],
        sorted(books.timers),
        books.rooms.capacity,
        core.orders,
        list(core.known),
        [DumpedTenant(each.name, each.limits, each.starts, each.starts_ms) for each in books.tenants.values()],
        (books.pace.rate, books.pace.as_of_ms, [(*kind, ms) for kind, ms in books.pace.durations.items()]),
        books.gang,
        books.turn,
        books.tell_ms,
        list(books.untold),
        list(books.shut.items()),
        core.suspects.dump(),
    )
    return msgspec.msgpack.encode(state)


def load(core: "SchedulerCore", state: bytes) -> None:
    """Take over a dumped state, into a core that has handled nothing. Raises ValueError."""
    found = msgspec.msgpack.decode(state, type=State)
    books = core.books
    books.rooms.set(found.capacity)
    rate, as_of_ms, durations = found.pace
    books.pace = Pace(rate, as_of_ms, {(tenant, template): ms for tenant, template, ms in durations})
    for each in found.tenants:
        tenant = books.tenant(each.name)
        tenant.limits, tenant.starts, tenant.starts_ms = each.limits, each.starts, each.starts_ms
    for dumped in found.rollouts:
        rollout = dumped.load()
        books.admit(rollout)
        request, want = rollout.request, rollout.want
        if rollout.in_flight:
            books.rooms.give(want, rollout.in_flight)
            books.tenants[request.tenant].give(request.run, want, rollout.in_flight)
    for name, urgent in found.waiting:
        books.waiting.add(books.rollouts[name], urgent=urgent)
    books.timers = list(found.timers)  # sorted, and so a heap
    books.gang = found.gang
    books.turn = found.turn
    books.tell_ms = found.tell_ms
    books.untold = dict.fromkeys(found.untold)
    books.shut = dict(found.shut)
    core.past = dict(found.past)
    core.templates = {(tenant, name): (snapshot, when) for tenant, name, snapshot, when in found.templates}
    core.unresolved = {(tenant, name): dict.fromkeys(askers) for tenant, name, askers in found.unresolved}
    core.orders = found.orders
    core.known = dict.fromkeys(found.known)
    core.suspects.load(found.suspects)
