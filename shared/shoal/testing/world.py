"""Simulated time: a heap of events in an order that depends on the seed alone."""

import heapq
import random
from collections.abc import Callable
from typing import Any


class LawViolatedError(AssertionError):
    """Something happened that must never happen."""


class World:
    """Everything that happens in one simulation. `random` is the only source of chance, `now_ms` the only clock."""

    def __init__(self, seed: int, *, start_ms: int = 1_700_000_000_000) -> None:
        self.random = random.Random(seed)
        self.now_ms = start_ms
        self.began_ms = start_ms
        self.steps = 0
        self.trace: Callable[[str], None] | None = None
        self._heap: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = 0

    def after(self, delay_ms: int, happen: Callable[..., object], *args: Any) -> None:
        """Have something happen later; what is due at the same time happens in the order in which it was said."""
        self._number += 1
        heapq.heappush(self._heap, (self.now_ms + max(delay_ms, 0), self._number, happen, args))

    def chance(self, probability: float) -> bool:
        """Draw whether something goes wrong; draws nothing where it never does."""
        return probability > 0.0 and self.random.random() < probability

    def run(self, done: Callable[[], bool], longest_ms: int, most_steps: int = 1_000_000) -> None:
        """Let things happen until `done`. Raises LawViolatedError when that takes longer than it may."""
        until = self.now_ms + longest_ms
        while not done():
            if not self._heap:
                raise LawViolatedError("nothing is left to happen, and it is not done")
            self.now_ms, _, happen, args = heapq.heappop(self._heap)
            if self.now_ms > until:
                raise LawViolatedError(f"not done after {longest_ms / 1000:g} s of simulated time")
            self.steps += 1
            if self.steps > most_steps:
                raise LawViolatedError(f"not done after {most_steps} steps")
            happen(*args)

    def rest(self, duration_ms: int) -> None:
        """Let things happen for so long."""
        until = self.now_ms + duration_ms
        while self._heap and self._heap[0][0] <= until:
            self.now_ms, _, happen, args = heapq.heappop(self._heap)
            self.steps += 1
            happen(*args)
        self.now_ms = until

    def tell(self, text: str) -> None:
        """Note what happens, for whoever traces a seed."""
        if self.trace is not None:
            self.trace(f"{(self.now_ms - self.began_ms) / 1000:9.3f} {text}")
