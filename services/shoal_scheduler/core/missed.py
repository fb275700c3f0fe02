"""How much of its rollout's time each sandbox was not there, though it was wanted.

That is the time before it was ready; of one that was started anew after a loss, all of it until it was ready again, for
what it did before is gone. What sleeps is kept, and nobody waits for it: only from its wake on is it waited for again.
"""

from shoal.machine import ranges
from shoal.machine.ledger import Ledger
from shoal.wire import messages as m

Part = tuple[m.Ranges, int]
"""Sandboxes, and what is the same of all of them, in ms."""


class Missed:
    """See the module. Times are kept relative to `base_ms`, the rollout's submission; it has `whole_ms`."""

    __slots__ = ("_base_ms", "_known", "_n", "_parts", "_wanted", "_whole_ms")

    def __init__(self, n: int, base_ms: int, whole_ms: int) -> None:
        self._n = n
        self._base_ms = base_ms
        self._whole_ms = whole_ms
        self._parts: dict[int, m.Ranges] = {}  # those that missed so many ms: most of a group the same
        self._known = 0  # a bit for each of them
        self._wanted: dict[int, int] = {}  # those that slept and are not back: since when they are waited for

    def ready(self, indices: m.Ranges, now: int) -> None:
        """Note that these sandboxes are there."""
        late = max(now - self._base_ms, 0)
        back = [index for index in ranges.indices(indices) if index in self._wanted] if self._wanted else []
        for index in back:
            self._set(((index, 1),), self._of(index) + max(late - self._wanted.pop(index), 0))
        self._set(ranges.without(indices, ranges.collect(back)) if back else indices, late)

    def _set(self, indices: m.Ranges, ms: int) -> None:
        bits = ranges.mask(indices)
        if bits & self._known:
            parts = ((each, ranges.without(part, indices)) for each, part in self._parts.items())
            self._parts = {each: part for each, part in parts if part}
        if indices:
            self._known |= bits
            self._parts[ms] = ranges.union(self._parts.get(ms, ()), indices)

    def _of(self, index: int) -> int:
        return next((ms for ms, part in self._parts.items() if ranges.holds(part, index)), 0)

    def wanted(self, indices: m.Ranges, now: int) -> None:
        """Note that these sandboxes, which slept, are waited for from now on."""
        self._wanted.update(dict.fromkeys(ranges.indices(indices), max(now - self._base_ms, 0)))

    def anew(self, indices: m.Ranges) -> None:
        """Note that these sandboxes start from their start: what they kept is gone, so all of it is missed."""
        for index in ranges.indices(indices) if self._wanted else ():
            self._wanted.pop(index, None)

    def late(self, indices: m.Ranges, ledger: Ledger) -> m.Ranges:
        """Return those of these sandboxes that are not there for half of the time, if nothing changes until its end."""
        whole, found = self._whole_ms, list[int]()
        asleep = ledger.asleep(indices)
        known = {index: ms for ms, part in self._parts.items() for index in ranges.indices(part)}
        for index in ranges.indices(indices):
            missed = known.get(index, 0)
            if not ledger.is_ready(index) and not ranges.holds(asleep, index):
                since = self._wanted.get(index)
                missed = whole if since is None else missed + max(whole - since, 0)
            if 2 * missed > whole:
                found.append(index)
        return ranges.collect(found)

    def ready_by(self, index: int) -> int:
        """Return by when a sandbox that is not there has to be, to have half of its rollout's time."""
        since = self._wanted.get(index)
        left = self._whole_ms // 2
        if since is not None:
            left += since - self._of(index)
        return self._base_ms + left

    def dump(self) -> tuple[list[Part], list[tuple[int, int]]]:
        """Return it as data: who missed how much, and since when who is waited for."""
        return [(self._parts[ms], ms) for ms in sorted(self._parts)], sorted(self._wanted.items())

    def load(self, missed: list[Part], wanted: list[tuple[int, int]]) -> None:
        """Take over what was dumped. Raises ValueError where it is not one of as many sandboxes."""
        if not all(ranges.valid(indices, self._n) for indices in (*(part for part, _ in missed), *_alone(wanted))):
            raise ValueError(f"what was missed is not of a rollout of {self._n}")
        for indices, ms in missed:
            self._set(indices, ms)
        self._wanted = dict(wanted)


def _alone(wanted: list[tuple[int, int]]) -> list[m.Ranges]:
    return [((index, 1),) for index, _ in wanted]
