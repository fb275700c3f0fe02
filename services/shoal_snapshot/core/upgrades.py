"""What earlier versions of the snapshot service's state are in this one's terms (`shoal.machine.versions`)."""

from collections.abc import Mapping
from typing import Any, Final

from shoal.machine.versions import Upgrade

_CATALOGUE: Final = 1
_COLLECTING: Final = 3  # of the catalogue
_NEVER_ASKED: Final = -3_600_000


def _from_3(state: Any) -> Any:
    """It was not noted when blobs were asked to be removed: they are asked for again, which does no harm."""
    catalogue = state[_CATALOGUE]
    collecting = [[digest, _NEVER_ASKED] for digest in catalogue[_COLLECTING]]
    catalogue = [*catalogue[:_COLLECTING], collecting, *catalogue[_COLLECTING + 1 :]]
    return [*state[:_CATALOGUE], catalogue, *state[_CATALOGUE + 1 :]]


UPGRADES: Final[Mapping[int, Upgrade]] = {3: _from_3}
