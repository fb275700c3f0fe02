"""What earlier versions of placement's state are in this one's terms (`shoal.machine.versions`)."""

from collections.abc import Mapping
from typing import Any, Final

from shoal.machine.versions import Upgrade

_ROLLOUTS: Final = 3
_SPREAD: Final = 8  # of a record


def _from_5(state: Any) -> Any:
    """Where a rollout's sandboxes are is worked out from the nodes; executors that left before are not waited for."""
    rollouts = [[name, [*record[:_SPREAD], *record[_SPREAD + 1 :]]] for name, record in state[_ROLLOUTS]]
    return [*state[:_ROLLOUTS], rollouts, *state[_ROLLOUTS + 1 :], []]


UPGRADES: Final[Mapping[int, Upgrade]] = {5: _from_5}
