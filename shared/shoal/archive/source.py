"""What was said, wherever it is kept: one protocol for whoever reads history.

A `History` has streams, as a broker keeps them now (`LiveHistory`), as a file or a directory of files has them
(`ArchiveHistory`), or both one after the other (`Joined`). All inherit `tests/conformance/history.py`.
"""

import heapq
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import NamedTuple, Protocol

from shoal.bus.protocol import Delivery
from shoal.machine.checkpoint import Checkpoint


class ArchiveError(Exception):
    """History cannot be read, or not be written down; the text is one sentence for people."""


class DamagedError(ArchiveError):
    """An archive is not as it was written: cut off, altered, or not all there. The text says how far it is good.

    `unfinished`: all there is, is good, and only its end is missing.
    """

    def __init__(self, text: str, *, unfinished: bool = False) -> None:
        super().__init__(text)
        self.unfinished = unfinished


class ConflictError(ArchiveError):
    """An archive cannot be gone on with: it is of another cluster or log, or somebody else writes it."""


class GapError(ArchiveError):
    """Messages between `first` and `last` of a stream are in none of the places that history is read from."""

    def __init__(self, stream: str, first: int, last: int) -> None:
        super().__init__(
            f"messages {first} to {last} of {stream} are neither in the archive nor kept by the broker any more;"
            " read the one or the other alone"
        )
        self.stream = stream
        self.first = first
        self.last = last


class Bounds(NamedTuple):
    """The sequences of the first and the last message there is of a stream; `first` is one more where there is none."""

    first: int
    last: int


NOTHING = Bounds(1, 0)
_MANY = 64
"""Streams that are read at once, each with a reader of its own; of more, a page of messages at a time."""
_PAGE = 512


class History(Protocol):
    """Streams of messages in order, the states of partitions at some moments, and how the cluster is set up."""

    async def streams(self) -> Sequence[str]:
        """Return the names of the streams there are, sorted."""
        ...

    async def bounds(self, stream: str) -> Bounds:
        """Return which messages there are of a stream; `NOTHING` where there never was one, or no such stream."""
        ...

    def read(
        self, stream: str, *, after: int = 0, since_ms: int | None = None, until: int | None = None
    ) -> AsyncGenerator[Delivery, None]:
        """Yield a stream's messages in order, then end.

        Those after sequence `after`, stored at or after `since_ms`, up to sequence `until` (None: the last there is as
        this begins). What is not there any more at the beginning is left out. Raises DamagedError and GapError, having
        yielded what is good, and BusError.
        """
        ...

    async def checkpoints(
        self, partition: str, *, version: int | None = None, until_ms: int | None = None, last: int | None = None
    ) -> Sequence[Checkpoint]:
        """Return states of a partition (`scheduler.0`, `placement.0`, `snapshot`), the oldest first.

        Only those of this version, of messages stored until then, and of those the last so many: a state may be large.
        """
        ...

    def states(self, partition: str) -> AsyncGenerator[Checkpoint, None]:
        """Yield all states of a partition, the oldest first, one in memory at a time."""
        ...

    async def values(self, bucket: str) -> Mapping[str, bytes]:
        """Return what a bucket holds, by key, as newest as it is known: `SHOAL_CLUSTER`, and nothing for others."""
        ...

    async def close(self) -> None:
        """Let go of what is open. Whoever gave a bus keeps it."""
        ...


async def merged(
    history: History, names: Sequence[str], *, since_ms: int | None = None, until_ms: int | None = None
) -> AsyncGenerator[tuple[str, Delivery], None]:
    """Yield the messages of several streams by their time, with the stream's name; of one stream, in its order.

    Those stored at or after `since_ms` and until `until_ms`. Of many streams only some messages of each are at hand.
    """
    async with AsyncExitStack() as open_parts:
        read = _paged if len(names) > _MANY else _all
        parts = [await open_parts.enter_async_context(aclosing(read(history, name, since_ms))) for name in names]
        heads: list[tuple[int, int, Delivery]] = []
        for number, part in enumerate(parts):
            first = await anext(part, None)
            if first is not None:
                heads.append((first.time_ms, number, first))
        heapq.heapify(heads)
        while heads:
            time_ms, number, delivery = heads[0]
            if until_ms is not None and time_ms > until_ms:
                return
            yield names[number], delivery
            following = await anext(parts[number], None)
            if following is None:
                heapq.heappop(heads)
            else:
                # Brokers' clocks differ: a stream's own order goes before its times.
                heapq.heapreplace(heads, (max(following.time_ms, time_ms), number, following))


def _all(history: History, stream: str, since_ms: int | None) -> AsyncGenerator[Delivery, None]:
    return history.read(stream, since_ms=since_ms)


async def _paged(history: History, stream: str, since_ms: int | None) -> AsyncGenerator[Delivery, None]:
    """Yield a stream's messages with no reader open meanwhile: whoever reads ahead, reads ahead of each stream."""
    first, last = await history.bounds(stream)
    at = first - 1
    while at < last:
        async with aclosing(history.read(stream, after=at, since_ms=since_ms, until=last)) as found:
            page = [delivery async for delivery in _first(found, _PAGE)]
        for delivery in page:
            yield delivery
        if len(page) < _PAGE:
            return
        at, since_ms = page[-1].sequence, None


async def _first(found: AsyncGenerator[Delivery, None], count: int) -> AsyncGenerator[Delivery, None]:
    async for delivery in found:
        yield delivery
        count -= 1
        if not count:
            return


async def message_at(history: History, stream: str, sequence: int) -> Delivery | None:
    """Return one message; None where it is not there."""
    async with aclosing(history.read(stream, after=sequence - 1, until=sequence)) as found:
        async for delivery in found:
            return delivery
    return None
