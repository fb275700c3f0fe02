"""The work that floors and Shoal do side by side."""

from dataclasses import dataclass
from enum import StrEnum


class Lifecycle(StrEnum):
    """How a sandbox lives: its command travels along and it ends with that, or it is ready, and released."""

    JOB = "job"
    HELD = "held"


@dataclass(frozen=True, slots=True)
class Work:
    """So many sandboxes through, in groups; `under_way` groups at a time.

    `batch`: how many of a group one node gets: as many as Shoal's placement gives it.
    """

    sandboxes: int
    group: int = 256
    batch: int = 128
    under_way: int = 64
    lifecycle: Lifecycle = Lifecycle.JOB

    @property
    def groups(self) -> int:
        """How many groups that makes: whole ones."""
        return max(self.sandboxes // self.group, 1)

    @property
    def total(self) -> int:
        """How many sandboxes that makes."""
        return self.groups * self.group
