"""What placement remembers of a rollout, and its orders cut down to some of their sandboxes."""

from dataclasses import dataclass, field

import msgspec

from shoal.machine import ranges
from shoal.wire import messages as m
from shoal_placement.core.nodes import Executor, Node


@dataclass(slots=True)
class Record:
    """One rollout, until its time is up. `seen` and `gone` make what comes twice, or late, harmless."""

    expires_ms: int
    tenant: str = ""
    run: str = ""
    cell: int = 0
    seen: dict[int, m.Ranges] = field(default_factory=dict)  # by attempt
    gone: m.Ranges = ()
    gone_attempts: dict[int, m.Ranges] = field(default_factory=dict)
    all_gone: bool = False
    where: dict[str, None] = field(default_factory=dict)  # executors that were told to start some of it
    spread: dict[str, int] = field(default_factory=dict)  # sandboxes, by the value of its label

    def unwanted(self, attempt: int, indices: m.Ranges) -> m.Ranges:
        """Return those of these sandboxes that were released before."""
        if self.all_gone:
            return indices
        gone = ranges.union(self.gone, self.gone_attempts.get(attempt, ()))
        return ranges.intersect(indices, gone)

    def dump(self) -> "DumpedRecord":
        """Return it as data."""
        return DumpedRecord(
            self.expires_ms, self.tenant, self.run, self.cell, list(self.seen.items()), self.gone,
            list(self.gone_attempts.items()), self.all_gone, list(self.where), list(self.spread.items()),
        )  # fmt: skip


class DumpedRecord(msgspec.Struct, frozen=True, array_like=True):
    """A rollout in a checkpoint."""

    expires_ms: int
    tenant: str
    run: str
    cell: int
    seen: list[tuple[int, m.Ranges]]
    gone: m.Ranges
    gone_attempts: list[tuple[int, m.Ranges]]
    all_gone: bool
    where: list[str]
    spread: list[tuple[str, int]]

    def load(self) -> Record:
        """Return the record."""
        return Record(
            self.expires_ms, self.tenant, self.run, self.cell, dict(self.seen), self.gone, dict(self.gone_attempts),
            self.all_gone, dict.fromkeys(self.where), dict(self.spread),
        )  # fmt: skip


def narrowed(request: m.PlaceRequested, indices: m.Ranges) -> m.PlaceRequested:
    """Return the request for some of its sandboxes only, with their commands."""
    if indices == request.indices:
        return request
    spec = request.spec
    if len(spec.commands) > 1:
        of = dict(zip(ranges.indices(request.indices), spec.commands, strict=True))
        spec = msgspec.structs.replace(spec, commands=tuple(of[index] for index in ranges.indices(indices)))
    return msgspec.structs.replace(request, indices=indices, spec=spec)


def remaining(request: m.PlaceRequested, released: m.ReleaseRequested) -> m.PlaceRequested | None:
    """Return what a release leaves of a waiting request."""
    if request.rollout != released.rollout or released.attempt not in (-1, request.attempt):
        return request
    left = ranges.without(request.indices, released.indices) if released.indices else ()
    return narrowed(request, left) if left else None


def start_order(request: m.PlaceRequested, executor: Executor, node: Node, indices: m.Ranges) -> m.StartSandboxes:
    """Return the order to start some of a request's sandboxes on a node."""
    request = narrowed(request, indices)
    spec = request.spec
    return m.StartSandboxes(
        executor.boot, node.spec.node, request.rollout, request.tenant, request.run, request.cell, request.attempt,
        request.indices, request.snapshot, spec.resources, spec.commands, spec.files, spec.env, spec.user,
        request.deadline_ms, spec.checkpoint_every_ms, spec.checkpoint_commands, spec.idle_after_ms,
        spec.lifetime_ms,
    )  # fmt: skip
