"""What placement remembers of a rollout, and its orders cut down to some of their sandboxes."""

from dataclasses import dataclass

import msgspec

from shoal.machine import ranges
from shoal.wire import messages as m
from shoal_placement.core.nodes import Executor, Node

ByAttempt = tuple[tuple[int, m.Ranges], ...]
"""Indices by attempt. There is one attempt almost always, so a dict of them would be most of what a record takes."""


@dataclass(slots=True)
class Record:
    """One rollout, until it is given up as a whole or its time is up.

    `seen` and `gone` make what comes twice, or late, harmless. Hundreds of thousands are remembered: it is small.
    """

    expires_ms: int
    tenant: str = ""
    run: str = ""
    cell: int = 0
    seen: ByAttempt = ()
    gone: m.Ranges = ()
    gone_attempts: ByAttempt = ()
    where: tuple[str, ...] = ()  # executors that were told to start some of it

    def unwanted(self, attempt: int, indices: m.Ranges) -> m.Ranges:
        """Return those of these sandboxes that were released before."""
        return ranges.intersect(indices, ranges.union(self.gone, of_attempt(self.gone_attempts, attempt)))

    def dump(self) -> "DumpedRecord":
        """Return it as data."""
        return DumpedRecord(
            self.expires_ms, self.tenant, self.run, self.cell, self.seen, self.gone, self.gone_attempts, self.where,
        )  # fmt: skip


def of_attempt(known: ByAttempt, attempt: int) -> m.Ranges:
    """Return what is known of an attempt."""
    return next((indices for number, indices in known if number == attempt), ())


def with_attempt(known: ByAttempt, attempt: int, more: m.Ranges) -> ByAttempt:
    """Return it with more of an attempt."""
    others = tuple(each for each in known if each[0] != attempt)
    return (*others, (attempt, ranges.union(of_attempt(known, attempt), more)))


class DumpedRecord(msgspec.Struct, frozen=True, array_like=True):
    """A rollout in a checkpoint."""

    expires_ms: int
    tenant: str
    run: str
    cell: int
    seen: ByAttempt
    gone: m.Ranges
    gone_attempts: ByAttempt
    where: tuple[str, ...]

    def load(self) -> Record:
        """Return the record."""
        return Record(
            self.expires_ms, self.tenant, self.run, self.cell, self.seen, self.gone, self.gone_attempts, self.where,
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
        spec.lifetime_ms, request.ready_by_ms,
    )  # fmt: skip
