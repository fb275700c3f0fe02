"""What earlier versions of the scheduler's state are in this one's terms (`shoal.machine.versions`)."""

from collections.abc import Mapping
from typing import Any, Final

from shoal.machine.versions import Upgrade

_PAST: Final = 2
_TENANTS: Final = 9
_QUOTAS: Final = 18
_HEDGE_MS: Final = 14  # of a rollout
_SETBACKS: Final = 17  # of a rollout


def _from_6(state: Any) -> Any:
    """Other cells' asks were counted over all tenants, so none that is older is news of any; the rest was not kept."""
    rollouts = [[*each[: _HEDGE_MS + 1], [], *each[_HEDGE_MS + 1 :]] for each in state[0]]
    names = [tenant[0] for tenant in state[_TENANTS]]
    asked, lent, asks, heard, *others = state[_QUOTAS]
    asks = [[cell, name, last] for cell, last in asks for name in names]
    heard = [[cell, [[1, last]]] for cell, last in heard]
    return [
        rollouts, *state[1 : _PAST + 1], [], *state[_PAST + 1 : _QUOTAS], [asked, lent, asks, heard, *others],
        *state[_QUOTAS + 1 :],
    ]  # fmt: skip


def _from_7(state: Any) -> Any:
    """Which sandboxes ran before was not kept: those that wait are taken for such that never did."""
    return [[[*each, []] for each in state[0]], *state[1:]]


def _from_8(state: Any) -> Any:
    """Since when sandboxes were there was not kept: those that are have all of their rollout's time, as before.

    How many starts of a rollout had failed counts for nobody any more. What cells tell each other of limits had counts
    as numbers; those that follow are greater.
    """
    return [[[*each[:_SETBACKS], *each[_SETBACKS + 1 :], [], []] for each in state[0]], *state[1:]]


UPGRADES: Final[Mapping[int, Upgrade]] = {6: _from_6, 7: _from_7, 8: _from_8}
