"""The scheduler's state machine: admits rollouts, orders them into the cell's window, and concludes them."""

import heapq
from collections.abc import Sequence
from typing import Final

import msgspec

from shoal.machine import ranges
from shoal.machine.core import Cause, Effect, LawBrokenError, Publish
from shoal.machine.ledger import Ledger
from shoal.machine.lineage import warmed
from shoal.wire import messages as m
from shoal.wire import subjects
from shoal.wire.quantities import BadValueError
from shoal_scheduler.core.admission import lasting, problem, unfit, wants
from shoal_scheduler.core.state import Rollout, State

_REMEMBERED_MS: Final = 86_400_000
_REMEMBERED: Final = 1_000_000
_FRESH_MS: Final = 10_000  # how long what a directory or a tar stood for is believed
_SHARE: Final = 64  # sandboxes a rollout is given at a time while several compete


class SchedulerCore:
    """The rollouts of one cell. `quota` is the most sandboxes a rollout may ask for."""

    state_version = 3

    def __init__(self, cell: int, quota: int = 100_000) -> None:
        self._cell = cell
        self._quota = quota
        self._rollouts: dict[str, Rollout] = {}
        self._waiting: dict[str, None] = {}  # those with something to dispatch
        self._past: dict[str, int] = {}  # concluded or rejected: until when they are remembered
        self._templates: dict[tuple[str, str], tuple[m.Snapshot, int]] = {}
        self._unresolved: dict[tuple[str, str], dict[str, None]] = {}
        self._in_flight = 0
        self._tenants: dict[str, int] = {}
        self._deadlines: list[tuple[int, str]] = []
        self._capacity = m.CellCapacity(0, 0, ())
        self._orders = 0
        self._known_tenants: dict[str, None] = {}  # none: whoever comes is welcome

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        """Fold one message. Raises LawBrokenError, having changed nothing."""
        now = cause.time_ms
        effects: list[Effect] = []
        match message:
            case m.RolloutSubmitted():
                self._submit(message, now, effects)
            case m.TemplateResolved():
                self._resolved(message, now, effects)
            case m.CellCapacity():
                self._capacity = message
            case m.TenantAdded(tenant=tenant):
                self._known_tenants[_tenant(tenant)] = None
            case m.TenantRemoved(tenant=tenant):
                self._known_tenants.pop(tenant, None)
            case m.SandboxesReady(rollout=name, attempt=attempt, indices=indices):
                if (rollout := self._reported(name, attempt, indices, now)) is not None:
                    rollout.ledger.ready(attempt, indices)
                return ()
            case m.SandboxesFinished(rollout=name, attempt=attempt, results=results):
                if len({r.index for r in results}) != len(results) or any(r.index < 0 for r in results):
                    raise LawBrokenError("each sandbox has one result and an index from 0")
                if (
                    rollout := self._reported(name, attempt, ranges.collect(r.index for r in results), now)
                ) is not None:
                    ended = sum(rollout.ledger.finish(attempt, r.index, r.result) for r in results)
                    self._landed(rollout, ended)
                    self._conclude(rollout, "finished", now, effects)
            case m.SandboxesEnded(rollout=name, attempt=attempt, indices=indices, reason=reason, node=node):
                if (rollout := self._reported(name, attempt, indices, now)) is not None:
                    gone, again = rollout.ledger.end(attempt, indices, reason)
                    self._landed(rollout, ranges.count(gone) + ranges.count(again))
                    if again:
                        if reason is not m.EndReason.START_FAILED and rollout.request.spec.on_lost is m.OnLost.RESTART:
                            for index in ranges.indices(again):
                                rollout.saved.pop(index, None)  # that policy's sandboxes start again from the start
                        rollout.again.append((attempt + 1, again, node))
                        self._waiting[name] = None
                    self._conclude(rollout, "finished", now, effects)
            case m.SandboxSaved(rollout=name, attempt=attempt, index=index, snapshot=snapshot):
                if (rollout := self._reported(name, attempt, ((index, 1),), now)) is not None:
                    rollout.save(attempt, index, snapshot)
                return ()
            case m.SandboxSlept(rollout=name, attempt=attempt, index=index, snapshot=snapshot):
                if (rollout := self._reported(name, attempt, ((index, 1),), now)) is not None and rollout.ledger.sleep(
                    attempt, index
                ):
                    rollout.saved[index] = snapshot
                    self._landed(rollout, 1)
            case m.SandboxesWanted(rollout=name, indices=indices):
                self._wake(name, indices, now)
            case m.RolloutReleased(rollout=name, indices=indices):
                self._close(name, indices, m.EndReason.RELEASED, now, effects)
            case m.RolloutCancelled(rollout=name):
                self._close(name, (), m.EndReason.CANCELLED, now, effects)
            case m.Tick():
                while self._deadlines and self._deadlines[0][0] <= now:
                    _, name = heapq.heappop(self._deadlines)
                    self._close(name, (), m.EndReason.TIMED_OUT, now, effects)
            case m.RolloutQueued() | m.RolloutDispatched() | m.RolloutRejected() | m.RolloutConcluded():
                return ()  # its own words, read back
            case _:
                raise LawBrokenError(f"the scheduler has no use for {type(message).__name__}")
        self._dispatch(effects)
        return effects

    def wake_at_ms(self) -> int | None:
        """Return the first deadline (broker's time, ms); it may be that of a rollout which is over."""
        return self._deadlines[0][0] if self._deadlines else None

    def outstanding(self) -> Sequence[Effect]:
        """Return nothing: every effect here is a message."""
        return ()

    # --- checkpoints

    def dump(self) -> bytes:
        """Return the whole state; equal states give equal bytes."""
        state = State(
            [rollout.dump() for rollout in self._rollouts.values()],
            list(self._waiting),
            list(self._past.items()),
            [(*key, snapshot, when) for key, (snapshot, when) in self._templates.items()],
            [(*key, list(askers)) for key, askers in self._unresolved.items()],
            sorted(self._deadlines),
            self._capacity,
            self._orders,
            list(self._known_tenants),
        )
        return msgspec.msgpack.encode(state)

    def load(self, state: bytes) -> None:
        """Take over a dumped state. Raises ValueError."""
        found = msgspec.msgpack.decode(state, type=State)
        self._rollouts = {each.request.rollout: each.load() for each in found.rollouts}
        self._waiting = dict.fromkeys(found.waiting)
        self._past = dict(found.past)
        self._templates = {(tenant, name): (snapshot, when) for tenant, name, snapshot, when in found.templates}
        self._unresolved = {(tenant, name): dict.fromkeys(askers) for tenant, name, askers in found.unresolved}
        self._deadlines = list(found.deadlines)  # sorted, and so a heap
        self._capacity = found.capacity
        self._orders = found.orders
        self._known_tenants = dict.fromkeys(found.tenants)
        for rollout in self._rollouts.values():
            if rollout.in_flight:
                tenant = rollout.request.tenant
                self._in_flight += rollout.in_flight
                self._tenants[tenant] = self._tenants.get(tenant, 0) + rollout.in_flight

    # --- admission

    def _submit(self, request: m.RolloutSubmitted, now: int, effects: list[Effect]) -> None:
        name, spec = request.rollout, request.spec
        try:
            subjects.token(name, "rollout")
            subjects.rollout_outcome(self._cell, request.tenant, request.run)
        except BadValueError as error:
            raise LawBrokenError(str(error)) from error
        if self._known_tenants and request.tenant not in self._known_tenants:
            reason = f"tenant: there is no {request.tenant!r} in this cluster; `shoal tenant add` makes one"
            subject = subjects.rollout_outcome(self._cell, request.tenant, request.run)
            raise LawBrokenError(reason, Publish(subject, m.RolloutRejected(name, "unknown_tenant", reason)))
        self._forget(now)
        if name in self._rollouts or name in self._past:
            return
        refused = problem(spec)
        if refused is None and spec.n > self._quota:
            refused = "quota", f"n: {spec.n} is more than the {self._quota} sandboxes one rollout may have here"
        if refused is None and self._capacity.nodes and spec.isolation not in ("", *self._capacity.isolations):
            offered = ", ".join(self._capacity.isolations)
            refused = "unsupported_isolation", f"isolation: no node offers {spec.isolation!r}; use one of: {offered}"
        if refused is not None:
            self._past[name] = now + _REMEMBERED_MS
            subject = subjects.rollout_outcome(self._cell, request.tenant, request.run)
            effects.append(Publish(subject, m.RolloutRejected(name, *refused)))
            return
        self._orders += 1
        rollout = Rollout(request, self._orders, now + spec.timeout_ms, Ledger(spec), ranges.whole(spec.n))
        self._rollouts[name] = rollout
        heapq.heappush(self._deadlines, (rollout.deadline_ms, name))
        key = (request.tenant, spec.template)
        known = self._templates.get(key) if lasting(spec.template) else None
        if (
            known is not None
            and (spec.template == "host" or now - known[1] <= _FRESH_MS)
            and not unfit(spec, warmed(known[0], spec.warm))
        ):
            self._start_from(rollout, known[0], effects)
            return
        if key not in self._unresolved:
            ask = m.ResolveTemplate(self._cell, request.tenant, spec.template)
            effects.append(Publish(subjects.snapshot(subjects.SYSTEM, "request"), ask))
        self._unresolved.setdefault(key, {})[name] = None

    def _resolved(self, message: m.TemplateResolved, now: int, effects: list[Effect]) -> None:
        key = (message.tenant, message.template)
        askers = self._unresolved.pop(key, {})
        if message.snapshot is not None and askers and lasting(message.template):
            fresh = {k: v for k, v in self._templates.items() if k[1] == "host" or now - v[1] <= _FRESH_MS}
            self._templates = {**fresh, key: (message.snapshot, now)}
        for name in askers:
            rollout = self._rollouts.get(name)
            if rollout is None:
                continue
            if message.snapshot is None:
                effects.append(rollout.outcome(self._cell, m.RolloutRejected(name, "unknown_template", message.error)))
                self._drop(name, now, effects)
            elif refused := unfit(rollout.request.spec, warmed(message.snapshot, rollout.request.spec.warm)):
                effects.append(rollout.outcome(self._cell, m.RolloutRejected(name, *refused)))
                self._drop(name, now, effects)
            else:
                self._start_from(rollout, message.snapshot, effects)

    def _start_from(self, rollout: Rollout, snapshot: m.Snapshot, effects: list[Effect]) -> None:
        request = rollout.request
        rollout.snapshot = warmed(snapshot, request.spec.warm)
        self._waiting[request.rollout] = None
        if snapshot.blobs:
            rollout.held = True
            held = m.SnapshotHeld(request.tenant, snapshot.digest, request.rollout, rollout.deadline_ms)
            effects.append(Publish(subjects.snapshot(request.tenant, "held"), held))

    # --- what becomes of sandboxes

    def _reported(self, name: str, attempt: int, indices: m.Ranges, now: int) -> Rollout | None:
        """Return the rollout a report is of, None when it is over. Raises LawBrokenError for an impossible report.

        What is reported at the deadline or later comes too late, whether the Tick that says so came before it or not:
        trainers do not see Ticks, and must come to the same count.
        """
        rollout = self._rollouts.get(name)
        if not ranges.valid(indices, rollout.ledger.n if rollout else 2**31):
            raise LawBrokenError(f"indices {indices} are not those of rollout {name}")
        if rollout is None:
            return None
        unsent = [(0, rollout.fresh), *((number, waiting) for number, waiting, _ in rollout.again)]
        if any(number == attempt and waiting and ranges.intersect(indices, waiting) for number, waiting in unsent):
            raise LawBrokenError(f"a report of sandboxes of rollout {name} that nobody was asked to start")
        return rollout if now < rollout.deadline_ms else None

    def _wake(self, name: str, indices: m.Ranges, now: int) -> None:
        rollout = self._rollouts.get(name)
        if not ranges.valid(indices, rollout.ledger.n if rollout else 2**31):
            raise LawBrokenError(f"indices {indices} are not those of rollout {name}")
        if rollout is None or now >= rollout.deadline_ms:
            return
        news = rollout.ledger.wake(indices)
        for attempt, woken in rollout.ledger.by_attempt(ranges.indices(news)):
            rollout.again.append((attempt, woken, ""))
            self._waiting[name] = None

    def _landed(self, rollout: Rollout, count: int) -> None:
        tenant = rollout.request.tenant
        rollout.in_flight -= count
        self._in_flight -= count
        self._tenants[tenant] = self._tenants.get(tenant, 0) - count
        if not self._tenants[tenant]:
            del self._tenants[tenant]

    def _close(self, name: str, indices: m.Ranges, reason: m.EndReason, now: int, effects: list[Effect]) -> None:
        rollout = self._rollouts.get(name)
        if not ranges.valid(indices, rollout.ledger.n if rollout else 2**31):
            raise LawBrokenError(f"indices {indices} are not those of rollout {name}")
        if rollout is None or (now >= rollout.deadline_ms and reason is not m.EndReason.TIMED_OUT):
            return  # as in `_reported`
        indices = indices or ranges.whole(rollout.ledger.n)
        asleep = rollout.ledger.asleep(indices)
        news = rollout.ledger.close(indices, reason)
        if not news:
            return
        sent = ranges.without(ranges.without(news, rollout.fresh), asleep)
        rollout.fresh = ranges.without(rollout.fresh, news)
        kept: list[tuple[int, m.Ranges, str]] = []
        for attempt, waiting, node in rollout.again:
            sent = ranges.without(sent, waiting)
            if left := ranges.without(waiting, news):
                kept.append((attempt, left, node))
        rollout.again = kept
        if not kept and not rollout.fresh:
            self._waiting.pop(name, None)
        self._landed(rollout, ranges.count(sent))
        if sent:
            everything = () if rollout.ledger.concluded else sent
            ask = m.ReleaseRequested(name, everything, reason)
            effects.append(Publish(subjects.placement_request(self._cell), ask))
        self._conclude(rollout, reason.value, now, effects)

    def _conclude(self, rollout: Rollout, reason: str, now: int, effects: list[Effect]) -> None:
        if rollout.ledger.concluded:
            name = rollout.request.rollout
            told = m.RolloutConcluded(name, rollout.ledger.counts(), reason)
            effects.append(rollout.outcome(self._cell, told))
            self._drop(name, now, effects)

    def _drop(self, name: str, now: int, effects: list[Effect]) -> None:
        rollout = self._rollouts.pop(name)
        if rollout.held:
            tenant = rollout.request.tenant
            effects.append(Publish(subjects.snapshot(tenant, "held"), m.SnapshotLetGo(tenant, name)))
        self._waiting.pop(name, None)
        key = (rollout.request.tenant, rollout.request.spec.template)
        self._unresolved.get(key, {}).pop(name, None)  # the question stays asked for whoever comes next
        self._past[name] = now + _REMEMBERED_MS
        self._forget(now)
        if len(self._deadlines) > 2 * len(self._rollouts) + 64:
            self._deadlines = sorted((r.deadline_ms, n) for n, r in self._rollouts.items())

    def _forget(self, now: int) -> None:
        while self._past:
            oldest = next(iter(self._past))
            if self._past[oldest] > now and len(self._past) <= _REMEMBERED:
                return
            del self._past[oldest]

    # --- order

    def _dispatch(self, effects: list[Effect]) -> None:
        while (window := self._capacity.slots - self._in_flight) > 0:
            able = [rollout for name in self._waiting if self._offered(rollout := self._rollouts[name])]
            if not able:
                break
            rollout = min(able, key=self._rank)
            self._send(rollout, window if len(able) == 1 else min(window, _SHARE), effects)
            if not rollout.again and not rollout.fresh:
                del self._waiting[rollout.request.rollout]
                rollout.queued = ""  # who waits again is told again
        if any(self._rollouts[name].queued != self._reason(self._rollouts[name]) for name in self._waiting):
            for ahead, rollout in enumerate(sorted((self._rollouts[name] for name in self._waiting), key=self._rank)):
                reason = self._reason(rollout)
                if rollout.queued != reason:
                    rollout.queued = reason
                    queued = m.RolloutQueued(rollout.request.rollout, ahead, rollout.unsent, reason)
                    effects.append(rollout.outcome(self._cell, queued))

    def _offered(self, rollout: Rollout) -> bool:
        return wants(rollout.request.spec, rollout.snapshot) in ("", *self._capacity.isolations)

    def _reason(self, rollout: Rollout) -> str:
        if not self._capacity.nodes:
            return "no node has joined yet"
        if not self._offered(rollout):
            return f"no node offers isolation {wants(rollout.request.spec, rollout.snapshot)!r} now"
        return "every slot is taken"

    def _rank(self, rollout: Rollout) -> tuple[bool, int, int, int]:
        tenant = self._tenants.get(rollout.request.tenant, 0)
        return (not rollout.again, -rollout.request.spec.priority, tenant, rollout.order)

    def _send(self, rollout: Rollout, limit: int, effects: list[Effect]) -> None:
        assert rollout.snapshot is not None
        request = rollout.request
        if rollout.again:
            attempt, waiting, node = rollout.again.pop(0)
            part, rest = ranges.take(waiting, limit)
            if rest:
                rollout.again.insert(0, (attempt, rest, node))
        else:
            attempt, node = 0, ""
            part, rollout.fresh = ranges.take(rollout.fresh, limit)
        self._landed(rollout, -ranges.count(part))
        spec = request.spec
        for indices, snapshot in rollout.starts(part):
            one = spec
            if len(spec.commands) > 1:  # each travels once, however many parts a rollout is sent in
                one = msgspec.structs.replace(spec, commands=tuple(spec.commands[i] for i in ranges.indices(indices)))
            files = one.files if snapshot is rollout.snapshot else ()  # they are in it, as they were left
            one = msgspec.structs.replace(one, files=files, isolation=wants(one, snapshot))
            place = m.PlaceRequested(
                request.rollout, request.tenant, request.run, self._cell, attempt, indices, one, snapshot,
                rollout.deadline_ms, (node,) if node else (),
            )  # fmt: skip
            effects.append(Publish(subjects.placement_request(self._cell), place))
        if attempt == 0 and not rollout.fresh:
            effects.append(rollout.outcome(self._cell, m.RolloutDispatched(request.rollout, rollout.snapshot)))

    def check(self) -> None:
        """Assert that every sandbox is unsent, in flight or ended, and that the sums agree."""
        for name, rollout in self._rollouts.items():
            rollout.ledger.check()
            assert not rollout.ledger.concluded
            unsent = rollout.unsent
            assert rollout.in_flight >= 0
            assert rollout.in_flight + unsent + rollout.ledger.asleep_count() == rollout.ledger.live
            assert (name in self._waiting) == (unsent > 0 and rollout.snapshot is not None)
            assert name not in self._past
        assert self._in_flight == sum(r.in_flight for r in self._rollouts.values())
        assert self._in_flight == sum(self._tenants.values())


def _tenant(name: str) -> str:
    try:
        return subjects.token(name, "tenant")
    except BadValueError as error:
        raise LawBrokenError(str(error)) from error
