"""Effects on their way out: published at once, in order, and seen stored in that order, a batch at a time."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from shoal.bus.protocol import Bus, Delivery, Stored, TooLargeError
from shoal.machine.core import Cause
from shoal.runtime.dead import dead_letter
from shoal.runtime.steady import SteadyPublisher

BATCHES_AHEAD: Final = 8
"""How many batches may wait for their effects to be stored before no more is folded."""


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """One effect as it is published."""

    subject: str
    payload: bytes
    id: str


class Folded(msgspec.Struct, frozen=True):
    """A message that was folded, and what follows from it."""

    cause: Cause
    effects: tuple[Outgoing, ...]


@dataclass(slots=True)
class _Batch:
    folded: Sequence[Folded]
    futures: "list[asyncio.Future[Stored]]" = field(default_factory=list)


class Outlet:
    """Publishes what follows from messages. `done` is the last sequence whose effects are all stored."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._publisher = SteadyPublisher(bus, name)
        self._name = name
        self._batches: deque[_Batch] = deque()
        self._some = asyncio.Event()
        self._room = asyncio.Event()
        self.progress = asyncio.Event()
        self.done = 0
        self.published = 0
        self.dead = 0

    @property
    def full(self) -> bool:
        """Whether folding should pause."""
        return len(self._batches) >= BATCHES_AHEAD

    async def room(self) -> None:
        """Wait until there is less under way than a moment ago."""
        self._room.clear()
        await self._room.wait()

    @property
    def empty(self) -> bool:
        """Whether everything is stored."""
        return not self._batches

    def let_out(self, folded: Sequence[Folded]) -> None:
        """Publish what follows from these messages, in order."""
        batch = _Batch(folded)
        for each in folded:
            for effect in each.effects:
                future = self._publisher.publish(effect.subject, effect.payload, effect.id)
                future.add_done_callback(_retrieve)
                batch.futures.append(future)
        self._batches.append(batch)
        self._some.set()

    def take_back(self) -> list[Folded]:
        """Return what is not known to be stored: another process sees to it now."""
        left = [each for batch in self._batches for each in batch.folded]
        self._batches.clear()
        self._room.set()
        return left

    async def run(self) -> None:
        """See every effect stored, for ever."""
        while True:
            while not self._batches:
                self._some.clear()
                await self._some.wait()
            batch = self._batches[0]
            effects = [(effect, each.cause) for each in batch.folded for effect in each.effects]
            for future, (effect, cause) in zip(batch.futures, effects, strict=True):
                await self._see_stored(future, effect, cause)
            if self._batches and self._batches[0] is batch:  # else it was taken back meanwhile
                self._batches.popleft()
                self.done = batch.folded[-1].cause.sequence
                self.progress.set()
                self._room.set()

    async def _see_stored(self, future: "asyncio.Future[Stored]", effect: Outgoing, cause: Cause) -> None:
        try:
            await future
            self.published += 1
        except TooLargeError as error:
            whole = Delivery(effect.subject, effect.payload, cause.sequence, cause.time_ms, effect.id)
            self.dead += 1
            await dead_letter(self._bus, whole, cause, f"{self._name}:{effect.id}", str(error))


def _retrieve(future: "asyncio.Future[Stored]") -> None:
    """Note that a failure is dealt with when its turn comes; a crash before that is no news."""
    if not future.cancelled():
        future.exception()
