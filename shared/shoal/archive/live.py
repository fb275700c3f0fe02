"""History as a broker keeps it now."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from shoal.archive.source import NOTHING, Bounds
from shoal.bus.ending import end
from shoal.bus.protocol import Bus, Delivery, NoStreamError, Reader
from shoal.machine.checkpoint import (
    Checkpoint,
    Generation,
    Manifest,
    UnusableCheckpointError,
    piece_keys,
    unpack,
    unseal_any,
)
from shoal.wire.streams import CHECKPOINT_BUCKET, CLUSTER_BUCKET, is_log

_BATCH: Final = 4096
_AT_ONCE: Final = 64
_LOOK_S: Final = 5.0
_OURS: Final = "SHOAL_"


class LiveHistory:
    """What the streams of a cluster keep. The bus stays whoever's it is."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def streams(self) -> Sequence[str]:
        """Return the names of the cluster's streams that are logs."""
        return [name for name in await self._bus.streams(_OURS) if is_log(name)]

    async def bounds(self, stream: str) -> Bounds:
        """Return which messages a stream keeps."""
        try:
            last = await self._bus.last_sequence(stream)
            return Bounds(await self._bus.first_sequence(stream), last)
        except NoStreamError:
            return NOTHING

    async def all_bounds(self) -> Mapping[str, Bounds]:
        """Return which messages each stream that is a log keeps, all at one moment."""
        found = await self._bus.streams(_OURS)
        return {name: Bounds(kept.first, kept.last) for name, kept in found.items() if is_log(name)}

    async def read(
        self, stream: str, *, after: int = 0, since_ms: int | None = None, until: int | None = None
    ) -> AsyncGenerator[Delivery, None]:
        """Yield a stream's messages in order, then end; see the protocol."""
        try:
            async with aclosing(kept(self._bus, stream, after=after, since_ms=since_ms, until=until)) as found:
                async for delivery in found:
                    yield delivery
        except NoStreamError:
            return

    async def checkpoints(
        self, partition: str, *, version: int | None = None, until_ms: int | None = None, last: int | None = None
    ) -> Sequence[Checkpoint]:
        """Return the states of a partition that can be loaded now: the newest and the one before it."""
        found: list[Checkpoint] = []
        for generation in await self.generations(partition):
            if last is not None and len(found) >= last:
                break
            if until_ms is None or generation.time_ms <= until_ms:
                checkpoint = await self.checkpoint(partition, generation)
                if checkpoint is not None and version in (None, checkpoint.version):
                    found.insert(0, checkpoint)
        return found

    async def states(self, partition: str) -> AsyncGenerator[Checkpoint, None]:
        """Yield the states of a partition that can be loaded now, the older one first."""
        for generation in reversed(await self.generations(partition)):
            checkpoint = await self.checkpoint(partition, generation)
            if checkpoint is not None:
                yield checkpoint

    async def generations(self, partition: str) -> Sequence[Generation]:
        """Return which states of a partition are stored, the newest first."""
        entry = await self._bus.get(CHECKPOINT_BUCKET, partition)
        try:
            return msgspec.json.decode(entry.value, type=Manifest).generations if entry is not None else ()
        except msgspec.DecodeError:
            return ()

    async def checkpoint(self, partition: str, generation: Generation) -> Checkpoint | None:
        """Return a stored state; None where it was replaced meanwhile, or cannot be used."""
        entries = [await self._bus.get(CHECKPOINT_BUCKET, key) for key in piece_keys(partition, generation)]
        packed = b"".join(entry.value for entry in entries if entry is not None)
        try:
            return None if None in entries else await asyncio.to_thread(_opened, packed)
        except UnusableCheckpointError:
            return None

    async def values(self, bucket: str) -> Mapping[str, bytes]:
        """Return what the cluster's bucket holds now, by key."""
        if bucket != CLUSTER_BUCKET:
            return {}
        keys = await self._bus.keys(bucket)
        found: dict[str, bytes] = {}
        for at in range(0, len(keys), _AT_ONCE):
            some = keys[at : at + _AT_ONCE]
            entries = await asyncio.gather(*(self._bus.get(bucket, key) for key in some))
            found |= {key: entry.value for key, entry in zip(some, entries, strict=True) if entry is not None}
        return found

    async def close(self) -> None:
        """Nothing of its own is open."""


def _opened(packed: bytes) -> Checkpoint:
    return unseal_any(unpack(packed))


async def kept(
    bus: Bus, stream: str, *, after: int = 0, since_ms: int | None = None, until: int | None = None,
    only: Sequence[str] = (),
) -> AsyncGenerator[Delivery, None]:  # fmt: skip
    """Yield what a stream keeps now (after a sequence, stored at or after since_ms, up to sequence until), then end.

    `only`: what is on these subjects. Raises NoStreamError.
    """
    last = await bus.last_sequence(stream)
    last = last if until is None else min(until, last)
    if only:  # there is one at least at the end, or nothing would say that it is reached
        last = min(last, max([await bus.last_sequence(stream, subject) for subject in only]))
    after = max(after, await bus.first_sequence(stream) - 1)
    if after >= last:
        return
    if since_ms is not None:
        async with aclosing(_until(bus, stream, await bus.reader(stream, after=last - 1), last)) as newest:
            found_last = await anext(newest, None)
            if found_last is None or found_last.time_ms < since_ms:
                return
    reader = await bus.reader(stream, after=after, since_ms=since_ms, filters=only)
    async with aclosing(_until(bus, stream, reader, last)) as found:
        async for delivery in found:
            if delivery.sequence > after:
                yield delivery


async def _until(bus: Bus, stream: str, reader: Reader, last: int) -> AsyncGenerator[Delivery, None]:
    """Yield what a reader gets up to a sequence; ends, too, when all of that is gone before it could be read."""
    try:
        while True:
            waiting = asyncio.create_task(reader.batch(_BATCH))
            try:
                while not (await asyncio.wait({waiting}, timeout=_LOOK_S))[0]:
                    if await bus.first_sequence(stream) > last:
                        return
                batch = waiting.result()
            finally:
                await end(waiting)
            for delivery in batch:
                if delivery.sequence <= last:
                    yield delivery
                if delivery.sequence >= last:
                    return
    finally:
        await reader.close()
