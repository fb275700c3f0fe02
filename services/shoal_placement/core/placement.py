"""Placement's state machine: reserves, orders starts and ends, drains nodes, declares executors lost.

A reservation lasts from the start order to SlotsReleased of the same boot. What a silent executor held stays reserved
on its nodes, in case the same boot comes back: it is then told to destroy it. What there is no room for waits a moment,
because room that was spoken of is often just being cleared; then it goes back to the scheduler, whose queue it is.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from shoal.machine import ranges
from shoal.machine.core import Cause, Effect, LawBrokenError, Publish
from shoal.machine.ledger import HEDGE
from shoal.wire import messages as m, subjects
from shoal.wire.quantities import BadValueError
from shoal_placement.core.expiries import Expiries
from shoal_placement.core.fleet import Away
from shoal_placement.core.nodes import DumpedExecutor, Executor, demand_of
from shoal_placement.core.placing import Placing
from shoal_placement.core.policies import POLICIES
from shoal_placement.core.records import (
    DumpedRecord,
    Record,
    narrowed,
    of_attempt,
    remaining,
    start_order,
    with_attempt,
)
from shoal_placement.core.roster import SILENCE_MS, Roster
from shoal_placement.core.upgrades import UPGRADES
from shoal_placement.core.waiting import Waiting

_LATE_MS: Final = 1_000
"""A Tick so much after its time says that the log took nothing for a while, or that nobody led."""
_KEPT_MS: Final = 86_400_000  # how long a release that came before its request is remembered
PARKED_MS: Final = 2_000
"""How long what there is no room for waits here: as long as it takes to clear away what has ended."""

LAST_MS: Final = 500
"""So long before its rollout's time is up, what waits here goes back: its scheduler knows then that it never began."""


class State(msgspec.Struct, frozen=True, array_like=True):
    """The whole state. Orders are kept, so that equal states are equal bytes."""

    executors: list[DumpedExecutor]
    joined: int
    boots: list[tuple[str, list[str]]]
    rollouts: list[tuple[str, DumpedRecord]]
    over: dict[str, int]
    waiting: list[tuple[m.PlaceRequested, int]]
    drained: list[str]
    told: m.CellCapacity | None
    wake_ms: int | None
    policy: str
    away: list[tuple[str, Away]]


