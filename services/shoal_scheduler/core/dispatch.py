"""What is given out now: as much as there is room, in the policy's order, within everybody's limits.

What does not fit now, though its turn has come (it has to be placed together, or is large), is not passed by for ever:
room is kept for it. For `PATIENCE_MS` others may use that room if they will be out of it in time (backfill: Lifka, The
ANL/IBM SP Scheduling System, 1995), going by how long their like ran before; after that nobody may. It is kept for one
at a time, so that two never wait for each other.
"""

from typing import Final

import msgspec

from shoal.machine import ranges
from shoal.machine.core import Publish
from shoal.wire import messages as m, subjects
from shoal_scheduler.core.admission import wants
from shoal_scheduler.core.books import Books
from shoal_scheduler.core.order import Order
from shoal_scheduler.core.state import Rollout, Sent
from shoal_scheduler.core.waiting import Key, Line

PATIENCE_MS: Final = 30_000
SHUT_MS: Final = 1_000
"""How long what placement gave back is not sent again."""
_STEPS: Final = 64  # as `order.SLACK`
"""While several compete, a rollout is given this part of the cell at a time, and at most so many sandboxes."""


class Part:
    """What is given out of one rollout: an attempt of some of its sandboxes."""

    __slots__ = ("attempt", "avoid", "indices", "last", "rollout", "together")

    def __init__(
        self, rollout: Rollout, attempt: int, indices: m.Ranges, avoid: tuple[str, ...], together: bool
    ) -> None:  # fmt: skip
        self.rollout = rollout
        self.attempt = attempt
        self.indices = indices
        self.avoid = avoid
        self.together = together
        self.last = not attempt and not rollout.fresh
        """Whether with it all of the rollout was given out for the first time."""

    def extend(self, indices: m.Ranges) -> None:
        """Add what the same rollout is given next."""
        self.indices = ranges.union(self.indices, indices)
        self.last = not self.attempt and not self.rollout.fresh


