"""Outputs too large for a message: kept as blobs, and handed out piece by piece to the tenant whose they are."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog

from shoal.blobs.cache import Cache
from shoal.blobs.protocol import BlobError, BlobMissingError
from shoal.wire import subjects
from shoal.wire.codec import encode
from shoal.wire.messages import Blob, BlobKept, BlobRead, CommandFinished, ReadBlob
from shoal.wire.outputs import IN_MESSAGE, LARGEST, PIECE, heading
from shoal.wire.streams import TRAJECTORY_S
from shoal_executor.service.outgoing import Outgoing

_MOST: Final = 960 * 1024
"""Bytes of a whole answer: less than the broker's default limit."""
_AT_ONCE: Final = 4
"""Outputs stored at a time, and pieces read."""

log = structlog.get_logger()


class _Told(NamedTuple):
    """An output as a message has it."""

    data: bytes
    dropped: int
    tail: int
    blob: Blob | None


class Outputs:
    """See the module. Without a `cache` there is no store, and what does not fit into a message is dropped, counted."""

    def __init__(self, cache: Cache | None, loose: Outgoing) -> None:
        self._cache = cache
        self._loose = loose
        self._storing = asyncio.Semaphore(_AT_ONCE)
        self._reading = asyncio.Semaphore(_AT_ONCE)

    async def fitted(self, finished: CommandFinished, tenant: str) -> CommandFinished:
        """Return an answer that fits into a message; what of its output does not is a blob from now on."""
        result = finished.result
        others = len(encode(finished)) - len(result.stdout) - len(result.stderr)
        room = min(IN_MESSAGE, max((_MOST - others) // 2, 0))
        if max(len(result.stdout), len(result.stderr)) <= room:
            return finished
        out = await self._told(tenant, result.stdout, result.stdout_dropped, result.stdout_tail, room)
        err = await self._told(tenant, result.stderr, result.stderr_dropped, result.stderr_tail, room)
        return msgspec.structs.replace(
            finished,
            result=msgspec.structs.replace(
                result,
                stdout=out.data,
                stderr=err.data,
                stdout_dropped=out.dropped,
                stderr_dropped=err.dropped,
                stdout_blob=out.blob,
                stderr_blob=err.blob,
                stdout_tail=out.tail,
                stderr_tail=err.tail,
            ),
        )

    async def _told(self, tenant: str, output: bytes, dropped: int, tail: int, room: int) -> "_Told":
        """Return what is told of an output: of one that is a blob from now on, the beginning."""
        if len(output) <= room:
            return _Told(output, dropped, tail, None)
        blob = await self._kept(tenant, output)
        if blob is not None:
            return _Told(output[: min(room, len(output) - tail)], dropped, tail, blob)
        # What was left out before stays left out: the end is cut from what comes after that.
        begin = output[: len(output) - tail][: room - room // 2]
        end = output[len(output) - min(room // 2, tail if dropped else len(output) - len(begin)) :]
        return _Told(begin + end, dropped + len(output) - len(begin) - len(end), len(end), None)

    async def _kept(self, tenant: str, output: bytes) -> Blob | None:
        if self._cache is None:
            return None
        try:
            async with self._storing:
                with self._cache.scratch() as place:
                    path = Path(place, "output")
                    await asyncio.to_thread(path.write_bytes, heading(tenant) + output)
                    blob = await self._cache.add(path)
        except (BlobError, OSError) as error:
            log.warning("an output is cut off: it could not be stored", bytes=len(output), error=str(error))
            return None
        kept = BlobKept(tenant, blob, int((time.time() + TRAJECTORY_S) * 1000))
        number = self._loose.send(subjects.snapshot(tenant, "added"), kept)
        await self._loose.until(lambda: self._loose.is_stored(number))  # or it would be collected
        return blob

    async def serve(self, asked: ReadBlob) -> None:
        """Send a piece of a blob to who asked for it, if it is an output of that tenant's."""
        try:
            async with self._reading:
                told = await self._piece(asked)
        except (BlobError, OSError) as error:
            told = BlobRead(asked.id, b"", 0, str(error))
        self._loose.send(subjects.blob(asked.cell, asked.tenant, asked.run), told)

    async def _piece(self, asked: ReadBlob) -> BlobRead:
        if self._cache is None:
            return BlobRead(asked.id, b"", 0, "this executor has no blob store")
        begin, data = heading(asked.tenant), None
        if asked.blob.size <= len(begin) + LARGEST:  # what is larger is something else: it is not even fetched
            with contextlib.suppress(BlobMissingError):  # that it is there at all is nobody else's business
                path = await self._cache.path_of(asked.blob)
                data = await asyncio.to_thread(_read, path, begin, asked.offset, min(asked.limit, PIECE))
        if data is None:
            return BlobRead(asked.id, b"", 0, f"blob {asked.blob.digest} is no output of tenant {asked.tenant}'s")
        return BlobRead(asked.id, data, asked.blob.size)


def _read(path: Path, begin: bytes, offset: int, limit: int) -> bytes | None:
    with path.open("rb") as file:
        if file.read(len(begin)) != begin:
            return None
        file.seek(max(offset, 0))
        return file.read(max(limit, 0))
