"""How fast room comes free, and how long sandboxes run: what estimates of a start go by."""

from dataclasses import dataclass, field
from typing import Final

_MEMORY_MS: Final = 60_000.0
"""Of what is older than this, a part of 1/e counts."""
_KINDS: Final = 1024
_NEWS: Final = 0.2
"""Weight of a new duration in its kind's mean."""


@dataclass(slots=True)
class Pace:
    """Exponentially weighted means. Times in ms; everything follows from what is noted, so replicas agree."""

    rate: float = 0.0  # sandboxes a ms
    as_of_ms: int = 0
    durations: dict[tuple[str, str], float] = field(default_factory=dict)  # by tenant and template

    def landed(self, count: int, now: int) -> None:
        """Note that so many sandboxes no longer take room."""
        elapsed = max(now - self.as_of_ms, 0)
        keep = max(1 - elapsed / _MEMORY_MS, 0.0) if self.as_of_ms else 0.0
        self.rate = self.rate * keep + count / _MEMORY_MS
        self.as_of_ms = now

    def lasted(self, tenant: str, template: str, ms: float, count: int) -> None:
        """Note how long so many sandboxes ran, on average."""
        known = self.durations.pop((tenant, template), ms)
        self.durations[tenant, template] = known + (ms - known) * (1 - (1 - _NEWS) ** count)
        if len(self.durations) > _KINDS:
            del self.durations[next(iter(self.durations))]

    def duration_ms(self, tenant: str, template: str) -> float | None:
        """Return how long sandboxes of a template run, where that is known."""
        return self.durations.get((tenant, template))

    def until(self, count: int, now: int) -> int | None:
        """Return when so many sandboxes will have made room, or None where nothing is known of that."""
        if count <= 0:
            return now
        if not self.rate or now - self.as_of_ms > _MEMORY_MS:
            return None
        return now + int(count / self.rate)
