"""The simulation of the real shells tried with planted bugs: mistakes in the shell that it has to find."""

from collections.abc import Callable, Sequence

import pytest

from shoal.bus.protocol import Delivery
from shoal.runtime.outlet import Folded, Outlet
from shoal.runtime.shell import Shell
from simulation.test_shells import simulate

Plant = Callable[[pytest.MonkeyPatch], None]


def acknowledges_too_early(patch: pytest.MonkeyPatch) -> None:
    """The position is written when effects are sent, before they are stored."""
    send = Outlet.let_out

    def let_out(self: Outlet, folded: Sequence[Folded]) -> None:
        send(self, folded)
        self.done = folded[-1].cause.sequence
        self.progress.set()

    patch.setattr(Outlet, "let_out", let_out)


def takes_over_without_what_was_held(patch: pytest.MonkeyPatch) -> None:
    """A standby that takes over sends only what follows from what comes now."""
    begin = Shell._begin_to_lead

    def begin_to_lead(self: Shell) -> None:
        self._held.clear()
        begin(self)

    patch.setattr(Shell, "_begin_to_lead", begin_to_lead)


def skips_a_message(patch: pytest.MonkeyPatch) -> None:
    """A standby misses a message now and then."""
    fold = Shell._fold

    def fold_most(self: Shell, delivery: Delivery) -> None:
        if delivery.sequence % 11 == 0 and not self.leading:
            self.position = delivery.sequence
        else:
            fold(self, delivery)

    patch.setattr(Shell, "_fold", fold_most)


def takes_more_for_stored(patch: pytest.MonkeyPatch) -> None:
    """What follows from the next messages is taken for stored, too."""
    stored = Shell._stored_to
    patch.setattr(Shell, "_stored_to", lambda self, position: stored(self, position + 3))


PLANTED: dict[str, tuple[Plant, int]] = {
    "acknowledges too early": (acknowledges_too_early, 40),
    "a takeover skips what was held": (takes_over_without_what_was_held, 10),
    "a standby skips a message": (skips_a_message, 10),
    "more is taken for stored": (takes_more_for_stored, 10),
}
"""Each bug, and within how many seeds it must be found."""


def violates(seed: int) -> bool:
    """Return whether a law is violated: one is that every rollout is over in time. Raises whatever else goes wrong."""
    try:
        simulate(seed)
    except (AssertionError, TimeoutError):
        return True
    return False


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_in_the_shell_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, bound = PLANTED[bug]
    plant(monkeypatch)
    assert any(violates(seed) for seed in range(bound))
