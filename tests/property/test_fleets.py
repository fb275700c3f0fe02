"""The laws of placement hold under any order of events, and each of them finds the bug that is planted for it."""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from property.fleets import drive
from shoal.machine.core import Effect, Publish
from shoal.wire import messages as m
from shoal_placement.core.nodes import Demand, Executor, Node
from shoal_placement.core.placement import PlacementCore
from shoal_placement.core.placing import Placing

Patch = pytest.MonkeyPatch


@given(st.randoms(use_true_random=False))
@settings(
    max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)  # fmt: skip
def test_every_law_holds(source: random.Random) -> None:
    drive(source, lambda: PlacementCore(0))


def test_every_law_holds_under_every_seed() -> None:
    for seed in range(600):
        drive(random.Random(seed), lambda: PlacementCore(0))


def overcommits(patch: Patch) -> None:
    """Cpus are not looked at."""
    fits = Node.fits
    patch.setattr(Node, "fits", lambda node, demand: fits(node, demand._replace(cpu_milli=0)))


def any_label(patch: Patch) -> None:
    """Labels are not looked at."""
    fits = Node.fits
    patch.setattr(Node, "fits", lambda node, demand: fits(node, demand._replace(labels=())))


def fills_drained_nodes(patch: Patch) -> None:
    """A drained node is given more."""

    def fits(node: Node, demand: Demand) -> int:
        drained, node.drained = node.drained, False
        try:
            return real(node, demand)
        finally:
            node.drained = drained

    real = Node.fits
    patch.setattr(Node, "fits", fits)


def tears_gangs(patch: Patch) -> None:
    """What is to start together starts as there is room."""
    patch.setattr(Placing, "_undo", lambda self: None)


def hedges_in_place(patch: Patch) -> None:
    """A hedge may go where the sandbox is being started already."""
    patch.setattr(PlacementCore, "_nodes_of", lambda self, hedge: [])


def no_throttle(patch: Patch) -> None:
    """An executor is given whatever it has room for."""
    patch.setattr("shoal_placement.core.placing.THROTTLE_MS", 10**9)


def throttled_gangs(patch: Patch) -> None:
    """What has to start together must start within the throttle, on however few and slow nodes."""
    init = Placing.__init__

    def begin(self: Placing, fleet: Any, policy: Any, request: Any, record: Any, now: int) -> None:
        init(self, fleet, lambda *given: policy(*given[:5], 10_000, *given[6:]), request, record, now)

    patch.setattr(Placing, "__init__", begin)


def places_twice(patch: Patch) -> None:
    """A request that comes twice is placed twice."""

    def request(self: PlacementCore, message: m.PlaceRequested, now: int, effects: list[Effect]) -> None:
        self._rollouts.pop(message.rollout, None)
        real(self, message, now, effects)

    real = PlacementCore._request
    patch.setattr(PlacementCore, "_request", request)


def forgets_what_waits(patch: Patch) -> None:
    """What found no room is not given back."""
    patch.setattr(PlacementCore, "_give_back", lambda self, request, why, effects: None)


def frees_too_much(patch: Patch) -> None:
    """A release of one sandbox frees all of its group."""

    def release(self: Executor, node: Node, group: Any, indices: m.Ranges) -> int:
        held = node.held.get(group)
        return real(self, node, group, held.indices if held else indices)

    real = Executor.release
    patch.setattr(Executor, "release", release)


def tells_the_dead(patch: Patch) -> None:
    """An order goes to an earlier life of the executor."""

    def handle(self: PlacementCore, message: m.AnyMessage, cause: Any) -> list[Effect]:
        told: list[Effect] = []
        for each in real(self, message, cause):
            if isinstance(each, Publish) and isinstance(start := each.message, m.StartSandboxes):
                past = [boots[-1] for name, boots in self._boots.items() if boots and start.boot.startswith(name)]
                each = Publish(each.subject, msgspec.structs.replace(start, boot=(*past, start.boot)[0]))
            told.append(each)
        return told

    real = PlacementCore.handle
    patch.setattr(PlacementCore, "handle", handle)


BUGS: dict[str, Callable[[Patch], None]] = {
    "over-committed": overcommits,
    "labels": any_label,
    "drained": fills_drained_nodes,
    "gangs": tears_gangs,
    "hedges": hedges_in_place,
    "throttle": no_throttle,
    "gangs on slow nodes": throttled_gangs,
    "twice is once": places_twice,
    "everybody is answered": forgets_what_waits,
    "exact returns": frees_too_much,
    "boots": tells_the_dead,
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, monkeypatch: Patch) -> None:
    BUGS[bug](monkeypatch)
    assert any(broken(seed) for seed in range(1_500))


def broken(seed: int) -> bool:
    """Return whether a seed shows that a law is broken."""
    try:
        drive(random.Random(seed), lambda: PlacementCore(0))
    except AssertionError:
        return True
    return False
