"""Blobs between the store and the catalogue: what is never announced is given up, or it would be there for ever.

A note of each lies beside the cache from when it is stored until the catalogue knows of it, so that also the process
that comes after one that was killed in between can give it up. An announcement may have been stored though nobody
confirmed it. So the catalogue decides: it collects what no snapshot refers to, but nothing that was stored within the
last hour, by anybody.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import structlog

from shoal.blobs.cache import Cache
from shoal.blobs.protocol import BlobError
from shoal.wire import subjects
from shoal.wire.messages import Blob, BlobKept
from shoal_executor.service.outgoing import Outgoing

log = structlog.get_logger()


class _Note(msgspec.Struct, frozen=True):
    tenant: str
    blob: Blob


class Unannounced:
    """What is stored for one snapshot of a tenant's, and not announced yet."""

    def __init__(self, tenant: str, place: Path) -> None:
        self._tenant = tenant
        self._place = place
        self._notes: dict[Path, _Note] = {}
        self.blobs: list[Blob] = []

    def note(self, blob: Blob) -> None:
        """Note that a blob was stored. Raises BlobError."""
        self.blobs.append(blob)
        path = self._place / f"{blob.digest}.{secrets.token_hex(4)}"
        self._notes[path] = _Note(self._tenant, blob)
        try:
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.encode(self._notes[path]))
        except OSError as error:
            raise BlobError(f"{self._place}: {error.strerror or error}") from error

    def give_up(self, loose: Outgoing) -> None:
        """Tell the catalogue that nobody will announce them; the notes stay, in case that this is never heard."""
        for blob in self.blobs:
            _give_up(loose, _Note(self._tenant, blob))

    def announced(self) -> None:
        """Forget them."""
        for path in self._notes:
            with contextlib.suppress(OSError):
                path.unlink()


@contextmanager
def announced(loose: Outgoing, tenant: str, cache: Cache) -> Iterator[Unannounced]:
    """Note here what is stored, and announce it: where either fails, it is given up."""
    found = Unannounced(tenant, cache.unannounced)
    try:
        yield found
    except BaseException:
        found.give_up(loose)
        raise
    found.announced()


async def give_up_left(loose: Outgoing, cache: Cache | None) -> None:
    """Give up what an earlier process stored, and did not live, or was not able, to announce."""
    if cache is None or not cache.unannounced.is_dir():
        return
    for path in sorted(cache.unannounced.iterdir()):
        try:
            note = msgspec.json.decode(path.read_bytes(), type=_Note)
        except (OSError, msgspec.DecodeError) as error:
            log.warning("a note of what was stored cannot be read", path=str(path), error=str(error))
        else:
            number = _give_up(loose, note)
            await loose.until(partial(loose.is_stored, number))
        await asyncio.to_thread(path.unlink, missing_ok=True)


def _give_up(loose: Outgoing, note: _Note) -> int:
    log.warning("a blob was stored for nothing, and is given up", tenant=note.tenant, digest=note.blob.digest)
    return loose.send(subjects.snapshot(note.tenant, "added"), BlobKept(note.tenant, note.blob, 0))
