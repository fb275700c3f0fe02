"""Which sandboxes are worth starting ahead: a pure policy over what was asked for, and when."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from shoal.wire.messages import Resources, Snapshot
from shoal_executor.drivers.protocol import StartSpec

HALF_LIFE_S: Final = 60.0
"""After so long without another, an order counts half."""
HOT: Final = 1.2
"""What is hot was asked for twice within a minute or so: forks of one live sandbox are asked for once."""


class Kind(NamedTuple):
    """What must be equal for one sandbox to do for another: all of a `StartSpec` but its files."""

    snapshot: str
    resources: Resources
    env: tuple[tuple[str, str], ...]
    user: str


def kind_of(spec: StartSpec) -> Kind:
    """Return a sandbox's kind."""
    return Kind(spec.snapshot.digest, spec.resources, spec.env, spec.user)


@dataclass(frozen=True, slots=True)
class Budget:
    """How many sandboxes are kept started ahead at most, and how much memory they may have among them, in bytes."""

    sandboxes: int
    memory: int


@dataclass(slots=True)
class _Warmth:
    snapshot: Snapshot
    orders: float
    most: int
    at: float


class Heat:
    """Counts orders by kind; old ones fade."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._known: dict[Kind, _Warmth] = {}

    def asked(self, kind: Kind, snapshot: Snapshot, sandboxes: int, now: float) -> None:
        """Note an order for so many of a kind, at `now` in seconds."""
        warmth = self._known.setdefault(kind, _Warmth(snapshot, 0.0, 0, now))
        warmth.orders = self._now(warmth, now) + 1
        warmth.most = max(sandboxes, warmth.most // 2)
        warmth.at = now

    def failed(self, kind: Kind) -> None:
        """One could not be started ahead: the next orders decide anew."""
        self._known.pop(kind, None)

    def wanted(self, now: float) -> Mapping[Kind, int]:
        """Return how many of each kind are to be kept started ahead: the hottest first, within the budget.

        A kind gets at most what its orders were for, and of the budget its part of all heat, but one at least.
        """
        for kind in [kind for kind, warmth in self._known.items() if self._now(warmth, now) < 0.1]:
            del self._known[kind]
        heats = {kind: heat for kind, warmth in self._known.items() if (heat := self._now(warmth, now)) >= HOT}
        whole = sum(heats.values())
        sandboxes, memory = self._budget.sandboxes, self._budget.memory
        wanted: dict[Kind, int] = {}
        for kind, heat in sorted(heats.items(), key=lambda item: (-item[1], _place(item[0]))):
            part = max(round(self._budget.sandboxes * heat / whole), 1)
            number = min(part, self._known[kind].most, sandboxes, memory // kind.resources.memory)
            if number:
                wanted[kind] = number
                sandboxes -= number
                memory -= number * kind.resources.memory
        return wanted

    def snapshot(self, kind: Kind) -> Snapshot | None:
        """Return what a kind starts from; None for one that failed, or faded, since it was wanted."""
        warmth = self._known.get(kind)
        return warmth.snapshot if warmth is not None else None

    @staticmethod
    def _now(warmth: _Warmth, now: float) -> float:
        return float(warmth.orders * 0.5 ** ((now - warmth.at) / HALF_LIFE_S))


def _place(kind: Kind) -> tuple[object, ...]:
    """Order the equally hot: resources by themselves have no order."""
    return kind.snapshot, msgspec.structs.astuple(kind.resources), kind.env, kind.user
