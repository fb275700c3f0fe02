"""Planted bugs: each is a mistake that somebody could make, and that the simulator has to find."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from shoal.machine import ranges
from shoal.machine.core import Cause, Effect, Publish
from shoal.testing.replica import Replica
from shoal.testing.world import LawViolatedError
from shoal.wire import messages as m
from shoal_executor import core as x
from shoal_scheduler.core.missed import Missed
from simulation.cluster import Cores, Watched, WatchedPlacement as PlacementCore
from simulation.fleet import SimExecutor


class KeepsWhatItLends(Watched):
    """A part of a limit that is given to another cell stays here, too."""

    def __init__(self, cell: int, quota: int, cells: int) -> None:
        super().__init__(cell, quota, cells)
        lend = self.exchange.lend

        def lend_twice(now: int) -> list[tuple[int, m.QuotaLent]]:
            said = lend(now)
            for _, lent in said:
                for i, amount in enumerate(lent.amounts):
                    self.books.tenants[lent.tenant].part[i] += amount
            return said

        self.exchange.lend = lend_twice  # type: ignore[method-assign]  # the bug


class KeepsTickets(Watched):
    """Room of another cell is not given back when its sandbox has ended."""

    def __init__(self, cell: int, quota: int, cells: int) -> None:
        super().__init__(cell, quota, cells)
        say = self.books.borrowing.say
        self.books.borrowing.say = lambda: [  # type: ignore[method-assign]  # the bug
            (to, said) for to, said in say() if isinstance(said, m.RoomWanted) or said.declined
        ]


class EndsOnlyAtHome(Watched):
    """What runs in another cell is not told to end."""

    def _let_go(self, rollout: Any, here: m.Ranges, away: m.Ranges, *rest: Any) -> None:
        super()._let_go(rollout, here, (), *rest)


class ForgetsWhenTheyCame(Watched):
    """What was there when its rollout's time was up times out, however late it came."""

    def _close(self, name: str, indices: m.Ranges, reason: m.EndReason, now: int, effects: list[Effect]) -> None:
        if name in self.books.rollouts and reason is m.EndReason.TIMED_OUT:
            rollout = self.books.rollouts[name]
            spec = rollout.request.spec
            rollout.missed = Missed(spec.n, rollout.submitted_ms, spec.timeout_ms)
        super()._close(name, indices, reason, now, effects)


class LendsWhatItHasNot(Watched):
    """What other cells want room for is not counted."""

    def _lend_room(self, message: m.RoomWanted, now: int, effects: list[Effect]) -> None:
        super()._lend_room(message, now, effects)
        rooms, fits = self.books.rooms, self.books.rooms.fits
        if len(self.books.rollouts) > 1:
            rooms.fits = lambda want: max(fits(want), 1)  # type: ignore[method-assign]  # the bug


class NoDeduplication(PlacementCore):
    """A request that comes twice is placed twice."""

    def _request(self, message: m.PlaceRequested, now: int, effects: list[Effect]) -> None:
        self._rollouts.pop(message.rollout, None)
        super()._request(message, now, effects)


class ForgetsARelease(PlacementCore):
    """A release of some sandboxes of a rollout leaves those that run."""

    def _release(self, message: m.ReleaseRequested, now: int, effects: list[Effect]) -> None:
        before = len(effects)
        super()._release(message, now, effects)
        if message.indices:
            effects[before:] = [e for e in effects[before:] if not _is(e, m.DestroySandboxes)]


class FreesTwice(PlacementCore):
    """Slots that are released twice are free twice."""

    def _free(self, message: m.SlotsReleased, now: int, effects: list[Effect]) -> None:
        super()._free(message, now, effects)
        executor = self._executors.get(message.executor)
        node = executor.nodes.get(message.node) if executor else None
        if executor and node and (message.rollout, message.attempt) not in node.held and node.slots < node.spec.slots:
            node.slots += 1
            executor.free += 1

    def check(self) -> None:
        """Its own books would tell; the nodes have to."""


class Oversells(PlacementCore):
    """Slots are free as soon as their end is ordered, and not when it is done."""

    def _release(self, message: m.ReleaseRequested, now: int, effects: list[Effect]) -> None:
        super()._release(message, now, effects)
        for executor in self._executors.values():
            for node in executor.by_number:
                for group in [group for group in node.held if group[0] == message.rollout]:
                    executor.release(node, group, message.indices or node.held[group].indices)
        self._place_waiting(now, effects)


