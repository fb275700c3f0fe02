"""The laws of giving out room hold under any order of events, and each of them finds the bug that is planted for it."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings

from property.scheduling import Scheduling, drive
from shoal.machine.core import Effect
from shoal.wire import messages as m
from shoal_scheduler.core.books import Books
from shoal_scheduler.core.order import SLACK
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_scheduler.core.waiting import Line

TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate], database=None, report_multiple_bugs=False,
)  # fmt: skip


class Overcommits(SchedulerCore):
    """It forgets what memory was given out."""

    def __init__(self, cell: int) -> None:
        super().__init__(cell)
        fits = self.books.rooms.fits
        self.books.rooms.fits = lambda want: fits(want._replace(memory=1))  # type: ignore[method-assign]  # the bug


class NoQuota(SchedulerCore):
    """A tenant's quota is not looked at."""

    def _limit(self, tenant: str, limits: m.Limits, version: int | None) -> None:
        super()._limit(tenant, msgspec.structs.replace(limits, sandboxes=0), version)


class FirstComeFirstServed(SchedulerCore):
    """Whoever came first goes first, whatever it has already."""

    def __init__(self, cell: int) -> None:
        super().__init__(cell, order="fifo")


class Unweighted(SchedulerCore):
    """Weights are forgotten."""

    def _limit(self, tenant: str, limits: m.Limits, version: int | None) -> None:
        super()._limit(tenant, msgspec.structs.replace(limits, weight=1.0), version)


class SlackForTheHeavy(SchedulerCore):
    """Those of a large weight count as equal, however much they have."""

    def __init__(self, cell: int) -> None:
        super().__init__(cell)
        fair = self._order

        def order(books: Books, shut: Callable[[Line], bool]) -> Line | None:
            heavy = [
                line for line in books.waiting.each()
                if not shut(line) and (tenant := books.tenants[line.tenant]).share(books.total) <= SLACK
                and tenant.limits.weight > 2
            ]  # fmt: skip
            return heavy[0] if heavy else fair(books, shut)

        self._order = order


class TearsGangs(SchedulerCore):
    """What has to begin together begins one by one."""

    def _submit(self, request: m.RolloutSubmitted, now: int, effects: list[Effect]) -> None:
        spec = msgspec.structs.replace(request.spec, min_ready=0)
        super()._submit(msgspec.structs.replace(request, spec=spec), now, effects)


class LeavesTheLoser(SchedulerCore):
    """The slower one of two attempts goes on for ever."""

    def _settle(self, rollout: Any, attempt: int, hedged: m.Ranges, now: int, effects: list[Effect]) -> None:
        before = len(effects)
        super()._settle(rollout, attempt, hedged, now, effects)
        del effects[before:]


class HedgesBeyondLimits(SchedulerCore):
    """What is started twice counts once until that is read back."""

    def __init__(self, cell: int) -> None:
        super().__init__(cell)
        hedge = self.books.hedge

        def forgetful(rollout: Any, attempt: int, indices: m.Ranges) -> None:
            hedge(rollout, attempt, indices)
            self.books.hedged(rollout, attempt, indices, ())

        self.books.hedge = forgetful  # type: ignore[method-assign]  # the bug


class HedgesForNothing(SchedulerCore):
    """What is started twice is one start of its tenant's."""

    def __init__(self, cell: int) -> None:
        super().__init__(cell)
        hedge = self.books.hedge

        def free(rollout: Any, attempt: int, indices: m.Ranges) -> None:
            tenant = self.books.tenant(rollout.request.tenant)
            before = tenant.starts
            hedge(rollout, attempt, indices)
            tenant.starts = before

        self.books.hedge = free  # type: ignore[method-assign]  # the bug


class ForgetsSleepers(SchedulerCore):
    """What made room for others is not brought back."""

    def _slept(self, message: m.SandboxSlept, now: int, effects: list[Effect]) -> None:
        super()._slept(msgspec.structs.replace(message, preempted=False), now, effects)


class PreemptsAll(SchedulerCore):
    """Whoever runs makes room, whatever its policy is."""

    def _submit(self, request: m.RolloutSubmitted, now: int, effects: list[Effect]) -> None:
        spec = msgspec.structs.replace(request.spec, on_preempted=m.OnPreempted.RESTART)
        super()._submit(msgspec.structs.replace(request, spec=spec), now, effects)


class ForgetsTheHold(SchedulerCore):
    """What is given up may be given out before that is read back."""

    def _give_up(self, rollout: Any, verdict: m.SandboxesClosed, now: int, effects: list[Effect]) -> None:
        effects.append(rollout.outcome(self._cell, verdict))


class LostIsAResult(SchedulerCore):
    """A lost node counts as a failed command."""

    def _ended(self, message: m.SandboxesEnded, now: int, effects: list[Effect]) -> None:
        if message.reason is m.EndReason.NODE_LOST:
            message = msgspec.structs.replace(message, reason=m.EndReason.COMMAND_FAILED)
        super()._ended(message, now, effects)


class WaitsForTheDead(SchedulerCore):
    """Those that are to follow the first of their rollout wait though these were released before they were there."""

    def _conclude(
        self, rollout: Any, reason: str, now: int, effects: list[Effect], waited: m.Ranges = (),
        late: m.Ranges = (),
    ) -> None:  # fmt: skip
        if not rollout.lost_its_first:
            super()._conclude(rollout, reason, now, effects, waited, late)


class WaitsForItself(WaitsForTheDead):
    """Those that are to follow the first of their rollout wait for something that has happened."""

    def _begin(self, rollout: Any, now: int) -> bool:
        return False


class ForgetsRetries(SchedulerCore):
    """What failed to start three times waits for ever."""

    def _pass_time(self, now: int, effects: list[Effect]) -> None:
        self.books.timers = [each for each in self.books.timers if each[1] != "retry"]
        super()._pass_time(now, effects)


BUGS: dict[str, Callable[[int], SchedulerCore]] = {
    "over-committed": Overcommits,
    "quotas": NoQuota,
    "fair share": FirstComeFirstServed,
    "weights": Unweighted,
    "large weights": SlackForTheHeavy,
    "gangs": TearsGangs,
    "hedges": LeavesTheLoser,
    "hedges count at once": HedgesBeyondLimits,
    "hedges are starts": HedgesForNothing,
    "preempted come back": ForgetsSleepers,
    "never is never": PreemptsAll,
    "given up": ForgetsTheHold,
    "typed reasons": LostIsAResult,
    "no deadlock": WaitsForItself,
    "nobody to follow": WaitsForTheDead,
    "no starvation": ForgetsRetries,
}


OFTEN = {"hedges are starts": ("limit_rate", "submit", "ready", "hedge", "hedge")}
"""What has to meet for a bug to show, where that is rare."""

SEEDS = 4000


def test_every_law_holds_under_every_seed() -> None:
    for seed in range(1000):
        drive(seed)
    for seed in range(250):
        drive(seed, often=OFTEN["hedges are starts"])


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    assert any(broken(seed, BUGS[bug], OFTEN.get(bug, ())) for seed in range(SEEDS))


def broken(seed: int, core: Callable[[int], SchedulerCore], often: tuple[str, ...]) -> bool:
    """Return whether a seed shows that a core breaks a law."""
    try:
        drive(seed, core, often)
    except AssertionError:
        return True
    return False
