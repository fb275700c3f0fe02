"""Placement's state machine: reserves, orders starts and ends, declares executors lost.

A reservation lasts from the start order to SlotsReleased of the same boot. What a silent executor held stays reserved
on its nodes, in case the same boot comes back: it is then told to destroy it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from shoal.machine import ranges
from shoal.machine.core import Cause, Effect, LawBrokenError, Publish
from shoal.wire import messages as m
from shoal.wire import subjects
from shoal_placement.core.fleet import DumpedExecutor, Executor, Node, shares

SILENCE_MS: Final = 10_000
_LATE_MS: Final = 1_000
"""A Tick so much after its time says that the log took nothing for a while, or that nobody led."""
_KEPT_MS: Final = 86_400_000  # how long a release that came before its request is remembered
_BOOTS_KEPT: Final = 16


@dataclass(slots=True)
class _Rollout:
    expires_ms: int
    tenant: str = ""
    run: str = ""
    cell: int = 0
    seen: dict[int, m.Ranges] = field(default_factory=dict)
    gone: m.Ranges = ()
    all_gone: bool = False


class _State(msgspec.Struct, frozen=True, array_like=True):
    """The whole state. Orders are kept, so that equal states are equal bytes."""

    executors: list[DumpedExecutor]
    boots: list[tuple[str, list[str]]]
    rollouts: list[tuple[str, int, str, str, int, list[tuple[int, m.Ranges]], m.Ranges, bool]]
    waiting: list[m.PlaceRequested]
    told: m.CellCapacity | None
    wake_ms: int | None


class PlacementCore:
    """Places groups on the nodes of one cell. Raises LawBrokenError for messages that make no sense."""

    state_version = 2

    def __init__(self, cell: int) -> None:
        self._cell = cell
        self._executors: dict[str, Executor] = {}
        self._boots: dict[str, list[str]] = {}  # past boots, whose late messages mean nothing
        self._rollouts: dict[str, _Rollout] = {}
        self._waiting: list[m.PlaceRequested] = []
        self._told: m.CellCapacity | None = None
        self._fleet_changed = True
        self._wake_ms: int | None = None  # not after anything is due; a Tick that comes too soon sets it right

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        """Fold one message. Raises LawBrokenError, having changed nothing."""
        now = cause.time_ms
        effects: list[Effect] = []
        match message:
            case m.PlaceRequested():
                self._request(message, now, effects)
            case m.ReleaseRequested():
                self._release(message, now, effects)
            case m.ExecutorJoined():
                self._join(message, now, effects)
            case m.ExecutorBeat(executor=name, boot=boot):
                executor = self._executors.get(name)
                if executor is not None and executor.boot == boot and executor.alive:
                    executor.heard(now)
            case m.ExecutorHolds(executor=name, boot=boot, blobs=blobs):
                executor = self._executors.get(name)
                if executor is not None and executor.boot == boot:
                    executor.blobs = dict.fromkeys(blobs)
            case m.PrefetchSnapshot(snapshot=snapshot):
                for executor in self._executors.values():
                    if executor.alive and snapshot.isolation in ("", executor.isolation):
                        executor.will_have(snapshot)
                        effects.append(Publish(subjects.executor_control(executor.name), message))
            case m.ExecutorLeft(executor=name, boot=boot):
                executor = self._executors.get(name)
                if executor is not None and executor.boot == boot:
                    self._lose(executor, "its executor left", effects)
                    self._forget(executor)
            case m.SlotsReleased():
                self._free(message)
                self._place_waiting(now, effects)
            case m.Tick(due_ms=due):
                self._pass_time(now, effects, late=now - due > _LATE_MS)
            case _:
                raise LawBrokenError(f"placement has no use for {type(message).__name__}")
        self._tell(effects)
        return effects

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
        rollouts = [
            (name, r.expires_ms, r.tenant, r.run, r.cell, list(r.seen.items()), r.gone, r.all_gone)
            for name, r in self._rollouts.items()
        ]
        executors = [executor.dump() for executor in self._executors.values()]
        boots = list(self._boots.items())
        return msgspec.msgpack.encode(_State(executors, boots, rollouts, self._waiting, self._told, self._wake_ms))

    def load(self, state: bytes) -> None:
        """Take over a dumped state. Raises ValueError."""
        found = msgspec.msgpack.decode(state, type=_State)
        self._executors = {each.name: each.load() for each in found.executors}
        self._boots = {name: list(boots) for name, boots in found.boots}
        self._rollouts = {
            name: _Rollout(expires_ms, tenant, run, cell, dict(seen), gone, all_gone)
            for name, expires_ms, tenant, run, cell, seen, gone, all_gone in found.rollouts
        }
        self._waiting = list(found.waiting)
        self._told = found.told
        self._wake_ms = found.wake_ms
        self._fleet_changed = False

    # --- requests

    def _request(self, message: m.PlaceRequested, now: int, effects: list[Effect]) -> None:
        if message.cell != self._cell:
            raise LawBrokenError(f"a request for cell {message.cell} reached cell {self._cell}")
        if not message.indices or not ranges.valid(message.indices, message.spec.n):
            raise LawBrokenError(f"indices {message.indices} are not those of a rollout of {message.spec.n}")
        if len(message.spec.commands) not in (0, 1, ranges.count(message.indices)):
            raise LawBrokenError(f"{len(message.spec.commands)} commands for {ranges.count(message.indices)} sandboxes")
        if now >= message.deadline_ms:
            return  # the scheduler ends it; that also lets the record of repeats be dropped at the deadline
        record = self._rollouts.setdefault(message.rollout, _Rollout(message.deadline_ms))
        record.tenant, record.run, record.cell = message.tenant, message.run, message.cell
        record.expires_ms = max(record.expires_ms, message.deadline_ms)
        self._wake_by(record.expires_ms)
        seen = record.seen.get(message.attempt, ())
        news = ranges.without(message.indices, seen)
        record.seen[message.attempt] = ranges.union(seen, news)
        wanted = () if record.all_gone else ranges.without(news, record.gone)
        if wanted:
            self._waiting.append(_narrowed(message, wanted))
            self._place_waiting(now, effects)

    def _release(self, message: m.ReleaseRequested, now: int, effects: list[Effect]) -> None:
        if message.indices and not ranges.valid(message.indices, 2**31):
            raise LawBrokenError(f"indices {message.indices} are not sorted and disjoint")
        record = self._rollouts.setdefault(message.rollout, _Rollout(now + _KEPT_MS))
        self._wake_by(record.expires_ms)
        news = ranges.without(message.indices, record.gone)
        if record.all_gone or (message.indices and not news):
            return
        if message.indices:
            record.gone = ranges.union(record.gone, news)
        else:
            record.all_gone = True
        self._waiting = [kept for w in self._waiting if (kept := _remaining(w, message.rollout, message.indices))]
        for executor in self._executors.values():
            if executor.alive and message.rollout in executor.held:  # it passes over those it does not have
                destroy = m.DestroySandboxes(executor.boot, message.rollout, message.indices, message.reason)
                effects.append(Publish(subjects.executor_control(executor.name), destroy))
        self._place_waiting(now, effects)  # what was at the head of the queue may be gone

    # --- executors

    def _join(self, message: m.ExecutorJoined, now: int, effects: list[Effect]) -> None:
        names = [node.node for node in message.nodes]
        if len(dict.fromkeys(names)) != len(names) or not message.starts_per_s > 0:
            raise LawBrokenError("an executor names each node once and starts more than none a second")
        if any(node.slots < 0 or node.memory < 0 for node in message.nodes):
            raise LawBrokenError("a node has no fewer than 0 slots and bytes")
        subjects.executor_control(message.executor)
        known = self._executors.get(message.executor)
        if known is not None and known.boot == message.boot:
            known.heard(now)
            if not known.alive:
                known.alive = True
                self._fleet_changed = True
                self._wake_by(now + SILENCE_MS + 1)
                for node in known.nodes.values():
                    for (rollout, _), (held, _) in node.held.items():
                        destroy = m.DestroySandboxes(known.boot, rollout, held, m.EndReason.NODE_LOST)
                        effects.append(Publish(subjects.executor_control(known.name), destroy))
                self._place_waiting(now, effects)
            return
        if message.boot in self._boots.get(message.executor, ()):
            return
        if known is not None:
            self._lose(known, "its executor restarted", effects)
            self._forget(known)
        nodes = {spec.node: Node(spec, number, spec.slots, spec.memory) for number, spec in enumerate(message.nodes)}
        pace_ms = 1000 / message.starts_per_s
        self._executors[message.executor] = Executor(
            message.executor, message.boot, message.isolation, pace_ms, now, nodes
        )
        self._fleet_changed = True
        self._wake_by(now + SILENCE_MS + 1)
        self._place_waiting(now, effects)

    def _lose(self, executor: Executor, why: str, effects: list[Effect]) -> None:
        if not executor.alive:
            return
        executor.alive = False
        self._fleet_changed = True
        for node in executor.nodes.values():
            for (rollout, attempt), (held, _) in node.held.items():
                record = self._rollouts.get(rollout)
                if record is not None and record.tenant:  # else its time was up, and the scheduler has ended it
                    self._end(record, rollout, attempt, held, node.spec.node, m.EndReason.NODE_LOST, why, effects)

    def _forget(self, executor: Executor) -> None:
        del self._executors[executor.name]
        past = self._boots.setdefault(executor.name, [])
        past.append(executor.boot)
        del past[:-_BOOTS_KEPT]

    def _free(self, message: m.SlotsReleased) -> None:
        if not ranges.valid(message.indices, 2**31):
            raise LawBrokenError(f"indices {message.indices} are not sorted and disjoint")
        executor = self._executors.get(message.executor)
        node = executor.nodes.get(message.node) if executor and executor.boot == message.boot else None
        if executor is not None and node is not None:
            executor.release(node, (message.rollout, message.attempt), message.indices)

    def _pass_time(self, now: int, effects: list[Effect], *, late: bool) -> None:
        for executor in self._executors.values():
            if executor.alive and now > executor.heard_ms + SILENCE_MS:
                if late and not executor.excused:  # its words, too, may have found no room: it is waited for once more
                    executor.heard_ms, executor.excused = now, True
                    continue
                self._lose(executor, f"its executor was silent for {SILENCE_MS // 1000} s", effects)
        expired = [name for name, record in self._rollouts.items() if now >= record.expires_ms]
        for name in expired:
            del self._rollouts[name]
        if expired:
            self._waiting = [w for w in self._waiting if w.rollout in self._rollouts]
            self._place_waiting(now, effects)
        silent = [e.heard_ms + SILENCE_MS + 1 for e in self._executors.values() if e.alive]
        self._wake_ms = min([*silent, *(record.expires_ms for record in self._rollouts.values())], default=None)

    # --- choosing nodes

    def _place_waiting(self, now: int, effects: list[Effect]) -> None:
        """Place what fits, first come first served among those that want the same isolation."""
        if not self._waiting:
            return
        blocked: dict[str, None] = {}
        left: list[m.PlaceRequested] = []
        for request in self._waiting:
            isolation = request.spec.isolation
            rest = request.indices if "" in blocked or isolation in blocked else self._place(request, now, effects)
            if rest:
                blocked[isolation] = None
                left.append(_narrowed(request, rest))
        self._waiting = left

    def _place(self, request: m.PlaceRequested, now: int, effects: list[Effect]) -> m.Ranges:
        memory = request.spec.resources.memory
        offered = [e for e in self._executors.values() if e.alive and request.spec.isolation in ("", e.isolation)]
        rest = request.indices
        # A node to be avoided comes after all others, and is better than none.
        for avoid in (request.avoid, ()) if request.avoid else ((),):
            candidates = offered
            while rest and candidates:
                full: list[Executor] = []
                for executor, share in shares(candidates, ranges.count(rest), now, request.snapshot):
                    chosen = executor.take(share, memory, avoid)
                    for node, count in chosen:
                        part, rest = ranges.take(rest, count)
                        executor.reserve(node, (request.rollout, request.attempt), part, memory)
                        start = _start(_narrowed(request, part), executor, node)
                        effects.append(Publish(subjects.executor_control(executor.name), start))
                    if chosen:
                        executor.will_have(request.snapshot)
                    else:
                        full.append(executor)  # what slots it has are too small, or are to be avoided
                candidates = [e for e in candidates if e.free > 0 and not any(e is other for other in full)]
        if rest:
            largest = max((n.spec.memory for e in offered for n in e.by_number if n.spec.slots), default=None)
            if largest is not None and largest < memory:
                detail = f"it asks for {memory} bytes of memory, and the largest node has {largest}"
                record = self._rollouts[request.rollout]
                failed = m.EndReason.START_FAILED
                self._end(record, request.rollout, request.attempt, rest, "", failed, detail, effects)
                return ()
        return rest

    def _end(
        self, record: _Rollout, rollout: str, attempt: int, indices: m.Ranges, node: str, reason: m.EndReason,
        detail: str, effects: list[Effect],
    ) -> None:  # fmt: skip
        subject = subjects.rollout_sandbox(record.cell, record.tenant, record.run)
        effects.append(Publish(subject, m.SandboxesEnded(rollout, attempt, indices, node, reason, detail)))

    def _tell(self, effects: list[Effect]) -> None:
        if not self._fleet_changed:
            return
        self._fleet_changed = False
        alive = [executor for executor in self._executors.values() if executor.alive]
        nodes = [node for executor in alive for node in executor.nodes.values()]
        isolations = tuple(sorted(dict.fromkeys(executor.isolation for executor in alive)))
        capacity = m.CellCapacity(sum(node.spec.slots for node in nodes), len(nodes), isolations)
        if capacity != self._told and (self._told is not None or nodes):
            self._told = capacity
            effects.append(Publish(subjects.rollout_system(self._cell), capacity))

    def check(self) -> None:
        """Assert that no node is over-committed and that every account balances."""
        for executor in self._executors.values():
            executor.check()
        assert all(ranges.count(w.indices) for w in self._waiting)
        assert all(len(w.spec.commands) in (0, 1, ranges.count(w.indices)) for w in self._waiting)


def _narrowed(request: m.PlaceRequested, indices: m.Ranges) -> m.PlaceRequested:
    """Return the request for some of its sandboxes only, with their commands."""
    if indices == request.indices:
        return request
    spec = request.spec
    if len(spec.commands) > 1:
        of = dict(zip(ranges.indices(request.indices), spec.commands, strict=True))
        spec = msgspec.structs.replace(spec, commands=tuple(of[index] for index in ranges.indices(indices)))
    return msgspec.structs.replace(request, indices=indices, spec=spec)


def _remaining(request: m.PlaceRequested, rollout: str, indices: m.Ranges) -> m.PlaceRequested | None:
    """Return what a release leaves of a waiting request."""
    if request.rollout != rollout:
        return request
    left = ranges.without(request.indices, indices) if indices else ()
    return _narrowed(request, left) if left else None


def _start(request: m.PlaceRequested, executor: Executor, node: Node) -> m.StartSandboxes:
    spec = request.spec
    return m.StartSandboxes(
        executor.boot, node.spec.node, request.rollout, request.tenant, request.run, request.cell, request.attempt,
        request.indices, request.snapshot, spec.resources, spec.commands, spec.files, spec.env, spec.user,
        request.deadline_ms, spec.checkpoint_every_ms, spec.checkpoint_commands, spec.idle_after_ms,
    )  # fmt: skip
