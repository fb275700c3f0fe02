"""The scheduler's state machine: admits rollouts, orders them into the cell's room, and concludes them."""

from collections.abc import Mapping, Sequence
from typing import Final

from shoal.machine import ranges
from shoal.machine.core import Cause, Effect, LawBrokenError, Publish
from shoal.machine.ledger import Ledger
from shoal.machine.lineage import warmed
from shoal.wire import messages as m, subjects
from shoal.wire.limits import limits_problem
from shoal.wire.quantities import BadValueError
from shoal_scheduler.core import preempt, stragglers, telling
from shoal_scheduler.core.admission import lasting, problem, unfit
from shoal_scheduler.core.borrowing import MOST
from shoal_scheduler.core.checkpoint import dump, load
from shoal_scheduler.core.dispatch import Dispatch, placements
from shoal_scheduler.core.fates import REMEMBERED_MS, Fates, guest
from shoal_scheduler.core.order import ORDERS
from shoal_scheduler.core.quotas import Exchange, part_of
from shoal_scheduler.core.sizes import MESSAGE_BYTES, too_large
from shoal_scheduler.core.state import Rollout
from shoal_scheduler.core.tenants import WAITING, amounts_of
from shoal_scheduler.core.upgrades import UPGRADES
from shoal_scheduler.core.waiting import Line

_FRESH_MS: Final = 10_000  # how long what a directory or a tar stood for is believed
_LEAST_RETRY_MS: Final = 1_000
_ROOM: Final = ("room", "nodes", "gang")
_LIMIT: Final = ("quota", "rate")


