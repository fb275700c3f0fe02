"""The queue: rollouts with sandboxes to be given out, in lines of those that are alike in who asks and what is wanted.

All in a line are of one tenant, run, priority and want, so what holds up its first holds up all of it; what has to be
looked at for a decision are the lines, and not the rollouts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from shoal_scheduler.core.room import Want
from shoal_scheduler.core.state import Rollout

Key = tuple[str, int, str, Want, bool]
"""tenant, priority, run, want, and whether it is another cell's"""


@dataclass(slots=True)
class Line:
    """Rollouts, first come first served; those with sandboxes to be started again before all others."""

    tenant: str
    run: str
    priority: int
    want: Want
    guests: bool = False
    urgent: dict[str, None] = field(default_factory=dict)
    fresh: dict[str, None] = field(default_factory=dict)

    @property
    def key(self) -> "Key":
        """What is alike in it."""
        return (self.tenant, self.priority, self.run, self.want, self.guests)

    @property
    def first(self) -> str:
        """The rollout whose turn it is."""
        return next(iter(self.urgent or self.fresh))


class Waiting:
    """See the module."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[Key, Line]] = {}  # of each tenant
        self._where: dict[str, tuple[Line, bool]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[tuple[str, bool]]:
        """Yield the names, and whether they are urgent; added in this order, they make the same queue."""
        for lines in self.lines.values():
            for line in lines.values():
                yield from ((name, True) for name in line.urgent)
                yield from ((name, False) for name in line.fresh)

    def line(self, name: str) -> Line:
        """Return the line that a rollout waits in."""
        return self._where[name][0]

    def each(self) -> Iterator[Line]:
        """Yield the lines."""
        for lines in self.lines.values():
            yield from lines.values()

    def add(self, rollout: Rollout, *, urgent: bool) -> None:
        """Let a rollout wait, at the end of its line; one that waits already stays where it is unless it is urgent."""
        name = rollout.request.rollout
        if name in self._where:
            if self._where[name][1] or not urgent:
                return
            self.remove(name)
        request = rollout.request
        guests = rollout.guest is not None
        key = (request.tenant, request.spec.priority, request.run, rollout.want, guests)
        lines = self.lines.setdefault(request.tenant, {})
        line = lines.get(key)
        if line is None:
            line = lines[key] = Line(request.tenant, request.run, request.spec.priority, rollout.want, guests)
        (line.urgent if urgent else line.fresh)[name] = None
        self._where[name] = (line, urgent)

    def remove(self, name: str) -> None:
        """Let a rollout wait no longer."""
        if name not in self._where:
            return
        line, urgent = self._where.pop(name)
        del (line.urgent if urgent else line.fresh)[name]
        if not line.urgent and not line.fresh:
            lines = self.lines[line.tenant]
            del lines[line.key]
            if not lines:
                del self.lines[line.tenant]