class LosesOrphans(PlacementCore):
    """A silent executor that comes back is not told to destroy what was reported lost."""

    def _join(self, message: m.ExecutorJoined, now: int, effects: list[Effect]) -> None:
        before = len(effects)
        super()._join(message, now, effects)
        effects[before:] = [e for e in effects[before:] if not _is(e, m.DestroySandboxes)]


class DumpsTooLittle(PlacementCore):
    """A checkpoint leaves out what was released before it was asked for."""

    def load(self, state: bytes) -> None:
        super().load(state)
        for record in self._rollouts.values():
            record.gone = ()


class ForgetsInDump(Watched):
    """A checkpoint leaves out which rollouts are over."""

    def load(self, state: bytes) -> None:
        super().load(state)
        self.past.clear()


class ReusesTheAttempt(Watched):
    """What is started again keeps the number of its first attempt."""

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        effects = super().handle(message, cause)
        changed = [
            Publish(e.subject, msgspec.structs.replace(e.message, attempt=0)) if _is(e, m.PlaceRequested) else e  # type: ignore[union-attr]  # as asked
            for e in effects
        ]
        for each in changed:
            if isinstance(each, Publish) and isinstance(each.message, m.PlaceRequested):
                asked = {(each.message.rollout, 0, index) for index in ranges.indices(each.message.indices)}
                if asked & self._placed and each not in effects:
                    raise LawViolatedError(f"{sorted(asked)} are to be placed twice")
        return changed


class ConcludesTwice(Watched):
    """A rollout that is over is remembered for a moment only, so its repeated request runs it again."""

    def _drop(self, name: str, now: int, effects: list[Effect]) -> None:
        super()._drop(name, now, effects)
        self.past.pop(name)


class LostIsAResult(Watched):
    """A lost sandbox counts as one whose command failed."""

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        if isinstance(message, m.SandboxesEnded) and message.reason is m.EndReason.NODE_LOST:
            message = msgspec.structs.replace(message, reason=m.EndReason.COMMAND_FAILED)
        return super().handle(message, cause)


class Impatient(Watched):
    """What is reported after the deadline counts until the Tick comes."""

    def _reported(self, name: str, attempt: int, indices: m.Ranges, now: int) -> Any:
        return super()._reported(name, attempt, indices, 0)


class ForgetsReturns(Watched):
    """Sandboxes that end are in flight for ever in the account of the room."""

    def __init__(self, cell: int, quota: int, cells: int) -> None:
        super().__init__(cell, quota, cells)
        give = self.books.rooms.give
        self.books.rooms.give = lambda want, count: give(want, max(count, 0))  # type: ignore[method-assign]  # the bug

    def check(self) -> None:
        """Its own books would tell."""


class Unfair(Watched):
    """Whoever came first goes first, whatever it has already."""

    def __init__(self, cell: int, quota: int, cells: int) -> None:
        super().__init__(cell, quota, cells, "fifo")


class HedgesBeforeItIsSaid(Watched):
    """What is hedged counts for the scheduler at once, and for trainers when they read it."""

    def _pass_time(self, now: int, effects: list[Effect]) -> None:
        before = len(effects)
        super()._pass_time(now, effects)
        for each in list(effects[before:]):
            if isinstance(each, Publish) and isinstance(each.message, m.SandboxesHedged):
                self.books.rollouts[each.message.rollout].ledger.end(
                    each.message.attempt, each.message.indices, m.EndReason.PREEMPTED
                )


class TearsGangs(PlacementCore):
    """What has to be placed together is placed as there is room."""

    def _request(self, message: m.PlaceRequested, now: int, effects: list[Effect]) -> None:
        super()._request(msgspec.structs.replace(message, together=False), now, effects)


class IgnoresTheQuota(Watched):
    """A rollout may be of any size."""

    def __init__(self, cell: int, quota: int, cells: int) -> None:
        super().__init__(cell, 100_000, cells)


class HashOrdered(Watched):
    """The order of what is said depends on a set of strings."""

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        effects = list(super().handle(message, cause))
        return sorted(effects, key=lambda e: id(e)) if len(effects) > 2 else effects


class AcknowledgesTooEarly(Replica):
    """The position is written when effects are sent, before they are stored."""

    def _send_held(self) -> None:
        if self._held and self.thinks_it_leads:
            self._stored(self._life, self._epoch, self.position, None)
        super()._send_held()


