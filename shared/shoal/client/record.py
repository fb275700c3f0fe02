"""The stories of a rollout's sandboxes, read from the trajectory, and told on while that is followed."""

import asyncio
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from shoal.bus.protocol import BusError
from shoal.client.errors import BadRequest, PlatformTimeout
from shoal.client.feed import decoded, history
from shoal.client.fold import RolloutFold
from shoal.client.story import Story, Told
from shoal.machine import ranges
from shoal.wire import streams, subjects
from shoal.wire.asked import Answer
from shoal.wire.messages import AnyMessage, CommandFinished, FileManaged, FileRead, FileWritten, SandboxesBegan

if TYPE_CHECKING:
    from shoal.client.link import Link

_LATE_MS: Final = 300_000
"""How long after a rollout's end its executors may still have something to say of it."""
_KEPT_BYTES: Final = 64 * 1024**2
_ENTRY: Final = 256
"""Bytes that an entry of a directory takes, about."""
_SKEW_MS: Final = 60_000
"""By how much the clocks of two brokers may differ."""


class Memory:
    """What came of steps, of all records of a connection together: beyond so many bytes the oldest are let go."""

    def __init__(self, limit: int = _KEPT_BYTES) -> None:
        self._limit = limit
        self._kept: deque[tuple[Told, int]] = deque()
        self._bytes = 0

    def keep(self, told: Told) -> None:
        """Keep what came of a step, for as long as there is room."""
        weight = _weight(told.answer)
        self._kept.append((told, weight))
        self._bytes += weight
        while self._bytes > self._limit:
            oldest, weight = self._kept.popleft()
            oldest.answer = None
            self._bytes -= weight


class Record:
    """What the trajectory says of one rollout: all that was done in it, and what came of that, in memory or in the log.

    `stream`: the name of the trajectory.
    """

    def __init__(self, link: "Link", rollout: str, stream: str) -> None:
        self.rollout = rollout
        self._link = link
        self._stream = stream
        self._stories: dict[int, Story] = {}
        self._changed = asyncio.Event()

    def story(self, index: int) -> Story:
        """Return one sandbox's story, as far as it was told."""
        return self._stories.setdefault(index, Story())

    def take(self, message: AnyMessage, time_ms: int, sequence: int) -> None:
        """Take what the trajectory says; what is another rollout's is passed over."""
        if getattr(message, "rollout", None) != self.rollout:
            return
        if isinstance(message, SandboxesBegan):
            for index in ranges.indices(message.indices):
                self.story(index).take(message, time_ms)
        elif isinstance(at := getattr(message, "index", None), int):
            told = self.story(at).take(message, time_ms, sequence)
            if told is not None:
                self._link.memory.keep(told)
        self._changed.set()
        self._changed = asyncio.Event()

    async def answer(self, told: Told) -> Answer:
        """Return what came of a step. Raises a ShoalError."""
        if told.answer is not None:
            return told.answer
        try:
            read = history(self._link.bus, self._stream, after=told.sequence - 1, until=told.sequence)
            async with aclosing(read) as found:
                async for delivery in found:
                    message = decoded(delivery)
                    if isinstance(message, Answer) and message.id == told.id:
                        told.answer = message
                        self._link.memory.keep(told)
                        return message
        except BusError as error:
            raise self._link.explained(error) from error
        raise BadRequest("id", f"step {told.id} was carried out before, and no log has its result any longer")

    async def known(self, index: int, attempt: int, within_s: float) -> Story:
        """Return a sandbox's story, once it is told what this attempt of it is: that comes with its readiness."""
        story = self.story(index)
        try:
            async with asyncio.timeout(within_s):
                while not story.knows(attempt):
                    await self._changed.wait()
        except TimeoutError:
            text = f"the trajectory does not tell what sandbox {self.rollout}-{index} is, within {within_s:g} s"
            raise PlatformTimeout(f"{text}; is its executor older than this client? try again") from None
        return story


async def recorded(link: "Link", fold: RolloutFold) -> Record:
    """Return what the trajectory says of a rollout, and have the link tell it on. Raises a ShoalError."""
    cell = subjects.cell_of(fold.rollout, link.cells)
    record = Record(link, fold.rollout, streams.trajectory(cell).name)
    await link.follow_answers(cell, fold.tenant, fold.run)
    link.tell(record)  # what comes now and what came before may be told in any order
    subject = subjects.trajectory(cell, fold.tenant, fold.run)
    try:
        since = max((fold.submitted_ms or 0) - _SKEW_MS, 0)
        async with aclosing(history(link.bus, streams.trajectory(cell).name, since_ms=since, only=[subject])) as found:
            async for delivery in found:
                if fold.concluded_ms is not None and delivery.time_ms > fold.concluded_ms + _LATE_MS:
                    break
                message = decoded(delivery)
                if message is not None:
                    record.take(message, delivery.time_ms, delivery.sequence)
    except BaseException as error:
        link.tell_no_more(record)
        if isinstance(error, BusError):
            raise link.explained(error) from error
        raise
    if fold.concluded is not None or fold.rejected is not None:
        link.tell_no_more(record)
    return record


def _weight(answer: Answer | None) -> int:
    size = 1024
    if isinstance(answer, CommandFinished):
        size += len(answer.result.stdout) + len(answer.result.stderr) + len(answer.command.stdin)
    elif isinstance(answer, FileRead | FileWritten):
        size += len(answer.data)
    elif isinstance(answer, FileManaged):
        size += sum(_ENTRY + len(entry.name) for entry in answer.entries)
    return size
