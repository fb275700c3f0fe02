"""The whole story of a rollout, a sandbox or a node: everything in the log that is about it, and what caused that."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from shoal.archive.happenings import Happening, Ref, happening, in_order, indices_of, linked
from shoal.archive.planning import cells_of
from shoal.archive.source import History, message_at
from shoal.bus.protocol import Delivery
from shoal.machine import ranges
from shoal.wire import streams, subjects
from shoal.wire.messages import (
    DeadLetter,
    RolloutConcluded,
    RolloutRejected,
    RolloutSubmitted,
    SnapshotAdded,
)

_AFTERMATH_MS: Final = 600_000
"""How long after a rollout's conclusion something may still be said of it."""
_AT_ONCE: Final = 16
_SUBMITTED: Final = RolloutSubmitted.__name__.encode()
_TAG_WITHIN: Final = 24  # bytes of a message's beginning
_DEEPEST: Final = 8
"""How many causes behind something that is told are told, too, where they are about something else."""
Tell = Callable[[str, int], None]
"""Called with a stream, and how many of its messages were looked at."""


class NoSuchNameError(Exception):
    """Nothing in the history is about such a name; the text is one sentence for people."""


@dataclass(frozen=True, slots=True)
class Story:
    """What happened, in order. `of`: rollout, sandbox or node; `submitted`: the rollout's request."""

    of: str
    name: str
    told: Sequence[Happening]
    submitted: RolloutSubmitted | None = None
    index: int | None = None

    @property
    def by_ref(self) -> dict[Ref, Happening]:
        """What happened, by where it is."""
        return {each.ref: each for each in self.told}


def quiet(_: str, __: int) -> None:
    """Tell nothing."""


async def tell_rollout(history: History, name: str, *, tell: Tell = quiet) -> Story | None:
    """Return the story of a rollout, or of a sandbox `<rollout>-<index>`; None where there is neither."""
    rollout, _, number = name.rpartition("-")
    wanted = {name} | ({rollout} if rollout and number.isdecimal() else set())
    cells = await cells_of(history)
    for cell in sorted({subjects.cell_of(each, cells) for each in wanted}):
        told = await _rollout_log(history, cell, wanted, tell)
        submitted = next((each.message for each in told if isinstance(each.message, RolloutSubmitted)), None)
        if submitted is None:
            continue
        index = int(number) if submitted.rollout != name else None
        if index is not None and index >= submitted.spec.n:
            raise NoSuchNameError(f"rollout {submitted.rollout} has {submitted.spec.n} sandboxes, counted from 0")
        rest = await _elsewhere(history, cell, submitted.rollout, _times(told), tell)
        story = linked([each for each in told if _about(each, submitted.rollout)] + rest)
        if index is not None:
            story = [each for each in story if _of_sandbox(each, index)]
        whole = await with_causes(history, story)
        return Story("rollout" if index is None else "sandbox", name, whole, submitted, index)
    return None


def _about(each: Happening, rollout: str) -> bool:
    if isinstance(each.message, SnapshotAdded):
        return each.message.origin.rpartition("-")[0] == rollout
    return isinstance(each.message, DeadLetter) or getattr(each.message, "rollout", None) == rollout


def _of_sandbox(each: Happening, index: int) -> bool:
    if isinstance(each.message, SnapshotAdded):
        return each.message.origin.endswith(f"-{index}")
    about = indices_of(each.message)
    return not about or bool(ranges.intersect(about, ((index, 1),)))


def _times(told: Sequence[Happening]) -> tuple[int, int | None]:
    """Return when a rollout was submitted, and until when something is said of it."""
    ends = [each.time_ms for each in told if isinstance(each.message, RolloutConcluded | RolloutRejected)]
    return min(each.time_ms for each in told), max(ends) + _AFTERMATH_MS if ends else None


async def _rollout_log(history: History, cell: int, wanted: set[str], tell: Tell) -> list[Happening]:
    """Return what a cell's rollout log has of a rollout, from its request on."""
    needles = [name.encode() for name in wanted]
    found: list[Happening] = []
    until_ms: int | None = None
    stream = streams.rollout(cell).name
    async with aclosing(history.read(stream)) as messages:
        async for delivery in messages:
            if delivery.sequence % 1024 == 0:
                tell(stream, delivery.sequence)
            if until_ms is not None and delivery.time_ms > until_ms:
                break
            if not found and _SUBMITTED not in delivery.payload[:_TAG_WITHIN]:
                continue  # its request comes first
            if any(needle in delivery.payload for needle in needles):
                each = happening(stream, delivery)
                rollout = getattr(each.message, "rollout", None) if each is not None else None
                if each is None or rollout not in wanted:
                    continue
                if not found:
                    wanted, needles = {rollout}, [rollout.encode()]
                found.append(each)
                if isinstance(each.message, RolloutConcluded | RolloutRejected):
                    until_ms = each.time_ms + _AFTERMATH_MS
    return found


async def _elsewhere(
    history: History, cell: int, rollout: str, times: tuple[int, int | None], tell: Tell
) -> list[Happening]:
    """Return what all other logs have of a rollout."""
    names = [streams.placement(cell).name, streams.trajectory(cell).name, streams.snapshot().name, streams.dead().name]
    names += [name for name in await history.streams() if name.startswith("SHOAL_EXECUTOR_")]
    needle = rollout.encode()

    def wanted(delivery: Delivery) -> bool:
        return needle in delivery.payload

    found = await gather_from(history, names, wanted, *times, tell)
    return [each for each in found if _about(each, rollout)]


async def gather_from(
    history: History,
    names: Sequence[str],
    wanted: Callable[[Delivery], bool],
    since_ms: int | None,
    until_ms: int | None,
    tell: Tell,
) -> list[Happening]:
    """Return the messages of several streams that are wanted, by their bytes, and can be decoded."""
    room = asyncio.Semaphore(_AT_ONCE)
    found: list[Happening] = []

    async def one(name: str) -> None:
        async with room, aclosing(history.read(name, since_ms=since_ms)) as messages:
            async for delivery in messages:
                if delivery.sequence % 1024 == 0:
                    tell(name, delivery.sequence)
                if until_ms is not None and delivery.time_ms > until_ms:
                    return
                if wanted(delivery):
                    each = happening(name, delivery)
                    if each is not None:
                        found.append(each)

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(one(name))
    return found


async def with_causes(history: History, told: Sequence[Happening]) -> list[Happening]:
    """Return these with what caused them, and what caused that, where it is about something else."""
    known = {each.ref: each for each in told}
    missing = {each.cause for each in told if each.cause is not None and each.cause not in known}
    for _ in range(_DEEPEST):
        further: set[Ref] = set()
        for ref in sorted(missing):
            delivery = await message_at(history, *ref)
            each = happening(ref.stream, delivery) if delivery is not None else None
            if each is not None:
                known[ref] = replace(each, context=True)
                if each.cause is not None and each.cause not in known:
                    further.add(each.cause)
        if not further:
            break
        missing = further
    return in_order(list(known.values()))
