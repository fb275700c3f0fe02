"""What was asked for and what became of it, as a recording has it: demand to be tried again, and the course it took.

A sandbox is busy from when it is ready until its command is done or its trainer lets it go. Where only the result was
reported, it was ready as long before it as its command ran. A machine's pace is the best its executor said of it; how
long orders took is kept as it was seen, to be drawn from.
"""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import Final

from shoal.archive.source import ArchiveError, History, merged
from shoal.bus.protocol import Delivery
from shoal.machine import ranges
from shoal.machine.core import cause_of
from shoal.replay.course import Course, Rejected, Seen
from shoal.replay.demand import Demand, Group, Machine
from shoal.replay.rebuilding import cells_of
from shoal.replay.simulating import plain
from shoal.wire import messages as m, streams
from shoal.wire.codec import UndecodableError, decode

_ORDERS: Final = 512
_STARTED: Final = 8
"""Starts between two beats from which a pace can be told."""
_HOPS: Final = 4096
_TELL_EVERY: Final = 4096


@dataclass(slots=True)
class _Rollout:
    cell: int
    request: m.RolloutSubmitted
    seen: Seen
    codes: dict[int, int] = field(default_factory=dict)
    cancelled_ms: int = -1


@dataclass(slots=True)
class _Executor:
    cell: int
    joined: m.ExecutorJoined
    from_ms: int
    until_ms: int = -1
    started: int = 0
    busy_ms: int = 0
    start_ms: float = 0.0  # the best pace between two beats
    orders: dict[tuple[str, int, int], list[int]] = field(default_factory=dict)
    """By rollout, attempt and first sandbox of each order: when it came, and after how long each was ready."""
    of: dict[tuple[str, int, int], tuple[str, int, int]] = field(default_factory=dict)
    """Of each sandbox (rollout, attempt, index) its order."""

    def beat(self, started: int, busy_ms: int) -> None:
        count, took = started - self.started, busy_ms - self.busy_ms
        if count >= _STARTED and took > 0:
            self.start_ms = min(self.start_ms or took / count, took / count)
        self.started, self.busy_ms = started, busy_ms


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording, as far as it is of use: what to ask again, and how it went."""

    demand: Demand
    course: Course


class _Reading:
    def __init__(self, cells: int) -> None:
        self.cells = cells
        self.began_ms = -1
        self.rollouts: dict[str, _Rollout] = {}
        self.rejected: dict[str, Rejected] = {}
        self.executors: dict[str, _Executor] = {}
        self.told: list[tuple[int, str, m.AnyMessage]] = []
        self.snapshots: dict[tuple[str, str], m.Snapshot] = {}
        self.settings: dict[str, dict[str, str]] = {}
        self._times: dict[tuple[str, int], int] = {}
        self.hops: list[int] = []

    def hear(self, stream: str, delivery: Delivery) -> None:
        """Take in one message."""
        try:
            message = decode(delivery.payload)
        except UndecodableError:
            return
        if self.began_ms < 0:
            self.began_ms = delivery.time_ms
        now, cell = delivery.time_ms - self.began_ms, _cell(stream)
        self._hop(stream, delivery)
        match message:
            case m.RolloutSubmitted():
                if message.rollout not in self.rollouts:
                    seen = Seen(now, message.tenant, message.spec.n)
                    self.rollouts[message.rollout] = _Rollout(cell, message, seen)
            case m.RolloutCancelled(rollout=name):
                rollout = self.rollouts.get(name)
                if rollout is not None and rollout.cancelled_ms < 0:
                    rollout.cancelled_ms = now - rollout.seen.at_ms
            case m.RolloutRejected(rollout=name, detail=why):
                if (rollout := self.rollouts.pop(name, None)) is not None:
                    self.rejected[name] = Rejected(rollout.seen.n, why)
            case m.StartSandboxes():
                self._ordered(stream, message, now)
            case m.SandboxesReady():
                self._ready(message, now)
            case m.SandboxesFinished():
                self._finished(message, now)
            case m.RolloutReleased(rollout=name, indices=indices) | m.SandboxesEnded(rollout=name, indices=indices):
                if not (isinstance(message, m.SandboxesEnded) and message.reason.lost):
                    self._done(name, indices, now)
            case m.RolloutConcluded(rollout=name):
                self._done(name, (), now)
            case m.ExecutorJoined(executor=name):
                known = self.executors.get(name)
                if known is None or known.joined.boot != message.boot:
                    self.executors[name] = _Executor(cell, message, now if known is None else known.from_ms)
            case m.ExecutorBeat(executor=name, started=started, busy_ms=busy_ms):
                if name in self.executors:
                    self.executors[name].beat(started, busy_ms)
            case m.ExecutorLeft(executor=name):
                if name in self.executors:
                    self.executors[name].until_ms = now
            case m.TenantAdded() | m.TenantRemoved() | m.TenantLimited():
                if not cell:
                    self.told.append((now, "scheduler", message))
            case m.NodeDrained():
                if not cell:
                    self.told.append((now, "placement", message))
            case m.SettingsChanged(settings=settings):
                service = "scheduler" if stream.startswith("SHOAL_ROLLOUT") else "placement"
                self.settings[service] = dict(settings)
            case m.TemplateResolved(tenant=tenant, template=template, snapshot=snapshot):
                if snapshot is not None:
                    self.snapshots[tenant, template] = snapshot

    def _hop(self, stream: str, delivery: Delivery) -> None:
        """Note how long a message took that follows from another one."""
        if len(self.hops) < _HOPS:
            cause = cause_of(delivery.id)
            caused_ms = self._times.get(cause[:2]) if cause is not None else None
            if caused_ms is not None:
                self.hops.append(max(delivery.time_ms - caused_ms, 0))
            self._times[stream, delivery.sequence] = delivery.time_ms

    def _ordered(self, stream: str, order: m.StartSandboxes, now: int) -> None:
        executor = self.executors.get(stream.removeprefix("SHOAL_EXECUTOR_"))
        if executor is not None and len(executor.orders) < _ORDERS:
            key = (order.rollout, order.attempt, order.indices[0][0])
            executor.orders.setdefault(key, [now])
            for index in ranges.indices(order.indices):
                executor.of.setdefault((order.rollout, order.attempt, index), key)

    def _ready(self, message: m.SandboxesReady, now: int) -> None:
        for index in ranges.indices(message.indices):
            self._took(message.executor, (message.rollout, message.attempt, index), now)
        rollout = self.rollouts.get(message.rollout)
        for index in ranges.indices(message.indices) if rollout is not None else ():
            assert rollout is not None
            rollout.seen.ready.setdefault(index, now)

    def _took(self, executor: str, sandbox: tuple[str, int, int], ready_ms: int) -> None:
        """Note after how long a sandbox of an order was ready."""
        known = self.executors.get(executor)
        order = known.of.pop(sandbox, None) if known is not None else None
        if known is not None and order is not None:
            known.orders[order].append(max(ready_ms - known.orders[order][0], 0))

    def _finished(self, message: m.SandboxesFinished, now: int) -> None:
        rollout = self.rollouts.get(message.rollout)
        if rollout is None:
            return
        for each in message.results:
            sandbox = (message.rollout, message.attempt, each.index)
            self._took(message.executor, sandbox, now - each.run_us // 1000)
            rollout.seen.ready.setdefault(each.index, max(now - each.run_us // 1000, rollout.seen.at_ms))
            rollout.seen.done.setdefault(each.index, now)
            if each.result.exit_code:
                rollout.codes[each.index] = each.result.exit_code

    def _done(self, name: str, indices: m.Ranges, now: int) -> None:
        rollout = self.rollouts.get(name)
        if rollout is not None:
            for index in ranges.indices(indices or ranges.whole(rollout.seen.n)):
                rollout.seen.done.setdefault(index, now)

    # --- what it comes to

    def recording(self, ended_ms: int) -> Recording:
        hop_ms = median_low(self.hops) if self.hops else 1
        groups = tuple(self._group(name, each, ended_ms) for name, each in self.rollouts.items())
        machines = tuple(self._machine(each, hop_ms) for each in self.executors.values())
        demand = Demand(
            groups, machines, self.cells, self.began_ms, hop_ms, tuple(self.told), self.snapshots, self.settings
        )
        seen = {name: each.seen for name, each in self.rollouts.items()}
        return Recording(demand, Course(demand.slots, seen, self.rejected))

    @staticmethod
    def _group(name: str, rollout: _Rollout, ended_ms: int) -> Group:
        request, seen = rollout.request, rollout.seen
        used = [seen.done.get(i, ended_ms) - at for i, at in seen.ready.items()]
        usual = median_low(used) if used else 0  # of one that was never ready: as long as the others of its group
        busy = tuple(
            max(seen.done.get(i, ended_ms) - seen.ready[i], 0) if i in seen.ready else usual for i in range(seen.n)
        )
        spec = plain(request.spec, job=bool(request.spec.commands))
        return Group(
            seen.at_ms, name, request.tenant, request.run, rollout.cell, spec, busy, tuple(rollout.codes.items()),
            rollout.cancelled_ms,
        )  # fmt: skip

    @staticmethod
    def _machine(executor: _Executor, hop_ms: int) -> Machine:
        joined = executor.joined
        # A report took a hop after its sandbox was ready.
        seen = [tuple(sorted(max(ms - hop_ms, 0) for ms in took)) for _, *took in executor.orders.values() if took]
        return Machine(
            joined.executor, executor.cell, joined.isolation, joined.nodes, joined.starts_per_s,
            executor.start_ms or 1000 / joined.starts_per_s, tuple(sorted(seen, key=len)) or ((0,),),
            from_ms=executor.from_ms, until_ms=executor.until_ms,
        )  # fmt: skip


def _cell(stream: str) -> int:
    kind, _, cell = stream.removeprefix("SHOAL_").partition("_")
    return int(cell) if kind in ("ROLLOUT", "PLACEMENT") else 0


async def read(
    history: History,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    tell: Callable[[int], None] = lambda _: None,
) -> Recording:
    """Return what a history says was asked and done between two moments. Raises ArchiveError where that is nothing."""
    cells = await cells_of(history)
    wanted = ("SHOAL_ROLLOUT_", "SHOAL_PLACEMENT_", "SHOAL_EXECUTOR_", streams.snapshot().name)
    names = [name for name in await history.streams() if name.startswith(wanted)]
    reading, last_ms, count = _Reading(cells), 0, 0
    async with aclosing(merged(history, names, since_ms=since_ms, until_ms=until_ms)) as messages:
        async for stream, delivery in messages:
            reading.hear(stream, delivery)
            last_ms, count = delivery.time_ms, count + 1
            if not count % _TELL_EVERY:
                tell(count)
    if not reading.rollouts or not reading.executors:
        what = "no rollout was submitted" if not reading.rollouts else "no executor is heard of"
        raise ArchiveError(f"nothing can be tried again of it: {what} in that time")
    found = reading.recording(last_ms - reading.began_ms)
    first = min(group.at_ms for group in found.demand.groups)
    # What there was before the first rollout was there from the beginning.
    machines = tuple(replace(each, from_ms=0) if each.from_ms <= first else each for each in found.demand.machines)
    return Recording(replace(found.demand, machines=machines), found.course)
