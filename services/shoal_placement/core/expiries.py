"""When what is kept of rollouts ends, the earliest first: what is remembered, and what waits.

A rollout is remembered until its deadline, so after a busy day there are millions: looking at each of them every time
that an executor could be silent would stop placement for as long as that takes.
"""

import heapq
from collections.abc import Callable, Iterable


class Expiries:
    """See the module. `until` says until when a rollout is remembered, None where it is not.

    An entry that says something else than `until` is out of date, and passed over: so whoever changes what `until` says
    has to `set` it, and whoever forgets a rollout has nothing to do.
    """

    def __init__(self, until: Callable[[str], int | None]) -> None:
        self._until = until
        self._heap: list[tuple[int, str]] = []

    def set(self, name: str, when_ms: int) -> None:
        """Note until when a rollout is remembered from now on."""
        heapq.heappush(self._heap, (when_ms, name))

    def begin(self, all_of_them: Iterable[tuple[str, int]]) -> None:
        """Begin anew with these."""
        self._heap = [(when_ms, name) for name, when_ms in all_of_them]
        heapq.heapify(self._heap)

    def first(self) -> int | None:
        """Return when the first is to be forgotten, None where there is none."""
        while self._heap and self._until(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now_ms: int) -> list[str]:
        """Take out and return what is to be forgotten now, in the order of when, and of names."""
        found: list[str] = []
        while (when_ms := self.first()) is not None and when_ms <= now_ms:
            name = heapq.heappop(self._heap)[1]
            if not found or found[-1] != name:  # set twice to the same
                found.append(name)
        return found

    def check(self, all_of_them: Iterable[tuple[str, int]]) -> None:
        """Assert that each of these has its entry."""
        assert {(when_ms, name) for name, when_ms in all_of_them} <= set(self._heap)
