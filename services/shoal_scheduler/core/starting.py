"""Which sandboxes of a rollout were given to placement and are not known to be ready, since when, in which attempt.

Four bytes a sandbox while any of them is being started, and a cost that is that of the sandboxes a message names,
however many parts a rollout was given out in.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from shoal.machine import ranges
from shoal.wire import messages as m

_NONE: Final = array("I")


class Sent(NamedTuple):
    """Sandboxes that were given out in one attempt at one moment."""

    attempt: int
    indices: m.Ranges
    sent_ms: int


class Starting:
    """See the module. Times are kept relative to `base_ms`."""

    __slots__ = ("_attempts", "_base_ms", "_n", "_since", "count")

    def __init__(self, n: int, base_ms: int) -> None:
        self._n = n
        self._base_ms = base_ms
        self._since = _NONE  # 0: not being started, else a millisecond more than how long after the base
        self._attempts: dict[int, int] = {}  # where it is not the first
        self.count = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def sent(self, attempt: int, indices: m.Ranges, now: int) -> None:
        """Note that these sandboxes are given out."""
        if not self._since:
            self._since = array("I", bytes(4 * self._n))
        since, moment = self._since, max(now - self._base_ms, 0) + 1
        for first, count in indices:
            self.count += since[first : first + count].count(0)
            since[first : first + count] = array("I", (moment,)) * count
            if attempt:
                self._attempts.update(dict.fromkeys(range(first, first + count), attempt))
            elif self._attempts:
                for index in range(first, first + count):
                    self._attempts.pop(index, None)

    def over(self, attempt: int, indices: m.Ranges) -> list[tuple[int, int]]:
        """Note that these are being started no longer in this attempt; returns since when how many of them were."""
        if not self.count:
            return []
        found = Counter[int]()
        since, attempts = self._since, self._attempts
        if not attempt and not attempts:
            for first, count in indices:
                part = since[first : first + count]
                if part == array("I", part[:1]) * count:  # as they come most of the time
                    found[part[0]] += count
                else:
                    found.update(part)
                since[first : first + count] = array("I", bytes(4 * count))
            del found[0]
            self.count -= found.total()
        else:
            for index in ranges.indices(indices):
                if since[index] and (attempts.get(index, 0) == attempt if attempts else not attempt):
                    found[since[index]] += 1
                    self._forget(index)
        self._tidy()
        return [(self._base_ms + moment - 1, count) for moment, count in found.items()]

    def gone(self, indices: m.Ranges) -> None:
        """Note that these are of no use any more, in whichever attempt."""
        if self.count:
            for index in ranges.indices(indices):
                if self._since[index]:
                    self._forget(index)
            self._tidy()

    def _forget(self, index: int) -> None:
        self._since[index] = 0
        self._attempts.pop(index, None)
        self.count -= 1

    def _tidy(self) -> None:
        if not self.count:
            self._since = _NONE

    @property
    def oldest_ms(self) -> int:
        """Since when the one that takes longest is being started; there must be one."""
        return self._base_ms + min(moment for moment in self._since if moment) - 1

    def since(self, until_ms: int) -> Iterator[tuple[int, m.Ranges]]:
        """Yield by attempt those that were given out at that moment or before."""
        last = until_ms - self._base_ms + 1
        groups: dict[int, list[int]] = {}
        for index, moment in enumerate(self._since):
            if moment and moment <= last:
                groups.setdefault(self._attempts.get(index, 0), []).append(index)
        for attempt in sorted(groups):
            yield attempt, ranges.collect(groups[attempt])

    def dump(self) -> list[Sent]:
        """Return it as data."""
        if not self.count:
            return []
        groups: dict[tuple[int, int], list[int]] = {}
        for index, moment in enumerate(self._since):
            if moment:
                groups.setdefault((self._attempts.get(index, 0), moment), []).append(index)
        return [
            Sent(attempt, ranges.collect(groups[attempt, moment]), self._base_ms + moment - 1)
            for attempt, moment in sorted(groups)
        ]