class SkipsWhatWasHeld(Replica):
    """A standby that takes over sends only what follows from what comes now."""

    def _look(self, life: int) -> None:
        led = self.thinks_it_leads
        held, self._held = self._held, type(self._held)()
        super()._look(life)
        if led or not self.thinks_it_leads:
            self._held = held


class SkipsAMessage(Replica):
    """A replica that wakes up from a pause has missed a message."""

    def _fold(self, sequence: int) -> None:
        if self.paused_until and sequence % 7 == 0 and self.partition.world.now_ms - self.paused_until < 100:
            self.position = sequence
            return
        super()._fold(sequence)


class StartsTwice(SimExecutor):
    """An executor that comes back starts what was starting when it died."""

    def _back(self) -> None:
        for key, group in list(self.core.groups.items()):
            if group.starting:
                self._apply([x.Start(key, group.order, ranges.unmask(group.starting))])
        super()._back()


class FreesBeforeItTells(SimExecutor):
    """Slots are given back before it is known what became of their sandboxes."""

    def _release(self, released: m.SlotsReleased) -> None:
        self._give_back(released)


def _is(effect: Effect, kind: type) -> bool:
    return isinstance(effect, Publish) and isinstance(effect.message, kind)


@dataclass(frozen=True)
class Planted:
    """Cores with a bug, which must be found `within` the first so many seeds.

    `since`: the first of them that a test tries, where that takes long: near one that finds the bug as the simulation
    stands. `make simulate` tries them all.
    """

    cores: Cores
    within: int
    since: int = 0


REAL = Cores()
PLANTED: dict[str, Planted] = {
    "placement: no deduplication": Planted(replace(REAL, placement=NoDeduplication), 200),
    "placement: forgets a release": Planted(replace(REAL, placement=ForgetsARelease), 600, since=210),
    "placement: frees slots twice": Planted(replace(REAL, placement=FreesTwice), 400),
    "placement: frees slots too early": Planted(replace(REAL, placement=Oversells), 200),
    "placement: orphans are not destroyed": Planted(replace(REAL, placement=LosesOrphans), 3000, since=1800),
    "placement: a checkpoint lacks a field": Planted(replace(REAL, placement=DumpsTooLittle), 200),
    "scheduler: a checkpoint lacks a field": Planted(replace(REAL, scheduler=ForgetsInDump), 200),
    "scheduler: a retry reuses the attempt": Planted(replace(REAL, scheduler=ReusesTheAttempt), 200),
    "scheduler: concludes twice": Planted(replace(REAL, scheduler=ConcludesTwice), 200),
    "scheduler: a lost node is a result": Planted(replace(REAL, scheduler=LostIsAResult), 200),
    "scheduler: late reports count": Planted(replace(REAL, scheduler=Impatient), 1000),
    "scheduler: forgets when they came": Planted(replace(REAL, scheduler=ForgetsWhenTheyCame), 400),
    "scheduler: forgets what came back": Planted(replace(REAL, scheduler=ForgetsReturns), 600),
    "scheduler: no fair share": Planted(replace(REAL, scheduler=Unfair), 200),
    "scheduler: no quota": Planted(replace(REAL, scheduler=IgnoresTheQuota), 200),
    "scheduler: order depends on addresses": Planted(replace(REAL, scheduler=HashOrdered), 400),
    "scheduler: hedges before it is said": Planted(replace(REAL, scheduler=HedgesBeforeItIsSaid), 400),
    "cells: a part of a limit is there twice": Planted(replace(REAL, scheduler=KeepsWhatItLends), 200),
    "cells: tickets are not given back": Planted(replace(REAL, scheduler=KeepsTickets), 200),
    "cells: what runs elsewhere is not ended": Planted(replace(REAL, scheduler=EndsOnlyAtHome), 400),
    "cells: lends what is not there": Planted(replace(REAL, scheduler=LendsWhatItHasNot), 400),
    "placement: a gang is torn": Planted(replace(REAL, placement=TearsGangs), 1500, since=500),
    "shell: acknowledges too early": Planted(replace(REAL, replica=AcknowledgesTooEarly), 400, since=130),
    "shell: a takeover skips what was held": Planted(replace(REAL, replica=SkipsWhatWasHeld), 400),
    "shell: a standby skips a message": Planted(replace(REAL, replica=SkipsAMessage), 400),
    "executor: starts twice": Planted(replace(REAL, executor=StartsTwice), 1000, since=160),
    "executor: frees slots before it tells": Planted(replace(REAL, executor=FreesBeforeItTells), 3000, since=1100),
}
