"""How often what goes wrong, drawn from a seed; and the same with less of it, for shrinking."""

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities per event, and durations in ms of simulated time."""

    delay_ms: int = 20
    """The longest a message takes on an ordinary day."""
    slow: float = 0.0
    """A message takes up to a hundred times as long."""
    duplicate: float = 0.0
    """A message is published again under its id, as after a lost acknowledgement."""
    late_duplicate: float = 0.0
    """It is published again so late that the broker has forgotten the id."""
    crash: float = 0.0
    """A replica dies while it reads, and comes back from a checkpoint."""
    pause: float = 0.0
    """A replica stops for longer than its lease, and goes on as if nothing had happened."""
    node_restart: float = 0.0
    """An executor dies and goes on with its sandboxes."""
    node_loss: float = 0.0
    """An executor dies, its sandboxes with it, and comes back under a new boot."""
    node_silence: float = 0.0
    """An executor is not heard of for longer than placement waits, and comes back."""
    start_failure: float = 0.0
    death: float = 0.0
    """A sandbox ends and nobody asked for it."""
    slow_start: float = 0.0

    @classmethod
    def draw(cls, source: random.Random) -> Self:
        """Draw rates: each fault is absent, rare or frequent, so that seeds differ in kind and not only in detail."""
        drawn: dict[str, Any] = {
            field.name: source.choice((0.0, 0.0, 0.01, 0.05, 0.2)) * scale
            for field in dataclasses.fields(cls)
            if (scale := _SCALE.get(field.name, 1.0)) and field.name != "delay_ms"
        }
        if source.random() < 0.3:  # messages and services behave: then what should happen soon has to
            drawn.update(slow=0.0, crash=0.0, pause=0.0)
        return cls(delay_ms=source.choice((2, 20, 200)), **drawn)

    @property
    def prompt(self) -> bool:
        """Whether nothing but nodes is ever late."""
        return not (self.slow or self.crash or self.pause)

    def fewer(self) -> Iterator[Self]:
        """Yield the same with one fault left out, each in turn."""
        for field in dataclasses.fields(self):
            if field.name != "delay_ms" and getattr(self, field.name):
                none: dict[str, Any] = {field.name: 0.0}
                yield dataclasses.replace(self, **none)
        if self.delay_ms > 2:
            yield dataclasses.replace(self, delay_ms=2)

    def __str__(self) -> str:
        names = [field.name for field in dataclasses.fields(self) if getattr(self, field.name)]
        return ", ".join(f"{name}={getattr(self, name):g}" for name in names)


_SCALE = {
    "crash": 0.1, "pause": 0.1, "late_duplicate": 0.3, "node_restart": 0.3, "node_loss": 0.4, "node_silence": 0.3,
}  # fmt: skip