class PlacementCore(Roster):
    """Places groups on the nodes of one cell. Raises LawBrokenError for messages that make no sense.

    `policy` names how nodes are chosen (`policies`).
    """

    state_version = 6
    upgrades = UPGRADES

    def __init__(self, cell: int, policy: str = "soonest") -> None:
        super().__init__(cell)
        self._chosen = policy
        self._policy = POLICIES[policy]
        self._waiting = Waiting()
        self._over: dict[str, int] = {}  # rollouts that were given up as a whole, and until when that is remembered
        self._expiries = Expiries(self._remembered_until)
        self._wake_ms: int | None = None  # not after anything is due; a Tick that comes too soon sets it right

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        """Fold one message. Raises LawBrokenError, having changed nothing."""
        now = cause.time_ms
        effects: list[Effect] = []
        match message:
            case m.SlotsReleased():
                self._free(message, now, effects)
                self._place_waiting(now, effects)
            case m.PlaceRequested():
                self._request(message, now, effects)
            case m.ReleaseRequested():
                self._release(message, now, effects)
            case m.PreemptRequested():
                self._preempt(message, now, effects)
            case m.ExecutorJoined():
                self._join(message, now, effects)
            case m.ExecutorBeat(executor=name, boot=boot):
                executor = self._executors.get(name)
                if executor is None or executor.boot != boot:
                    self._replaced(name, boot, effects)
                elif executor.alive:
                    self._beat(executor, message, now, effects)
            case m.ExecutorHolds(executor=name, boot=boot, blobs=blobs):
                executor = self._executors.get(name)
                if executor is not None and executor.boot == boot:
                    executor.blobs = dict.fromkeys(blobs)
                    self._fleet.lost(executor)
                    self._fleet.gained(executor)
            case m.PrefetchSnapshot(snapshot=snapshot):
                for executor in self._executors.values():
                    if executor.alive and snapshot.isolation in ("", executor.isolation):
                        executor.will_have(snapshot)
                        self._fleet.gained(executor)
                        effects.append(Publish(subjects.executor_control(executor.name), message))
            case m.ExecutorLeft(executor=name, boot=boot):
                executor = self._executors.get(name)
                if executor is not None and executor.boot == boot:
                    self._lose(executor, "its executor left", effects)
                    self._forget(executor)
                    self._fleet.expect(executor, now)
            case m.NodeDrained():
                self._drain(message, now, effects)
            case m.SettingsChanged(settings=settings):
                new = {**self.settings, **dict(settings)}
                if new.keys() != self.settings.keys() or new["policy"] not in POLICIES:
                    raise LawBrokenError(f"{dict(settings)} are no settings of placement: policy is {list(POLICIES)}")
                self._chosen, self._policy = new["policy"], POLICIES[new["policy"]]
            case m.Tick(due_ms=due):
                self._pass_time(now, effects, late=now - due > _LATE_MS)
            case _:
                raise LawBrokenError(f"placement has no use for {type(message).__name__}")
        self._tell(effects)
        return effects

    @property
    def settings(self) -> Mapping[str, str]:
        """Return by which policy nodes are chosen."""
        return {"policy": self._chosen}

    def wake_at_ms(self) -> int | None:
        """Return when the first executor may count as silent or the first record expire (broker's time, ms)."""
        return self._wake_ms

    def _wake_by(self, when_ms: int) -> None:
        self._wake_ms = when_ms if self._wake_ms is None else min(self._wake_ms, when_ms)

    def outstanding(self) -> Sequence[Effect]:
        """Return nothing: every effect here is a message."""
        return ()

    # --- checkpoints

    def dump(self) -> bytes:
        """Return the whole state; equal states give equal bytes."""
        executors = [executor.dump() for executor in self._executors.values()]
        rollouts = [(name, record.dump()) for name, record in self._rollouts.items()]
        state = State(
            executors, self._fleet.joined, list(self._boots.items()), rollouts, self._over, list(self._waiting),
            list(self._drained), self._told, self._wake_ms, self._chosen, list(self._fleet.away.items()),
        )  # fmt: skip
        return msgspec.msgpack.encode(state)

    def load(self, state: bytes) -> None:
        """Take over a dumped state. Raises ValueError."""
        found = msgspec.msgpack.decode(state, type=State)
        if found.policy not in POLICIES:
            raise ValueError(f"no placement policy is called {found.policy!r}")
        for each in found.executors:
            self._fleet.add(each.load())
        self._fleet.joined = found.joined
        self._fleet.away = dict(found.away)
        self._boots = {name: list(boots) for name, boots in found.boots}
        self._rollouts = {name: record.load() for name, record in found.rollouts}
        self._over = found.over
        self._expiries.begin(self._remembered())
        self._waiting = Waiting(found.waiting)
        self._drained = dict.fromkeys(found.drained)
        self._told = found.told
        self._wake_ms = found.wake_ms
        self._chosen, self._policy = found.policy, POLICIES[found.policy]
        self._fleet_changed = False

    # --- requests

    def _request(self, message: m.PlaceRequested, now: int, effects: list[Effect]) -> None:
        if not message.indices or not ranges.valid(message.indices, message.spec.n):
            raise LawBrokenError(f"indices {message.indices} are not those of a rollout of {message.spec.n}")
        if len(message.spec.commands) not in (0, 1, ranges.count(message.indices)):
            raise LawBrokenError(f"{len(message.spec.commands)} commands for {ranges.count(message.indices)} sandboxes")
        try:
            subjects.rollout_sandbox(message.cell, message.tenant, message.run)
        except BadValueError as error:
            raise LawBrokenError(f"nobody could be told of what is asked for: {error}") from error
        if now >= message.deadline_ms:
            return  # the scheduler ends it; that also lets the record of repeats be dropped at the deadline
        if message.rollout in self._over:
            if message.deadline_ms > self._over[message.rollout]:
                self._over[message.rollout] = message.deadline_ms
                self._expiries.set(message.rollout, message.deadline_ms)
            return
        record = self._record(message.rollout, message.deadline_ms)
        record.tenant, record.run, record.cell = message.tenant, message.run, message.cell
        if message.deadline_ms > record.expires_ms:
            record.expires_ms = message.deadline_ms
            self._expiries.set(message.rollout, message.deadline_ms)
        self._wake_by(record.expires_ms)
        news = ranges.without(message.indices, of_attempt(record.seen, message.attempt))
        record.seen = with_attempt(record.seen, message.attempt, news)
        wanted = ranges.without(news, record.unwanted(message.attempt, news))
        if wanted:
            request = narrowed(message, wanted)
            if message.attempt >= HEDGE:
                request = msgspec.structs.replace(request, avoid=(*request.avoid, *self._nodes_of(request)))
            self._waiting.add(request, now)
            self._place_waiting(now, effects)
            self._return_ending(now, effects)

    def _return_ending(self, now: int, effects: list[Effect]) -> None:
        """Give back what waits of rollouts that will soon be over."""
        for request in self._waiting.take_ending(now + LAST_MS):
            self._give_back(request, "no node had room for it before its rollout's time was up", effects)
        if (first := self._waiting.first_deadline()) is not None:
            self._wake_by(first - LAST_MS)

    def _record(self, rollout: str, expires_ms: int) -> Record:
        """Return what is remembered of a rollout; where that is nothing, it is remembered until then."""
        record = self._rollouts.get(rollout)
        if record is None:
            record = self._rollouts[rollout] = Record(expires_ms)
            self._expiries.set(rollout, expires_ms)
        return record

    def _remembered_until(self, rollout: str) -> int | None:
        if (record := self._rollouts.get(rollout)) is not None:
            return record.expires_ms
        return self._over.get(rollout)

    def _remembered(self) -> list[tuple[str, int]]:
        return [*((name, record.expires_ms) for name, record in self._rollouts.items()), *self._over.items()]

    def _nodes_of(self, hedge: m.PlaceRequested) -> list[str]:
        """Return the nodes on which the sandboxes of a hedge are being started already."""
        group = (hedge.rollout, hedge.attempt - HEDGE)
        return [
            node.spec.node
            for executor in self._where(self._rollouts[hedge.rollout])
            for node in executor.by_number
            if group in node.held and ranges.intersect(node.held[group].indices, hedge.indices)
        ]

    def _where(self, record: Record) -> list[Executor]:
        """Return the executors that may hold sandboxes of a rollout."""
        found = [self._executors[name] for name in record.where if name in self._executors]
        return sorted(found, key=lambda executor: executor.order)

    def _release(self, message: m.ReleaseRequested, now: int, effects: list[Effect]) -> None:
        if message.indices and not ranges.valid(message.indices, 2**31):
            raise LawBrokenError(f"indices {message.indices} are not sorted and disjoint")
        if message.rollout in self._over:
            return
        record = self._record(message.rollout, now + _KEPT_MS)
        self._wake_by(record.expires_ms)
        news = ranges.without(message.indices, record.unwanted(message.attempt, message.indices))
        if message.indices and not news:
            return
        if message.attempt >= 0:
            record.gone_attempts = with_attempt(record.gone_attempts, message.attempt, news)
        elif message.indices:
            record.gone = ranges.union(record.gone, news)
        else:
            self._over[message.rollout] = self._rollouts.pop(message.rollout).expires_ms
        for number, request in self._waiting.of(message.rollout):
            self._waiting.put(number, request, remaining(request, message))
        for executor in self._where(record):
            if executor.alive and executor.holds(message.rollout, message.attempt):  # it passes over what it has not
                destroy = m.DestroySandboxes(
                    executor.boot, message.rollout, message.indices, message.reason, message.attempt
                )
                effects.append(Publish(subjects.executor_control(executor.name), destroy))
        self._place_waiting(now, effects)  # what was at the head of the queue may be gone

    def _preempt(self, message: m.PreemptRequested, now: int, effects: list[Effect]) -> None:
        if not message.indices or not ranges.valid(message.indices, 2**31):
            raise LawBrokenError(f"indices {message.indices} are not sorted and disjoint")
        record = self._rollouts.get(message.rollout)
        if record is None or not record.tenant:
            return
        for number, request in self._waiting.of(message.rollout):
            part = ranges.intersect(request.indices, message.indices) if request.attempt == message.attempt else ()
            if part:
                self._give_back(narrowed(request, part), "it made room for what goes before it", effects)
                left = ranges.without(request.indices, part)
                self._waiting.put(number, request, narrowed(request, left) if left else None)
        group = (message.rollout, message.attempt)
        for executor in self._where(record):
            held = [node.held[group].indices for node in executor.by_number if group in node.held]
            part = ranges.intersect(ranges.collect(i for each in held for i in ranges.indices(each)), message.indices)
            if executor.alive and part:
                order = m.PreemptSandboxes(executor.boot, message.rollout, message.attempt, part, message.how)
                effects.append(Publish(subjects.executor_control(executor.name), order))

    def _pass_time(self, now: int, effects: list[Effect], *, late: bool) -> None:
        for executor in self._executors.values():
            if executor.alive and now > executor.heard_ms + SILENCE_MS:
                if late and not executor.excused:  # its words, too, may have found no room: it is waited for once more
                    executor.heard_ms, executor.excused = now, True
                    continue
                self._lose(executor, f"its executor was silent for {SILENCE_MS // 1000} s", effects)
        for name in self._expiries.due(now):
            if self._over.pop(name, None) is None:
                del self._rollouts[name]
                self._waiting.drop(name)
        self._fleet.give_up(now)
        self._fleet_changed |= bool(self._drained)
        due = [e.heard_ms + SILENCE_MS + 1 for e in self._executors.values() if e.alive]
        if (first := self._expiries.first()) is not None:
            due.append(first)
        self._wake_ms = min(due, default=None)
        self._place_waiting(now, effects)
        self._return_ending(now, effects)

    def _beat(self, executor: Executor, beat: m.ExecutorBeat, now: int, effects: list[Effect]) -> None:
        executor.heard(now)
        queue_ms = executor.busy_until_ms
        executor.learn(beat, now)
        self._fleet.sooner(executor)
        if executor.busy_until_ms < queue_ms and self._waiting:
            self._place_waiting(now, effects)  # some of them wait for just that

    # --- choosing nodes

    def _place_waiting(self, now: int, effects: list[Effect]) -> None:
        """Place what fits, first come first served among those that want the same; give back what waited too long."""
        heads = self._waiting.heads()
        while heads:
            number, request, since = heads.first
            rest, again_ms = self._place(request, now, effects)
            hedge = request.attempt >= HEDGE  # it is being started elsewhere, and has only some of the nodes to go to
            if rest and (hedge or (again_ms is None and now >= since + PARKED_MS)):
                self._give_back(narrowed(request, rest), "there was no room for it after all", effects)
                rest = ()
            if not rest:
                self._waiting.put(number, request, None)
                heads.next()
                continue
            self._waiting.put(number, request, narrowed(request, rest))
            self._wake_by(since + PARKED_MS if again_ms is None else max(again_ms, now + 1))
            heads.leave()  # those behind it came later, and wait for the same

    def _place(self, request: m.PlaceRequested, now: int, effects: list[Effect]) -> tuple[m.Ranges, int | None]:
        """Place what fits of a request; returns the rest, and when a start queue is short enough for more of it."""
        record = self._rollouts[request.rollout]
        placing = Placing(self._fleet, self._policy, request, record, now)
        for executor, node, part in placing.parts:
            if executor.name not in record.where:
                record.where = (*record.where, executor.name)
            executor.will_have(request.snapshot)
            if request.snapshot.blobs:
                self._fleet.gained(executor)
            start = start_order(request, executor, node, part)
            effects.append(Publish(subjects.executor_control(executor.name), start))
        rest = placing.rest
        demand = demand_of(request.spec)
        if rest and (detail := self._fleet.impossible(demand)):
            self._end(record, request.rollout, request.attempt, rest, "", m.EndReason.START_FAILED, detail, effects)
            return (), None
        return rest, placing.again_ms

    def _give_back(self, request: m.PlaceRequested, why: str, effects: list[Effect]) -> None:
        """Return sandboxes to the scheduler's queue; nothing of them was started."""
        record = self._rollouts[request.rollout]
        reason = m.EndReason.PREEMPTED
        self._end(record, request.rollout, request.attempt, request.indices, "", reason, why, effects)

    def check(self) -> None:
        """Assert that no node is over-committed and that every account balances."""
        self._fleet.check()
        self._expiries.check(self._remembered())
        assert all(ranges.count(w.indices) for w, _ in self._waiting)
        assert all(len(w.spec.commands) in (0, 1, ranges.count(w.indices)) for w, _ in self._waiting)
