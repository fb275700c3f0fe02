"""Several histories as one: what the last of them does not have any more is read from those before it."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from shoal.archive.archived import ArchiveHistory
from shoal.archive.source import NOTHING, Bounds, GapError, History
from shoal.bus.protocol import Delivery
from shoal.machine.checkpoint import Checkpoint


class Joined:
    """Histories of one cluster, the oldest first: archives, and then what its broker keeps."""

    def __init__(self, *parts: History) -> None:
        self._parts = parts

    async def partial(self) -> bool:
        """Return whether any of them leaves messages out."""
        return any([await part.partial() for part in self._parts if isinstance(part, ArchiveHistory | Joined)])

    async def streams(self) -> Sequence[str]:
        """Return the names of all streams that any of them has."""
        return sorted({name for part in self._parts for name in await part.streams()})

    async def bounds(self, stream: str) -> Bounds:
        """Return the first and the last message that any of them has."""
        found = [await part.bounds(stream) for part in self._parts]
        known = [each for each in found if each != NOTHING]
        kept = [each.first for each in known if each.first <= each.last]
        if not known:
            return NOTHING
        last = max(each.last for each in known)
        return Bounds(min(kept, default=last + 1), last)

    async def read(
        self, stream: str, *, after: int = 0, since_ms: int | None = None, until: int | None = None
    ) -> AsyncGenerator[Delivery, None]:
        """Yield a stream's messages in order, without a gap or a copy, then end; see the protocol."""
        first, last = await self.bounds(stream)
        last = last if until is None else min(until, last)
        at = max(after, first - 1)
        while at < last:
            part, up_to = await self._next(stream, at, last)
            async with aclosing(part.read(stream, after=at, since_ms=since_ms, until=up_to)) as found:
                async for delivery in found:
                    if delivery.sequence > at + 1 and await self._went(part, stream, at):
                        break
                    at = delivery.sequence
                    yield delivery
                else:
                    if at < up_to and not await self._went(part, stream, at):
                        at = up_to  # the rest is older than what is wanted

    async def _went(self, part: History, stream: str, at: int) -> bool:
        """Return whether what follows sequence `at`, which was there a moment ago, is not there any more."""
        return not isinstance(part, ArchiveHistory) and (await part.bounds(stream)).first > at + 1

    async def _next(self, stream: str, at: int, last: int) -> tuple[History, int]:
        """Return who has the message after sequence `at`, the latest of them, and how far to read there."""
        beyond = last + 1
        for part in reversed(self._parts):
            first, end = await part.bounds(stream)
            if first <= at + 1 <= end:
                return part, min(end, last, beyond - 1)
            if at + 1 < first <= end:
                beyond = min(beyond, first)
        for part in self._parts:
            if isinstance(part, ArchiveHistory):
                await part.refresh()  # it may have been written meanwhile
                first, end = await part.bounds(stream)
                if first <= at + 1 <= end:
                    return part, min(end, last, beyond - 1)
        raise GapError(stream, at + 1, min(beyond - 1, last))

    async def checkpoints(
        self, partition: str, *, version: int | None = None, until_ms: int | None = None, last: int | None = None
    ) -> Sequence[Checkpoint]:
        """Return all states that any of them has, the oldest first, each once."""
        found: dict[int, Checkpoint] = {}
        for part in self._parts:
            for each in await part.checkpoints(partition, version=version, until_ms=until_ms, last=last):
                found[each.sequence] = each
        kept = [found[sequence] for sequence in sorted(found)]
        return kept if last is None else kept[max(len(kept) - last, 0) :]

    async def states(self, partition: str) -> AsyncGenerator[Checkpoint, None]:
        """Yield all states that any of them has, the oldest first, each once."""
        reached = -1
        for part in self._parts:
            async with aclosing(part.states(partition)) as found:
                async for each in found:
                    if each.sequence > reached:
                        reached = each.sequence
                        yield each

    async def values(self, bucket: str) -> Mapping[str, bytes]:
        """Return what the last of them that knows the bucket has."""
        for part in reversed(self._parts):
            if found := await part.values(bucket):
                return found
        return {}

    async def close(self) -> None:
        """Close all of them."""
        for part in self._parts:
            await part.close()