class SchedulerCore(Fates):
    """The rollouts of one cell of `cells`.

    `quota` is the most sandboxes a rollout may ask for, `order` the policy's name.
    """

    state_version = 9
    upgrades = UPGRADES

    def __init__(self, cell: int, quota: int = 100_000, order: str = "fair", cells: int = 1) -> None:
        super().__init__(cell, cells)
        self.exchange = Exchange(self.books)
        self._quota = quota
        self._message_bytes = MESSAGE_BYTES
        self._chosen = order
        self._order = ORDERS[order]
        self.templates: dict[tuple[str, str], tuple[m.Snapshot, int]] = {}
        self.orders = 0
        self.known: dict[str, None] = {}  # none: whoever comes is welcome

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        """Fold one message. Raises LawBrokenError, having changed nothing."""
        now = cause.time_ms
        effects: list[Effect] = []
        match message:  # the most frequent first: each case is looked at in turn
            case m.SandboxesReady(rollout=name, attempt=attempt, indices=indices):
                if (rollout := self._reported(name, attempt, indices, now)) is None or not self._ready(
                    rollout, attempt, indices, now, effects
                ):
                    return effects
            case m.SandboxesFinished():
                self._finished(message, now, effects)
            case m.RolloutQueued() | m.RolloutDispatched() | m.RolloutRejected() | m.RolloutConcluded():
                return ()  # its own words, read back
            case m.RolloutSubmitted():
                self._submit(message, now, effects)
            case m.RolloutReleased(rollout=name, indices=indices):
                self._close(name, indices, m.EndReason.RELEASED, now, effects)
            case m.Tick():
                self._pass_time(now, effects)
            case m.TemplateResolved():
                self._resolved(message, now, effects)
            case m.CellCapacity():
                self.books.rooms.set(message)
                self.books.shut.clear()
            case m.TenantAdded(tenant=tenant):
                self.known[_tenant(tenant)] = None
            case m.TenantRemoved(tenant=tenant):
                self.known.pop(tenant, None)
            case m.SettingsChanged(settings=settings):
                self.go_by(dict(settings))
            case m.TenantSet(tenant=tenant, limits=limits):
                self._limit(_tenant(tenant), limits, None)
            case m.TenantLimited(tenant=tenant, limits=limits, version=version):
                self._limit(_tenant(tenant), limits, version)
            case m.QuotaWanted(cell=cell, tenant=tenant):
                _tenant(tenant)
                self._other(cell)
                self.exchange.wanted(message)
            case m.QuotaLent(cell=cell):
                self._other(cell)
                self.exchange.lent(message, now)
            case m.RoomWanted():
                self._lend_room(message, now, effects)
            case m.RoomLent(cell=cell):
                self._other(cell)
                self.books.borrowing.lent(message)
            case m.RoomReturned(cell=cell):
                self._other(cell)
                self._return_room(message, now, effects)
            case m.SandboxesEnded():
                self._ended(message, now, effects)
            case m.SandboxSaved(rollout=name, attempt=attempt, index=index, snapshot=snapshot):
                if (rollout := self._reported(name, attempt, ((index, 1),), now)) is not None:
                    rollout.save(attempt, index, snapshot)
                return ()
            case m.SandboxSlept():
                self._slept(message, now, effects)
            case m.SandboxesWanted(rollout=name, indices=indices):
                self._wake(name, indices, now)
            case m.SandboxesHedged():
                if not self._hedge(message, now, effects):
                    return effects
            case m.SandboxesClosed(rollout=name, indices=indices, reason=reason):
                self._close(name, indices, reason, now, effects)
            case m.StepsGivenUp():
                return ()  # between a trainer and itself, should it be started again
            case m.RolloutCancelled(rollout=name):
                self._close(name, (), m.EndReason.CANCELLED, now, effects)
            case _:
                raise LawBrokenError(f"the scheduler has no use for {type(message).__name__}")
        self._dispatch(now, effects)
        return effects

    @property
    def settings(self) -> Mapping[str, str]:
        """Return the policy of turns, the most sandboxes of a rollout, and what the broker takes in one message."""
        return {"order": self._chosen, "quota": str(self._quota), "message_bytes": str(self._message_bytes)}

    def go_by(self, settings: Mapping[str, str]) -> None:
        """Go by these from now on. Raises LawBrokenError, having changed nothing."""
        new = {**self.settings, **settings}
        numbers = new["quota"].isdecimal() and new["message_bytes"].isdecimal()
        if new.keys() != self.settings.keys() or new["order"] not in ORDERS or not numbers:
            known = f"order ({', '.join(ORDERS)}), quota and message_bytes (numbers)"
            raise LawBrokenError(f"{settings} are no settings of a scheduler: it has {known}")
        self._chosen, self._order, self._quota = new["order"], ORDERS[new["order"]], int(new["quota"])
        self._message_bytes = int(new["message_bytes"])

    def wake_at_ms(self) -> int | None:
        """Return when to look at something (broker's time, ms); what it is may be over by then."""
        return self.books.timers[0][0] if self.books.timers else None

    def outstanding(self) -> Sequence[Effect]:
        """Return nothing: every effect here is a message."""
        return ()

    def dump(self) -> bytes:
        """Return the whole state; equal states give equal bytes."""
        return dump(self)

    def load(self, state: bytes) -> None:
        """Take over a dumped state. Raises ValueError."""
        load(self, state)

    # --- admission

    def _limit(self, tenant: str, limits: m.Limits, version: int | None) -> None:
        """Let a tenant have its part of limits of this version, where it is a new one; without one, all of them."""
        if problem := limits_problem(limits):
            raise LawBrokenError(": ".join(problem))
        account = self.books.tenant(tenant)
        if version is None:
            account.limit(limits, amounts_of(limits), account.version)
        elif version > account.version or not version:
            account.limit(limits, part_of(limits, self._cell, self.books.cells), version or account.version)
            self.exchange.limited(tenant)
        if account.idle:
            del self.books.tenants[tenant]

    def _other(self, cell: int) -> None:
        if cell == self._cell or not 0 <= cell < self.books.cells:
            raise LawBrokenError(f"cell {cell} is none of the other cells of {self.books.cells}")

    def _lend_room(self, message: m.RoomWanted, now: int, effects: list[Effect]) -> None:
        """Let what another cell wants room for wait among this cell's own rollouts."""
        self._other(message.cell)
        if sentence := problem(message.spec):
            raise LawBrokenError(sentence[1])
        name, spec = guest(message.cell, message.number), message.spec
        if name in self.books.rollouts or name in self.past:
            return
        self.orders += 1
        alone = spec.min_ready <= 1
        request = m.RolloutSubmitted(name, _tenant(message.tenant), message.run, spec)
        rollout = Rollout(
            request, self.orders, now + spec.timeout_ms, Ledger(spec), ranges.whole(spec.n), gathering=not alone,
            begun=alone, snapshot=m.Snapshot("", "room"), guest=(message.cell, message.number),
        )  # fmt: skip
        self.books.admit(rollout)
        self.books.enqueue(rollout, now)
        _, early = self.early.pop(name, (0, ()))
        if back := ranges.intersect(ranges.whole(spec.n), early):
            self._close(name, back, m.EndReason.RELEASED, now, effects)

    def _submit(self, request: m.RolloutSubmitted, now: int, effects: list[Effect]) -> None:
        name, spec = request.rollout, request.spec
        try:
            subjects.token(name, "rollout")
            subject = subjects.rollout_outcome(self._cell, request.tenant, request.run)
        except BadValueError as error:
            raise LawBrokenError(str(error)) from error
        if self.known and request.tenant not in self.known:
            reason = f"tenant: there is no {request.tenant!r} in this cluster; `shoal tenant add` makes one"
            raise LawBrokenError(reason, Publish(subject, m.RolloutRejected(name, "unknown_tenant", reason)))
        self._forget(now)
        if name in self.books.rollouts or name in self.past:
            return
        refused = self._refused(request, now)
        if refused is not None:
            self.past[name] = now + REMEMBERED_MS
            effects.append(Publish(subject, refused))
            return
        self.orders += 1
        alone = spec.min_ready <= 1
        rollout = Rollout(
            request, self.orders, now + spec.timeout_ms, Ledger(spec), ranges.whole(spec.n), gathering=not alone,
            begun=alone,
        )  # fmt: skip
        self.books.admit(rollout)
        self.books.at(rollout.deadline_ms, "deadline", name)
        if spec.start_within_ms:
            self.books.at(now + spec.start_within_ms, "start", name)
        key = (request.tenant, spec.template)
        known = self.templates.get(key) if lasting(spec.template) else None
        if (
            known is not None
            and (spec.template == "host" or now - known[1] <= _FRESH_MS)
            and not unfit(spec, warmed(known[0], spec.warm))
        ):
            self._start_from(rollout, known[0], now, effects)
            return
        if key not in self.unresolved:
            ask = m.ResolveTemplate(self._cell, request.tenant, spec.template)
            effects.append(Publish(subjects.snapshot(subjects.SYSTEM, "request"), ask))
        self.unresolved.setdefault(key, {})[name] = None

    def _refused(self, request: m.RolloutSubmitted, now: int) -> m.RolloutRejected | None:
        name, spec = request.rollout, request.spec
        refused = problem(spec)
        if refused is None and spec.n > self._quota:
            refused = "quota", f"n: {spec.n} is more than the {self._quota} sandboxes one rollout may have here"
        capacity = self.books.rooms.capacity
        if refused is None and capacity.nodes and spec.isolation not in ("", *capacity.isolations):
            offered = ", ".join(capacity.isolations)
            refused = "unsupported_isolation", f"isolation: no node offers {spec.isolation!r}; use one of: {offered}"
        tenant = self.books.tenants.get(request.tenant)
        limits = tenant.limits if tenant else m.Limits()
        if refused is None and limits.sandboxes and spec.min_ready > limits.sandboxes:
            sentence = f"{spec.min_ready} at once is more than the tenant's quota of {limits.sandboxes} sandboxes"
            refused = "quota", f"min_ready: {sentence}"
        if refused is not None:
            return m.RolloutRejected(name, *refused)
        waiting, most = tenant.waiting if tenant else 0, limits.waiting or WAITING
        mine = -(-most // self.books.cells)  # each cell has its part, but one rollout may wait in any
        if waiting + spec.n <= max(mine, 0 if waiting else most):
            return None
        when = self.books.pace.until(waiting + spec.n - most, now)
        retry_ms = max(when - now if when is not None else 10 * _LEAST_RETRY_MS, _LEAST_RETRY_MS)
        sentence = f"n: {waiting} sandboxes of tenant {request.tenant!r} wait already, and {most} may"
        return m.RolloutRejected(name, "queue_full", sentence, retry_ms)

    def _resolved(self, message: m.TemplateResolved, now: int, effects: list[Effect]) -> None:
        key = (message.tenant, message.template)
        askers = self.unresolved.pop(key, {})
        if message.snapshot is not None and askers and lasting(message.template):
            fresh = {k: v for k, v in self.templates.items() if k[1] == "host" or now - v[1] <= _FRESH_MS}
            self.templates = {**fresh, key: (message.snapshot, now)}
        for name in askers:
            rollout = self.books.rollouts.get(name)
            if rollout is None:
                continue
            if message.snapshot is None:
                self._reject(rollout, "unknown_template", message.error, now, effects)
            else:
                self._start_from(rollout, message.snapshot, now, effects)

    def _start_from(self, rollout: Rollout, snapshot: m.Snapshot, now: int, effects: list[Effect]) -> None:
        request = rollout.request
        rollout.snapshot = warmed(snapshot, request.spec.warm)
        refused = unfit(request.spec, rollout.snapshot) or too_large(self._cell, rollout, self._message_bytes)
        if refused is not None:
            self._reject(rollout, *refused, now, effects)
            return
        self.books.enqueue(rollout, now)
        if snapshot.blobs:
            rollout.held = True
            held = m.SnapshotHeld(request.tenant, snapshot.digest, request.rollout, rollout.deadline_ms)
            effects.append(Publish(subjects.snapshot(request.tenant, "held"), held))

    # --- time

    def _pass_time(self, now: int, effects: list[Effect]) -> None:
        for what, name in self.books.due(now):
            rollout = self.books.rollouts.get(name)
            match what:
                case "deadline" if rollout is not None and now >= rollout.deadline_ms:
                    self._close(name, (), m.EndReason.TIMED_OUT, now, effects)
                case "retry" if rollout is not None:
                    self.books.enqueue(rollout, now)
                case "hedge" if rollout is not None:
                    late = stragglers.late(self.books, rollout, now)
                    effects.extend(rollout.outcome(self._cell, hedged) for hedged in late)
                case "start" if rollout is not None:
                    waiting = rollout.fresh if rollout.begun else rollout.queue
                    if waiting:
                        within = rollout.request.spec.start_within_ms / 1000
                        text = f"there was no room for it within {within:g} s, its submit deadline"
                        verdict = m.SandboxesClosed(name, waiting, m.EndReason.NOT_STARTED, text)
                        self._give_up(rollout, verdict, now, effects)

    # --- order

    def _dispatch(self, now: int, effects: list[Effect]) -> None:
        books = self.books
        for want in [want for want, until in books.shut.items() if until <= now]:
            del books.shut[want]
        self._lend_quota(now, effects)
        if books.waiting.lines:
            self._give_out(now, effects)
        else:
            books.untold.clear()
            self._borrow(None, now, effects)

    def _give_out(self, now: int, effects: list[Effect]) -> None:
        books = self.books
        round_ = Dispatch(books, self._order, now)
        for part in round_.parts:
            effects.extend(placements(self._cell, part))
            rollout = part.rollout
            if rollout.request.rollout not in books.waiting:
                rollout.queued = ("", 0)  # who waits again is told again
            if part.last and rollout.guest is None:
                assert rollout.snapshot is not None
                told = m.RolloutDispatched(rollout.request.rollout, rollout.snapshot)
                effects.append(rollout.outcome(self._cell, told))
        for line in round_.blocked:
            for rollout, attempt, indices, how in preempt.victims(books, line, now):
                ask = m.PreemptRequested(rollout.request.rollout, attempt, indices, how)
                effects.append(Publish(subjects.placement_request(self._cell), ask))
                books.at(rollout.leaving_until_ms, "room", "")
        self._borrow(round_, now, effects)
        if not books.waiting.lines:
            books.untold.clear()
            return
        told_ = telling.tell_new(books, round_, now)
        if now >= books.tell_ms:
            told_ += telling.tell_all(books, round_, now)
            books.tell_ms = now + telling.TELL_MS
            books.at(books.tell_ms, "tell", "")
        effects.extend(rollout.outcome(self._cell, queued) for rollout, queued in told_)

    def _lend_quota(self, now: int, effects: list[Effect]) -> None:
        for cell, lent in self.exchange.lend(now):
            effects.append(Publish(subjects.rollout_system(cell), lent))

    def _borrow(self, round_: Dispatch | None, now: int, effects: list[Effect]) -> None:
        """Ask other cells for room and for parts of limits that they do not use; give back what is not needed."""
        books = self.books
        if books.cells == 1:
            return
        wanting: list[tuple[Line, Rollout, int]] = []
        limited: list[str] = []
        for line in books.waiting.each() if round_ is not None else ():
            kind, _ = round_.held_up.get(line.key, ("", "")) if round_ is not None else ("", "")
            if kind in _LIMIT:
                limited.append(line.tenant)
            if kind not in _ROOM:
                continue
            first, tenant = books.rollouts[line.first], books.tenants[line.tenant]
            allowed = min(tenant.may_have(line.want)[0], tenant.may_start(now))
            if first.guest is None and allowed < first.unit:
                limited.append(line.tenant)
            elif first.guest is None:
                wanting.append((line, first, min(books.waiting_in(line, most=MOST), allowed)))
        again = books.borrowing.settle(wanting, now)
        if again is not None:
            books.at(again, "borrow", "")
        for cell, said in books.borrowing.say():
            effects.append(Publish(subjects.rollout_system(cell), said))
        self._lend_quota(now, effects)
        for wanted in self.exchange.ask(limited, now):
            others = [cell for cell in range(books.cells) if cell != self._cell]
            effects.extend(Publish(subjects.rollout_system(cell), wanted) for cell in others)

    def check(self) -> None:
        """Assert that every sandbox is unsent, in flight or ended, and that the sums agree."""
        self.books.check()
        assert not any(name in self.past for name in self.books.rollouts)


def _tenant(name: str) -> str:
    try:
        return subjects.token(name, "tenant")
    except BadValueError as error:
        raise LawBrokenError(str(error)) from error
