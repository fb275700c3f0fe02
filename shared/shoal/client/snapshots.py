"""Snapshots in a trainer's hands: taken of live sandboxes, started from, gone back to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from shoal.client.requests import milliseconds, token, truth, whole_number
from shoal.client.unclaimed import released_unless_given
from shoal.wire import messages
from shoal.wire.messages import (
    CommandRefused,
    Hibernate,
    Hibernated,
    SnapshotTaken,
    TakeSnapshot,
)
from shoal.wire.quantities import format_bytes

if TYPE_CHECKING:
    from shoal.client.sandbox import Sandbox

TIMEOUT_S: Final = 330.0
"""Beyond what a node allows itself for the largest disk."""
_MOST_FORKS: Final = 100_000


@dataclass(frozen=True, slots=True, repr=False)
class Snapshot:
    """What sandboxes can be started from: `cluster.rollout(snapshot, n=64)`, from this client or, by `name`, any other.

    `stood_ms`: how long its sandbox stood still for it. `wire` is all of it, as the cluster has it.
    """

    wire: messages.Snapshot
    name: str = ""
    stood_ms: float = 0.0

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Snapshot {self.digest[:16]}{name}, {format_bytes(self.size)}>"

    def __str__(self) -> str:
        return f"snapshot:{self.digest}"

    @property
    def digest(self) -> str:
        """What it is, whatever it is called."""
        return self.wire.digest

    @property
    def parent(self) -> str:
        """The digest of what its sandbox had started from."""
        return self.wire.parent

    @property
    def size(self) -> int:
        """Bytes of what was written on top of its template."""
        return sum(blob.size for blob in self.wire.layers)


async def take(sandbox: "Sandbox", name: str | None, memory: bool | None, id: str | None) -> Snapshot:
    """Keep a live sandbox as it is now."""
    called = "" if name is None else token(name, "name")
    wanted = "" if memory is None else "yes" if truth(memory, "memory") else "no"
    async with sandbox.step(id) as step:
        return await _taken(sandbox, called, wanted, step)


async def _taken(sandbox: "Sandbox", called: str, wanted: str, step: str) -> Snapshot:
    answer = await sandbox.ask(lambda head: TakeSnapshot(*head, called, wanted), TIMEOUT_S, "taking a snapshot", step)
    if not isinstance(answer, SnapshotTaken):
        raise sandbox.unexpected(answer)
    return Snapshot(answer.snapshot, answer.name, answer.took_us / 1000)


async def fork(sandbox: "Sandbox", n: int, timeout: float | str | None, id: str | None) -> "list[Sandbox]":  # noqa: ASYNC109 - the forks' lifetime, kept by the cluster
    """Start copies of a live sandbox as it is now; the parent goes on."""
    whole_number(n, "n", 1, _MOST_FORKS)
    rollout = sandbox.rollout
    asked_ms = milliseconds(timeout, "timeout") or rollout.spec.timeout_ms
    async with sandbox.step(id) as step:
        snapshot = await _taken(sandbox, "", "", step)
        again = msgspec.structs.replace(
            rollout.spec, template=str(snapshot), n=n, timeout_ms=asked_ms, files=()  # they are there already
        )  # fmt: skip
        forks = await rollout.start(again, f"{sandbox.name}:{step}:{snapshot.digest}")
        async with released_unless_given(forks):
            return [each async for each in forks.ready()]


async def hibernate(sandbox: "Sandbox", id: str | None) -> None:
    """Let a live sandbox sleep."""
    async with sandbox.step(id) as step:
        _, told = await sandbox.told(step, lambda head: Hibernate(*head))
        if told is None and sandbox.asleep and sandbox.ended is None:
            return
        answer = await sandbox.ask(lambda head: Hibernate(*head), TIMEOUT_S, "hibernating", step)
    if isinstance(answer, Hibernated):
        sandbox.presence.slept(answer.attempt, sandbox.rollout.link.grace_s)
    elif not (isinstance(answer, CommandRefused) and answer.code == "asleep"):
        raise sandbox.unexpected(answer)
