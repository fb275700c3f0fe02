"""Effects on their way out: published at once, in order, and seen stored in that order, a batch at a time."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from shoal.bus.protocol import Bus, Delivery, Stored, TooLargeError
from shoal.machine.core import Cause
from shoal.runtime.dead import dead_letter
from shoal.runtime.steady import Outcome, SteadyPublisher

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


@dataclass(slots=True, eq=False)
class _Batch:
    """`left`: how many of its effects are not known to be stored."""

    folded: Sequence[Folded]
    left: int


class Outlet:
    """Publishes what follows from messages. `done` is the last sequence whose effects are all stored.

    `done_ms`: when the broker stored that message; 0 where it was another process that was done with it.
    """

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._publisher = SteadyPublisher(bus, name)
        self._name = name
        self._batches: deque[_Batch] = deque()
        self._refused: asyncio.Queue[tuple[_Batch, Outgoing, Cause, BaseException]] = asyncio.Queue()
        self._room = asyncio.Event()
        self.progress = asyncio.Event()
        self.done = 0
        self.done_ms = 0
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
        batch = _Batch(folded, sum(len(each.effects) for each in folded))
        self._batches.append(batch)
        for each in folded:
            for effect in each.effects:
                settled = partial(self._settled, batch, effect, each.cause)
                self._publisher.send(effect.subject, effect.payload, effect.id, settled)
        self._go_on()

    def _settled(self, batch: _Batch, effect: Outgoing, cause: Cause, outcome: Outcome) -> None:
        if isinstance(outcome, Stored):
            self.published += 1
            batch.left -= 1
            self._go_on()
        elif outcome is not None:
            self._refused.put_nowait((batch, effect, cause, outcome))

    def _go_on(self) -> None:
        """Note how far everything is stored, in order."""
        while self._batches and not self._batches[0].left:
            last = self._batches.popleft().folded[-1].cause
            self.done, self.done_ms = last.sequence, last.time_ms
            self.progress.set()
            self._room.set()

    def take_back(self) -> list[Folded]:
        """Return what is not known to be stored: another process sees to it now."""
        left = [each for batch in self._batches for each in batch.folded]
        self._batches.clear()
        self._room.set()
        return left

    async def run(self) -> None:
        """See that a letter tells of each effect that no stream can take, for ever. Raises what is no such refusal."""
        while True:
            batch, effect, cause, error = await self._refused.get()
            if not isinstance(error, TooLargeError):
                raise error
            whole = Delivery(effect.subject, effect.payload, cause.sequence, cause.time_ms, effect.id)
            self.dead += 1
            await dead_letter(self._bus, whole, cause, f"{self._name}:{effect.id}", str(error))
            batch.left -= 1
            self._go_on()
