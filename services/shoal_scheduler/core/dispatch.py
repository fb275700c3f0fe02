"""What is given out now: as much as there is room, in the policy's order, within everybody's limits.

What does not fit now, though its turn has come (it has to be placed together, or is large), is not passed by for ever:
room is kept for it. For `PATIENCE_MS` others may use that room if they will be out of it in time (backfill: Lifka, The
ANL/IBM SP Scheduling System, 1995), going by how long their like ran before; after that nobody may. It is kept for one
at a time, so that two never wait for each other.

What has no room in this cell may have tickets for another's (`borrowing`): then it goes there.
"""

from typing import Final

import msgspec

from shoal.machine import ranges
from shoal.machine.core import Publish
from shoal.wire import messages as m, subjects
from shoal_scheduler.core.admission import wants
from shoal_scheduler.core.books import Books
from shoal_scheduler.core.borrowing import Ask
from shoal_scheduler.core.order import Order
from shoal_scheduler.core.room import PLENTY
from shoal_scheduler.core.state import Rollout
from shoal_scheduler.core.waiting import Key, Line

PATIENCE_MS: Final = 30_000
SHUT_MS: Final = 1_000
"""How long what placement gave back is not sent again."""
_STEPS: Final = 64  # as `order.SLACK`
"""While several compete, a rollout is given this part of the cell at a time, and at most so many sandboxes."""


class Part:
    """What is given out of one rollout: an attempt of some of its sandboxes, to the nodes of a cell."""

    __slots__ = ("attempt", "avoid", "cell", "indices", "last", "rollout", "together")

    def __init__(
        self, rollout: Rollout, cell: int, attempt: int, indices: m.Ranges, avoid: tuple[str, ...], together: bool
    ) -> None:  # fmt: skip
        self.rollout = rollout
        self.cell = cell
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
        full = books.rooms.capacity.slots <= books.rooms.given and not books.rooms.total[0] == 0
        if full and not books.borrowing.some:
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
            self._block(first)
        for line in self._books.waiting.each():
            self.held_up[line.key] = ("room" if self._books.rooms.offers(line.want.needs) else "nodes", "")
            if line is not first:
                self._block(line)

    def _block(self, line: Line) -> None:
        if self._books.rollouts[line.first].guest is None:
            self.blocked.append(line)

    def _hold_up(self, line: Line, kind: str, sentence: str = "") -> None:
        self.held_up[line.key] = (kind, sentence)

    def _serve(self, line: Line) -> None:
        books, now = self._books, self._now
        rollout = books.rollouts[line.first]
        unit, needs = rollout.unit, line.want.needs
        ask = books.borrowing.find(line.key, unit)
        if not books.rooms.offers(needs) and ask is None:
            self._hold_up(line, "nodes")
            return
        allowed = rate = PLENTY
        if rollout.guest is None:  # else its own cell has seen to it
            tenant = books.tenants[line.tenant]
            allowed, why = tenant.may_have(line.want)
            if allowed < unit:
                self._hold_up(line, "quota", why)
                return
            if (rate := tenant.may_start(now)) < (least := min(unit, max(int(tenant.rate), 1))):
                books.at(tenant.next_start_ms(least), "rate", tenant.name)
                self._hold_up(line, "rate", f"{tenant.limits.starts_per_s:g} starts a second")
                return
        most = min(allowed, max(rate, unit))
        if (fits := self._fits(line, rollout, ask)) >= unit:
            if len(self._books.waiting) > 1:
                step = max(min(books.rooms.capacity.slots // _STEPS, _STEPS), 1)
                most = min(most, max(step, unit))
            self._send(rollout, min(most, fits), None)
        elif ask is not None:
            self._send(rollout, min(most, ranges.count(ask.lent)), ask)

    def _fits(self, line: Line, rollout: Rollout, ask: Ask | None) -> int:
        """Return how many may have room here; what has none, and no tickets either, is held up."""
        books = self._books
        fits = 0 if books.shut.get(line.want, 0) > self._now else books.rooms.fits(line.want)
        if fits < rollout.unit:
            if ask is None:
                self._keep(rollout)
                self._block(line)
                self._hold_up(line, "room")
            return 0
        if self._kept and not self._may_pass(rollout, line):
            if ask is None:
                self._hold_up(line, "gang", self._kept)
            return 0
        return fits

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

    def _send(self, rollout: Rollout, limit: int, ask: Ask | None) -> None:
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
        if rollout.guest is None:
            rollout.starting.sent(attempt, part, now)
            books.tenants[rollout.request.tenant].started(ranges.count(part))
        books.wait(rollout, -ranges.count(part))
        books.give(rollout, part, ask)
        books.turn = rollout.request.rollout if rollout.unsent else ""
        cell = books.cell if ask is None else ask.cell
        last = self.parts[-1] if self.parts else None
        if (
            last and (last.rollout, last.cell, last.attempt, last.avoid) == (rollout, cell, attempt, avoid)
            and not last.together
        ):  # fmt: skip
            last.extend(part)
        else:
            self.parts.append(Part(rollout, cell, attempt, part, avoid, together))
        if not rollout.due(now) and not rollout.may_send_fresh:
            books.waiting.remove(rollout.request.rollout)
        elif ready:
            books.enqueue(rollout, now)


def placements(cell: int, part: Part) -> list[Publish]:
    """Return the effects that ask for a part of one of this cell's rollouts to be placed; a guest gets its tickets."""
    if part.rollout.guest is not None:
        guest, number = part.rollout.guest
        return [Publish(subjects.rollout_system(guest), m.RoomLent(cell, number, part.indices))]
    effects: list[Publish] = []
    rollout, request = part.rollout, part.rollout.request
    spec = request.spec
    for indices, snapshot in rollout.starts(part.indices):
        one = spec
        if len(spec.commands) > 1 and indices != ranges.whole(spec.n):  # each travels once, in however many parts
            one = msgspec.structs.replace(spec, commands=tuple(spec.commands[i] for i in ranges.indices(indices)))
        files = one.files if snapshot is rollout.snapshot else ()  # they are in it, as they were left
        one = msgspec.structs.replace(one, files=files, isolation=wants(one, snapshot))
        place = m.PlaceRequested(
            request.rollout, request.tenant, request.run, cell, part.attempt, indices, one, snapshot,
            rollout.deadline_ms, part.avoid, part.together, rollout.missed.ready_by(indices[0][0]),
        )  # fmt: skip
        effects.append(Publish(subjects.placement_request(part.cell), place))
    return effects
