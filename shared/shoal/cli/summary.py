"""What a rollout came to, in numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shoal.cli.exits import Exit

if TYPE_CHECKING:
    from shoal.client.results import SandboxOutcome


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the value that so many percent of the values do not exceed (nearest rank); None where there are none."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]


@dataclass(slots=True)
class Summary:
    """Counts and latencies of one rollout; `add` each outcome once."""

    rollout: str = ""
    sandboxes: int = 0
    succeeded: int = 0
    lost: int = 0
    cancelled: int = 0
    released: int = 0
    isolations: set[str] = field(default_factory=set)
    ready_ms: list[float] = field(default_factory=list)
    first_command_ms: list[float] = field(default_factory=list)
    not_found: str = ""

    def add(self, outcome: "SandboxOutcome") -> None:
        """Count one sandbox."""
        from shoal.wire.messages import EndReason

        self.sandboxes += 1
        self.succeeded += outcome.reason is EndReason.SUCCEEDED
        self.lost += outcome.infrastructure
        self.cancelled += outcome.reason is EndReason.CANCELLED
        self.released += outcome.reason is EndReason.RELEASED
        if outcome.isolation:
            self.isolations.add(outcome.isolation)
        if outcome.ready_ms is not None:
            self.ready_ms.append(outcome.ready_ms)
        if outcome.first_command_ms is not None:
            self.first_command_ms.append(outcome.first_command_ms)

    @property
    def failed(self) -> int:
        """How many neither succeeded nor were lost, nor let go by their trainer."""
        return self.sandboxes - self.succeeded - self.lost - self.released

    @property
    def simulated(self) -> bool:
        """Whether some sandbox was a simulated one."""
        return "simulated" in self.isolations

    @property
    def sandboxes_per_s(self) -> float | None:
        """Sandboxes with a result, over the time from submission to the last result, by the broker's clock."""
        last = max(self.first_command_ms, default=0.0)
        return round(len(self.first_command_ms) / last * 1000, 1) if last > 0 else None

    @property
    def status(self) -> Exit:
        """What `shoal` exits with."""
        if self.sandboxes and self.succeeded + self.released == self.sandboxes:
            return Exit.OK
        if self.lost:
            return Exit.LOST
        if self.not_found:
            return Exit.COMMAND_NOT_FOUND
        return Exit.CANCELLED if self.cancelled else Exit.FAILED

    def as_json(self) -> dict[str, Any]:
        """Return the last object of `--json`."""
        found: dict[str, Any] = {
            "summary": True,
            "rollout": self.rollout,
            "sandboxes": self.sandboxes,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "lost": self.lost,
            "released": self.released,
            "ready_ms": latency(self.ready_ms),
            "first_command_ms": latency(self.first_command_ms),
            "sandboxes_per_s": self.sandboxes_per_s,
        }
        return found | {"simulated": True} if self.simulated else found

    def lines(self) -> list[str]:
        """Return it for people."""
        kind = "simulated sandboxes" if self.simulated else "sandboxes"
        counted = kind.removesuffix("es") if self.sandboxes == 1 else kind
        rate = "" if self.sandboxes_per_s is None else f", {self.sandboxes_per_s:g} {kind}/s"
        released = f", {self.released} released by their trainer" if self.released else ""
        return [
            f"rollout {self.rollout}: {self.sandboxes} {counted}, {self.succeeded} succeeded, {self.failed} failed, "
            f"{self.lost} lost{released}{rate}",
            f"ready {_shown(self.ready_ms)}, first command {_shown(self.first_command_ms)}",
        ]


def latency(values: Sequence[float]) -> dict[str, float | None]:
    """Return p50 and p99 of times in ms."""
    return {name: _rounded(percentile(values, percent)) for name, percent in (("p50", 50), ("p99", 99))}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _shown(values: Sequence[float]) -> str:
    return " ".join(
        f"{name} {'-' if value is None else format(value, '.1f') + ' ms'}" for name, value in latency(values).items()
    )
