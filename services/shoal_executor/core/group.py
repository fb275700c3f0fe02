"""The sandboxes of one start order, and of later ones for the same rollout, attempt and node.

Which of them are in which phase are the bits of three numbers: what happens to many at once costs as much as what
happens to one, and a sandbox takes a few bits of memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from shoal.machine import ranges
from shoal.wire.messages import Command, Ranges, Snapshot, StartSandboxes
from shoal_executor.core.effects import Phase


@dataclass(slots=True)
class Group:
    """Those that are not gone yet. `order` is the first; what differs with later ones is kept by index.

    Commands travel with all sandboxes of a rollout, or with none.
    """

    order: StartSandboxes
    starting: int = 0
    live: int = 0
    ending: int = 0
    commands: dict[int, Command] = field(default_factory=dict)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    since_ms: dict[int, int] = field(default_factory=dict)  # when they became ready, where their lifetime is limited
    due_ms: int = 0  # its deadline; these are times as this machine counts them
    ready_by_ms: dict[int, int] = field(default_factory=dict)  # as orders have it, where it is not the first's
    late: int = 0  # those that were ready later

    @property
    def here(self) -> int:
        """Return all that are not gone."""
        return self.starting | self.live | self.ending

    @property
    def runs_jobs(self) -> bool:
        """Return whether a command travelled along."""
        return bool(self.order.commands)

    @property
    def _default(self) -> tuple[Command, ...]:
        """Return the command of all those that have none of their own."""
        return self.order.commands if len(self.order.commands) == 1 else ()

    def phase(self, index: int) -> Phase | None:
        """Return where a sandbox is in its life; None where it is not here."""
        bit = 1 << index
        if self.live & bit:
            return Phase.LIVE
        if self.starting & bit:
            return Phase.STARTING
        return Phase.ENDING if self.ending & bit else None

    def phases(self) -> Iterator[tuple[int, Phase]]:
        """Yield each sandbox that is not gone, and where it is in its life."""
        for phase, bits in ((Phase.STARTING, self.starting), (Phase.LIVE, self.live), (Phase.ENDING, self.ending)):
            for index in ranges.indices(ranges.unmask(bits)):
                yield index, phase

    def accept(self, order: StartSandboxes, wanted: int) -> None:
        """Take up these sandboxes of an order."""
        if order.ready_by_ms != self.order.ready_by_ms:  # they were woken at another time
            self.ready_by_ms.update(dict.fromkeys(ranges.indices(ranges.unmask(wanted)), order.ready_by_ms))
        if order.commands and order.commands != self._default:
            commands = order.commands if len(order.commands) > 1 else order.commands * ranges.count(order.indices)
            paired = zip(ranges.indices(order.indices), commands, strict=True)
            self.commands.update((index, command) for index, command in paired if wanted >> index & 1)
        if order.snapshot != self.order.snapshot:
            self.snapshots.update(dict.fromkeys(ranges.indices(ranges.unmask(wanted)), order.snapshot))
        self.starting |= wanted

    def commands_of(self, bits: int) -> tuple[Command, ...]:
        """Return the one command of all these, or that of each."""
        if not self.commands:
            return self._default
        found = [self.commands.get(index) for index in ranges.indices(ranges.unmask(bits))]
        return tuple(command or self._default[0] for command in found)

    def orders_of(self, bits: int) -> Iterator[tuple[StartSandboxes, Ranges]]:
        """Yield the order as it is for some of these, and for which."""
        by_order: dict[tuple[str, int], tuple[StartSandboxes, int]] = {}
        for index in self.snapshots:
            if bits >> index & 1:
                bits ^= 1 << index
                order = self.order_of(index)
                what = order.snapshot.digest, order.ready_by_ms
                known = by_order.get(what, (order, 0))
                by_order[what] = (order, known[1] | 1 << index)
        if bits:
            yield self.order, ranges.unmask(bits)
        for order, some in by_order.values():
            yield order, ranges.unmask(some)

    def order_of(self, index: int) -> StartSandboxes:
        """Return the order as it is for one sandbox."""
        snapshot = self.snapshots.get(index)
        if snapshot is None:
            return self.order
        by_ms = self.ready_by_ms.get(index, self.order.ready_by_ms)
        return msgspec.structs.replace(self.order, snapshot=snapshot, ready_by_ms=by_ms)

    def here_ms(self, broker_ms: int) -> int:
        """Return a moment of the broker's clock as this machine counts it; 0, which is none, stays 0."""
        return broker_ms and broker_ms - self.order.deadline_ms + self.due_ms

    def came(self, up: int, since_ms: int) -> None:
        """Note that these are ready, since then: which of them are too late for half of their rollout's time."""
        self.late |= self._not_by(up, since_ms - 1)

    def late_at_its_end(self) -> int:
        """Return those that have less than half of their rollout's time, now that it is up."""
        return self.late | self._not_by(self.starting, self.due_ms - 1)

    def _not_by(self, bits: int, last_ms: int) -> int:
        """Return those of these that had to be ready at that moment or before; of some it may be that nobody said."""
        found = bits if 0 < self.here_ms(self.order.ready_by_ms) <= last_ms else 0
        for index, by_ms in self.ready_by_ms.items():
            found &= ~(1 << index)
            if bits >> index & 1 and 0 < self.here_ms(by_ms) <= last_ms:
                found |= 1 << index
        return found

    def forget(self, gone: int) -> None:
        """Nothing is left of these."""
        self.starting &= ~gone
        self.live &= ~gone
        self.ending &= ~gone
        self.late &= ~gone
        for kept in (self.commands, self.snapshots, self.since_ms, self.ready_by_ms):
            for index in [index for index in kept if gone >> index & 1]:
                del kept[index]


class DumpedGroup(msgspec.Struct, frozen=True, array_like=True):
    """A group as data."""

    order: StartSandboxes
    starting: Ranges
    live: Ranges
    ending: Ranges
    commands: list[tuple[int, Command]]
    snapshots: list[tuple[int, Snapshot]]
    since_ms: list[tuple[int, int]]
    due_ms: int
    ready_by_ms: list[tuple[int, int]]
    late: Ranges

    def load(self) -> Group:
        """Return the group that was dumped."""
        starting, live, ending = (ranges.mask(indices) for indices in (self.starting, self.live, self.ending))
        kept = (dict(self.commands), dict(self.snapshots), dict(self.since_ms))
        by_ms, late = dict(self.ready_by_ms), ranges.mask(self.late)
        return Group(self.order, starting, live, ending, *kept, self.due_ms, by_ms, late)


def dumped(group: Group) -> DumpedGroup:
    """Return a group as data."""
    starting, live, ending = (ranges.unmask(bits) for bits in (group.starting, group.live, group.ending))
    kept = (list(group.commands.items()), list(group.snapshots.items()), list(group.since_ms.items()))
    by_ms = (group.due_ms, list(group.ready_by_ms.items()))
    return DumpedGroup(group.order, starting, live, ending, *kept, *by_ms, ranges.unmask(group.late))
