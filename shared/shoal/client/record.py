"""The stories of a rollout's sandboxes, read from the trajectory, and told on while that is followed."""

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from shoal.bus.protocol import BusError
from shoal.client.errors import Timeout
from shoal.client.feed import decoded, history
from shoal.client.fold import RolloutFold
from shoal.client.story import Story
from shoal.machine import ranges
from shoal.wire import streams, subjects
from shoal.wire.messages import AnyMessage, SandboxesBegan

if TYPE_CHECKING:
    from shoal.client.link import Link

_LATE_MS: Final = 300_000
"""How long after a rollout's end its executors may still have something to say of it."""
_SKEW_MS: Final = 60_000
"""By how much the clocks of two brokers may differ."""


class Record:
    """What the trajectory says of one rollout."""

    def __init__(self, rollout: str) -> None:
        self.rollout = rollout
        self._stories: dict[int, Story] = {}
        self._changed = asyncio.Event()

    def story(self, index: int) -> Story:
        """Return one sandbox's story, as far as it was told."""
        return self._stories.setdefault(index, Story())

    def take(self, message: AnyMessage, time_ms: int) -> None:
        """Take what the trajectory says; what is another rollout's is passed over."""
        if getattr(message, "rollout", None) != self.rollout:
            return
        if isinstance(message, SandboxesBegan):
            for index in ranges.indices(message.indices):
                self.story(index).take(message, time_ms)
        elif isinstance(at := getattr(message, "index", None), int):
            self.story(at).take(message, time_ms)
        self._changed.set()
        self._changed = asyncio.Event()

    async def known(self, index: int, attempt: int, within_s: float) -> Story:
        """Return a sandbox's story, once it is told what this attempt of it is: that comes with its readiness."""
        story = self.story(index)
        try:
            async with asyncio.timeout(within_s):
                while not story.knows(attempt):
                    await self._changed.wait()
        except TimeoutError:
            text = f"the trajectory does not tell what sandbox {self.rollout}-{index} is, within {within_s:g} s"
            raise Timeout(f"{text}; is its executor older than this client? try again") from None
        return story


async def recorded(link: "Link", fold: RolloutFold) -> Record:
    """Return what the trajectory says of a rollout, and have the link tell it on. Raises a ShoalError."""
    cell = subjects.cell_of(fold.rollout, link.cells)
    record = Record(fold.rollout)
    await link.follow_answers(cell, fold.tenant, fold.run)
    if fold.concluded is None and fold.rejected is None:
        link.records[fold.rollout] = record  # what comes now and what came before may be told in any order
    subject = subjects.trajectory(cell, fold.tenant, fold.run)
    try:
        since = max((fold.submitted_ms or 0) - _SKEW_MS, 0)
        async with aclosing(history(link.bus, streams.trajectory(cell).name, since_ms=since, only=[subject])) as found:
            async for delivery in found:
                if fold.concluded_ms is not None and delivery.time_ms > fold.concluded_ms + _LATE_MS:
                    break
                message = decoded(delivery)
                if message is not None:
                    record.take(message, delivery.time_ms)
    except BusError as error:
        raise link.explained(error) from error
    return record
