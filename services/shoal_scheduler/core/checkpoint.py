"""The scheduler's state as bytes, and back. What follows from the rollouts is worked out again."""

from typing import TYPE_CHECKING

import msgspec

from shoal.wire import messages as m
from shoal_scheduler.core.borrowing import DumpedAsk
from shoal_scheduler.core.pace import Pace
from shoal_scheduler.core.quotas import DumpedExchange
from shoal_scheduler.core.room import Want
from shoal_scheduler.core.state import DumpedRollout
from shoal_scheduler.core.waiting import Key

if TYPE_CHECKING:
    from shoal_scheduler.core.scheduler import SchedulerCore


class DumpedTenant(msgspec.Struct, frozen=True, array_like=True):
    """A tenant in a checkpoint; what it uses follows from its rollouts."""

    name: str
    limits: m.Limits
    part: list[int]
    base: tuple[int, int, int, int]
    version: int
    starts: float
    starts_ms: int
    hungry: list[m.QuotaWanted]
    asked: tuple[tuple[int, int, int, int], int]
    lent_ms: int
    vain_ms: int


class State(msgspec.Struct, frozen=True, array_like=True):
    """The scheduler's whole state. Orders are kept, so that equal states are equal bytes."""

    rollouts: list[DumpedRollout]
    waiting: list[tuple[str, bool]]
    past: dict[str, int]
    early: list[tuple[str, int, m.Ranges]]
    templates: list[tuple[str, str, m.Snapshot, int]]
    unresolved: list[tuple[str, str, list[str]]]
    timers: list[tuple[int, str, str]]
    capacity: m.CellCapacity
    orders: int
    known: list[str]
    tenants: list[DumpedTenant]
    pace: tuple[float, int, list[tuple[str, str, float]]]
    gang: tuple[str, int]
    turn: str
    tell_ms: int
    untold: list[str]
    shut: list[tuple[Want, int]]
    suspects: list[tuple[str, str, list[str], int, str]]
    borrowing: tuple[list[DumpedAsk], list[tuple[int, int]], list[tuple[Key, int]]]
    quotas: DumpedExchange
    settings: list[tuple[str, str]]


def dump(core: "SchedulerCore") -> bytes:
    """Return the whole state; equal states give equal bytes."""
    books = core.books
    state = State(
        [rollout.dump() for rollout in books.rollouts.values()],
        list(books.waiting),
        core.past,
        [(name, *each) for name, each in core.early.items()],
        [(*key, snapshot, when) for key, (snapshot, when) in core.templates.items()],
        [(*key, list(askers)) for key, askers in core.unresolved.items()],
        sorted(books.timers),
        books.rooms.capacity,
        core.orders,
        list(core.known),
        [
            DumpedTenant(
                each.name, each.limits, each.part, each.base, each.version, each.starts, each.starts_ms,
                list(each.hungry.values()), each.asked, each.lent_ms, each.vain_ms,
            )
            for each in books.tenants.values()
        ],
        (books.pace.rate, books.pace.as_of_ms, [(*kind, ms) for kind, ms in books.pace.durations.items()]),
        books.gang,
        books.turn,
        books.tell_ms,
        list(books.untold),
        list(books.shut.items()),
        core.suspects.dump(),
        books.borrowing.dump(),
        core.exchange.dump(),
        sorted(core.settings.items()),
    )  # fmt: skip
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
        tenant.limit(each.limits, each.base, each.version)
        tenant.part, tenant.starts, tenant.starts_ms = list(each.part), each.starts, each.starts_ms
        tenant.hungry, tenant.asked = {hungry.cell: hungry for hungry in each.hungry}, each.asked
        tenant.lent_ms, tenant.vain_ms = each.lent_ms, each.vain_ms
    for dumped in found.rollouts:
        rollout = dumped.load()
        books.admit(rollout)
        books.count(rollout, rollout.in_flight, rollout.here)
    for name, urgent in found.waiting:
        books.waiting.add(books.rollouts[name], urgent=urgent)
    books.set_timers(found.timers)
    books.gang = found.gang
    books.turn = found.turn
    books.tell_ms = found.tell_ms
    books.untold = dict.fromkeys(found.untold)
    books.shut = dict(found.shut)
    core.past = found.past
    core.early = {name: (until_ms, tickets) for name, until_ms, tickets in found.early}
    core.templates = {(tenant, name): (snapshot, when) for tenant, name, snapshot, when in found.templates}
    core.unresolved = {(tenant, name): dict.fromkeys(askers) for tenant, name, askers in found.unresolved}
    core.orders = found.orders
    core.known = dict.fromkeys(found.known)
    core.suspects.load(found.suspects)
    books.borrowing.load(found.borrowing)
    core.exchange.load(found.quotas)
    core.go_by(dict(found.settings))
