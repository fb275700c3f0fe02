"""How much of its rollout's time each sandbox was not there, though it was wanted.

That is the time before it was ready; of one that was started anew after a loss, all of it until it was ready again, for
what it did before is gone. What sleeps is kept, and nobody waits for it: only from its wake on is it waited for again.
Four bytes a sandbox, from the first that is ready.
"""

from array import array
from typing import Final

from shoal.machine import ranges
from shoal.machine.ledger import Ledger
from shoal.wire import messages as m

_NONE: Final = array("I")

Part = tuple[m.Ranges, int]
"""Sandboxes, and what is the same of all of them, in ms."""


class Missed:
    """See the module. Times are kept relative to `base_ms`, the rollout's submission."""

    __slots__ = ("_base_ms", "_missed", "_n", "_wanted")

    def __init__(self, n: int, base_ms: int) -> None:
        self._n = n
        self._base_ms = base_ms
        self._missed = _NONE
        self._wanted: dict[int, int] = {}  # those that slept and are not back: since when they are waited for

    def ready(self, indices: m.Ranges, now: int) -> None:
        """Note that these sandboxes are there."""
        if not self._missed:
            self._missed = array("I", bytes(4 * self._n))
        missed, wanted, late = self._missed, self._wanted, max(now - self._base_ms, 0)
        for first, count in indices:
            if not wanted:
                missed[first : first + count] = array("I", (late,)) * count
                continue
            for index in range(first, first + count):
                since = wanted.pop(index, None)
                missed[index] = late if since is None else missed[index] + max(late - since, 0)

    def wanted(self, indices: m.Ranges, now: int) -> None:
        """Note that these sandboxes, which slept, are waited for from now on."""
        self._wanted.update(dict.fromkeys(ranges.indices(indices), max(now - self._base_ms, 0)))

    def late(self, indices: m.Ranges, ledger: Ledger, deadline_ms: int) -> m.Ranges:
        """Return those of these sandboxes that are not there for half of the time until then, if nothing changes."""
        whole, found = deadline_ms - self._base_ms, list[int]()
        asleep = ledger.asleep(indices)
        for index in ranges.indices(indices):
            missed = self._missed[index] if self._missed else 0
            if not ledger.is_ready(index) and not ranges.holds(asleep, index):
                since = self._wanted.get(index)
                missed = whole if since is None else missed + max(whole - since, 0)
            if 2 * missed > whole:
                found.append(index)
        return ranges.collect(found)

    def ready_by(self, index: int, whole_ms: int) -> int:
        """Return by when a sandbox that is not there has to be, to have half of its rollout's time (`whole_ms`)."""
        since = self._wanted.get(index)
        left = whole_ms // 2
        if since is not None:
            left += since - (self._missed[index] if self._missed else 0)
        return self._base_ms + left

    def dump(self) -> tuple[list[Part], list[tuple[int, int]]]:
        """Return it as data: who missed how much, and since when who is waited for."""
        groups: dict[int, list[int]] = {}
        for index, ms in enumerate(self._missed):
            if ms:
                groups.setdefault(ms, []).append(index)
        return [(ranges.collect(groups[ms]), ms) for ms in sorted(groups)], sorted(self._wanted.items())

    def load(self, missed: list[Part], wanted: list[tuple[int, int]]) -> None:
        """Take over what was dumped. Raises ValueError where it is not one of as many sandboxes."""
        if not all(ranges.valid(indices, self._n) for indices, _ in missed):
            raise ValueError(f"what was missed is not of a rollout of {self._n}")
        for indices, ms in missed:
            self._missed = self._missed or array("I", bytes(4 * self._n))
            for first, count in indices:
                self._missed[first : first + count] = array("I", (ms,)) * count
        self._wanted = dict(wanted)
