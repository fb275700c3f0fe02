"""The laws of several cells hold under any order of events, and each of them finds the bug that is planted for it."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from property.cells import TENANTS, Make, drive
from shoal.machine import ranges
from shoal.wire import messages as m
from shoal_scheduler.core.scheduler import SchedulerCore


@given(st.randoms(use_true_random=False))
@settings(
    max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)  # fmt: skip
def test_every_law_holds(source: random.Random) -> None:
    drive(source)


def test_every_law_holds_under_every_seed() -> None:
    for seed in range(400):
        drive(random.Random(seed))


class KeepsWhatItLends(SchedulerCore):
    """A part of a limit that is given to another cell stays here, too."""

    def _lend_quota(self, now: int, effects: list[Any]) -> None:
        before = {name: list(tenant.part) for name, tenant in self.books.tenants.items()}
        super()._lend_quota(now, effects)
        for name, part in before.items():
            if name in self.books.tenants:
                self.books.tenants[name].part = part


class TakesAPartTwice(SchedulerCore):
    """What comes twice counts twice."""

    def handle(self, message: m.AnyMessage, cause: Any) -> Any:
        if isinstance(message, m.QuotaLent):
            self.exchange._heard_lent.clear()
        return super().handle(message, cause)


class LosesPartsThatComeLate(SchedulerCore):
    """A part that comes after a later one counts as a copy."""

    def handle(self, message: m.AnyMessage, cause: Any) -> Any:
        effects = super().handle(message, cause)
        if isinstance(message, m.QuotaLent):
            ((first, count), *_) = reversed(self.exchange._heard_lent[message.cell])
            self.exchange._heard_lent[message.cell] = ((1, first + count - 1),)
        return effects


class LosesClaimsThatComeLate(SchedulerCore):
    """A claim that comes after a later one counts as a copy, though that was for another tenant."""

    def handle(self, message: m.AnyMessage, cause: Any) -> Any:
        effects = super().handle(message, cause)
        if isinstance(message, m.QuotaWanted):
            heard = self.exchange._heard_asks
            last = max(number for (cell, _), number in heard.items() if cell == message.cell)
            heard.update({(message.cell, tenant): last for tenant in TENANTS})
        return effects


class UsesTicketsTwice(SchedulerCore):
    """A ticket that comes twice is good for two sandboxes."""

    def handle(self, message: m.AnyMessage, cause: Any) -> Any:
        asks = self.books.borrowing.asks
        if isinstance(message, m.RoomLent) and (ask := asks.get((message.cell, message.number))) is not None:
            ask.used = ranges.without(ask.used, message.tickets)
            ask.gone = ranges.without(ask.gone, message.tickets)
        return super().handle(message, cause)


class KeepsTickets(SchedulerCore):
    """What was asked of other cells and is not needed any more is not given back."""

    def __init__(self, cell: int, *, cells: int) -> None:
        super().__init__(cell, cells=cells)
        self.books.borrowing._give_up = lambda ask: None  # type: ignore[method-assign]  # the bug


class LendsWhatItHasNot(SchedulerCore):
    """Another cell gets room whether there is any or not."""

    def _lend_room(self, message: m.RoomWanted, now: int, effects: list[Any]) -> None:
        fits = self.books.rooms.fits
        self.books.rooms.fits = lambda want: max(fits(want), 1)  # type: ignore[method-assign]  # the bug
        super()._lend_room(message, now, effects)


class ForgetsWhatCameEarly(SchedulerCore):
    """What is given back before it was asked for is forgotten."""

    def _return_early(self, name: str, tickets: m.Ranges, now: int) -> None:
        return


class EndsOnlyAtHome(SchedulerCore):
    """What runs in another cell is not told to end."""

    def _let_go(self, rollout: Any, here: m.Ranges, away: m.Ranges, *rest: Any) -> None:
        super()._let_go(rollout, here, (), *rest)


class NeverAsks(SchedulerCore):
    """A cell keeps to its own nodes."""

    def __init__(self, cell: int, *, cells: int) -> None:
        super().__init__(cell, cells=cells)
        self.books.borrowing.cells = 1


class HoardsItsPart(SchedulerCore):
    """No part of a limit is ever lent."""

    def _lend_quota(self, now: int, effects: list[Any]) -> None:
        return


class BeginsAnew(SchedulerCore):
    """Of a limit that is changed each cell has its equal part again, whatever it uses."""

    def _limit(self, tenant: str, limits: m.Limits, version: int | None) -> None:
        super()._limit(tenant, limits, version)
        if tenant in self.books.tenants:
            self.books.tenants[tenant].part = list(self.books.tenants[tenant].base)


class OwesNothing(SchedulerCore):
    """Where a limit was lowered, a cell that uses more than its part does not ask for it."""

    def _limit(self, tenant: str, limits: m.Limits, version: int | None) -> None:
        asking = dict(self.exchange._asking)
        super()._limit(tenant, limits, version)
        self.exchange._asking = asking


BUGS: dict[str, type[SchedulerCore]] = {
    "a changed limit begins anew": BeginsAnew,
    "nothing is owed": OwesNothing,
    "a part is there twice": KeepsWhatItLends,
    "a part is taken twice": TakesAPartTwice,
    "a part comes late": LosesPartsThatComeLate,
    "a claim comes late": LosesClaimsThatComeLate,
    "a ticket is used twice": UsesTicketsTwice,
    "tickets are kept": KeepsTickets,
    "room is lent that is not there": LendsWhatItHasNot,
    "given back too early": ForgetsWhatCameEarly,
    "elsewhere nothing ends": EndsOnlyAtHome,
    "no overflow": NeverAsks,
    "no lending of quotas": HoardsItsPart,
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    kind = BUGS[bug]
    assert any(broken(seed, lambda cell, cells: kind(cell, cells=cells)) for seed in range(1_500))


def broken(seed: int, make: Make) -> bool:
    """Return whether a seed shows that a core breaks a law."""
    try:
        drive(random.Random(seed), make)
    except AssertionError:
        return True
    return False