class Dispatch:
    """One round: `parts` is what is given out, `held_up` why the other lines wait (a kind, and a sentence)."""

    def __init__(self, books: Books, order: Order, now: int) -> None:
        self.parts: list[Part] = []
        self.held_up: dict[Key, tuple[str, str]] = {}
        self.blocked: list[Line] = []
        """Those that only lack room, in the order of their turns."""
        self._books = books
        self._now = now
        self._kept = ""
        if not books.waiting.lines:
            return
        if books.rooms.capacity.slots <= books.rooms.given and not books.rooms.total[0] == 0:
            self._full(order)
            return
        while (line := order(books, self._shut)) is not None:
            self._serve(line)
        if not self._kept:
            books.gang = ("", 0)

    def _shut(self, line: Line) -> bool:
        return line.key in self.held_up

    def _full(self, order: Order) -> None:
        """Every slot is taken: nobody has to be asked one by one. Whoever room is kept for is still that."""
        first = order(self._books, self._shut)
        if first is not None:
            self.blocked.append(first)
        for line in self._books.waiting.each():
            self.held_up[line.key] = ("room" if self._books.rooms.offers(line.want.needs) else "nodes", "")
            if line is not first:
                self.blocked.append(line)

    def _hold_up(self, line: Line, kind: str, sentence: str = "") -> None:
        self.held_up[line.key] = (kind, sentence)

    def _serve(self, line: Line) -> None:
        books, now = self._books, self._now
        rollout = books.rollouts[line.first]
        unit, needs = rollout.unit, line.want.needs
        if not books.rooms.offers(needs):
            self._hold_up(line, "nodes")
            return
        tenant = books.tenants[line.tenant]
        allowed, why = tenant.may_have(line.want)
        if allowed < unit:
            self._hold_up(line, "quota", why)
            return
        if (rate := tenant.may_start(now)) < min(unit, max(int(tenant.limits.starts_per_s), 1)):
            books.at(tenant.next_start_ms(), "rate", tenant.name)
            self._hold_up(line, "rate", f"{tenant.limits.starts_per_s:g} starts a second")
            return
        if books.shut.get(line.want, 0) > now:
            self._keep(rollout)
            self.blocked.append(line)
            self._hold_up(line, "room")
            return
        fits = books.rooms.fits(line.want)
        if fits < unit:
            self._keep(rollout)
            self.blocked.append(line)
            self._hold_up(line, "room")
            return
        if self._kept and not self._may_pass(rollout, line):
            self._hold_up(line, "gang", self._kept)
            return
        most = min(allowed, fits, max(rate, unit))
        if len(self._books.waiting) > 1:
            step = max(min(books.rooms.capacity.slots // _STEPS, _STEPS), 1)
            most = min(most, max(step, unit))
        self._send(rollout, most)

    def _keep(self, rollout: Rollout) -> None:
        """Keep room for a rollout, if there could ever be enough, from those whose turn comes after it."""
        books, name = self._books, rollout.request.rollout
        if not self._kept and rollout.unit <= books.rooms.holds(rollout.want):
            self._kept = name
            if books.gang[0] != name:
                books.gang = (name, self._now)

    def _may_pass(self, rollout: Rollout, line: Line) -> bool:
        """Return whether a rollout may go before the one that room is kept for."""
        books, now = self._books, self._now
        first, since = books.rollouts[self._kept], books.gang[1]
        if not books.rooms.overlap(first.want.needs, line.want.needs):
            return True
        if now >= since + PATIENCE_MS:
            return False
        spec = rollout.request.spec
        runs_ms = books.pace.duration_ms(rollout.request.tenant, spec.template)
        if runs_ms is None:
            runs_ms = float(spec.timeout_ms)
        missing = first.unit - books.rooms.fits(first.want)
        begins = books.pace.until(missing, now)
        return now + runs_ms <= (since + PATIENCE_MS if begins is None else max(begins, now))

    def _send(self, rollout: Rollout, limit: int) -> None:
        books, now = self._books, self._now
        together = rollout.gathering and rollout.unit > 1
        limit = rollout.unit if together else limit
        ready = [number for number, each in enumerate(rollout.again) if each.not_before_ms <= now]
        if ready:
            again = rollout.again.pop(ready[0])
            attempt, avoid = again.attempt, again.avoid
            part, rest = ranges.take(again.indices, limit)
            if rest:
                rollout.again.insert(ready[0], again._replace(indices=rest))
        else:
            attempt, avoid = 0, ()
            part, rollout.fresh = ranges.take(rollout.fresh, limit)
        rollout.gathering = False
        count = ranges.count(part)
        rollout.sent.append(Sent(attempt, part, now))
        tenant = books.tenants[rollout.request.tenant]
        tenant.waiting -= count
        tenant.started(count)
        books.give(rollout, count, now)
        books.turn = rollout.request.rollout if rollout.unsent else ""
        last = self.parts[-1] if self.parts else None
        if last and (last.rollout, last.attempt, last.avoid) == (rollout, attempt, avoid) and not last.together:
            last.extend(part)
        else:
            self.parts.append(Part(rollout, attempt, part, avoid, together))
        if not rollout.due(now) and not rollout.may_send_fresh:
            books.waiting.remove(rollout.request.rollout)
        elif ready:
            books.enqueue(rollout, now)


def placements(cell: int, part: Part) -> list[Publish]:
    """Return the effects that ask for a part to be placed."""
    effects: list[Publish] = []
    rollout, request = part.rollout, part.rollout.request
    spec = request.spec
    for indices, snapshot in rollout.starts(part.indices):
        one = spec
        if len(spec.commands) > 1:  # each travels once, however many parts a rollout is sent in
            one = msgspec.structs.replace(spec, commands=tuple(spec.commands[i] for i in ranges.indices(indices)))
        files = one.files if snapshot is rollout.snapshot else ()  # they are in it, as they were left
        one = msgspec.structs.replace(one, files=files, isolation=wants(one, snapshot))
        place = m.PlaceRequested(
            request.rollout, request.tenant, request.run, cell, part.attempt, indices, one, snapshot,
            rollout.deadline_ms, part.avoid, part.together,
        )  # fmt: skip
        effects.append(Publish(subjects.placement_request(cell), place))
    return effects
