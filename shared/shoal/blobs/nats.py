"""Blobs in an object store of the brokers themselves: nothing else to run, for clusters with few and small disks.

Bytes are kept on the brokers' disks, as often as the bucket has replicas. A broker keeps no time of change that could
be read, so it is written into each object's description.
"""

import asyncio
import base64
import io
import logging
import os
import ssl
import tempfile
import time
from pathlib import Path
from typing import Final, cast

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import ObjectInfo, ObjectMeta, ObjectStoreConfig
from nats.js.errors import APIError, BucketNotFoundError, DigestMismatchError, NotFoundError, ObjectNotFoundError
from nats.js.object_store import ObjectStore

from shoal.blobs.files import explained
from shoal.blobs.protocol import (
    BlobCorruptError,
    BlobError,
    BlobMissingError,
    BlobSpaceError,
    Progress,
    measure,
)
from shoal.bus.address import shown
from shoal.wire.messages import Blob

_CONNECT_S: Final = 5.0
_PATIENCE_S: Final = 60.0
_SLOWEST: Final = 1024**2
"""Bytes a second below which a transfer is given up: nats-py waits for ever for a part that was removed meanwhile."""
_FULL: Final = (10023, 10047, 10077)
"""JetStream's errors for: insufficient resources, insufficient storage, maximum bytes exceeded."""


logger = logging.getLogger("shoal.blobs")


async def _trouble(error: Exception) -> None:
    logger.warning("the broker of the blobs: %s", error or repr(error))


class NatsStore:
    """Each blob is the object `abcdef...` of a bucket, made if it is not there; connected when it is first used.

    Two processes that put the same new blob at the same moment leave the parts of one behind, which nobody finds.
    """

    def __init__(self, url: str, bucket: str, tls: ssl.SSLContext | None = None) -> None:
        self._url = url
        self._bucket = bucket
        self._tls = tls
        self._client: Client | None = None
        self._opening = asyncio.Lock()
        self._putting: dict[str, asyncio.Lock] = {}
        self._objects: ObjectStore | None = None

    async def put(self, source: Path, progress: Progress | None = None) -> Blob:
        """Hash a file, then store it; what is there whole already is only given a new time."""
        try:
            blob = await asyncio.to_thread(measure, source, None)
            file = source.open("rb")
        except OSError as error:
            raise explained(error, source) from error
        lock = self._putting.setdefault(blob.digest, asyncio.Lock())
        with file:
            async with lock:
                await self._put(blob, file)
            if not lock.locked():
                self._putting.pop(blob.digest, None)
        if progress is not None and blob.size:
            progress(blob.size, blob.size)
        return blob

    async def _put(self, blob: Blob, file) -> None:  # type: ignore[no-untyped-def]  # a binary file, as nats-py wants it
        objects = await self._open()
        meta = ObjectMeta(name=blob.digest, description=f"{time.time():.3f}")
        try:
            async with asyncio.timeout(_PATIENCE_S + blob.size / _SLOWEST):
                info = await self._info(blob.digest)
                if info is not None and info.size == blob.size and _content(info) == blob.digest:
                    await objects.update_meta(blob.digest, meta)
                else:
                    await objects.put(blob.digest, file, meta)
        except (NatsError, TimeoutError) as error:
            raise self._error(error) from error

    async def fetch(self, blob: Blob, target: Path, progress: Progress | None = None) -> None:
        """Read a blob part by part into a file, and hash what came."""
        objects = await self._open()
        info = await self._info(blob.digest)
        if info is None:
            raise BlobMissingError(f"blob {blob.digest} is not in {self._name}")
        if info.size != blob.size or _content(info) != blob.digest:
            raise BlobCorruptError(f"blob {blob.digest} in {self._name} has {info.size} bytes that are others")
        try:
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".fetching-", delete=False) as file:
                try:
                    async with asyncio.timeout(_PATIENCE_S + blob.size / _SLOWEST):
                        await objects.get(blob.digest, writeinto=cast(io.BufferedIOBase, file.file))
                    file.flush()
                    if await asyncio.to_thread(measure, Path(file.name), None) != blob:
                        raise BlobCorruptError(f"blob {blob.digest} in {self._name} was changed")
                    os.rename(file.name, target)
                except DigestMismatchError as error:
                    os.unlink(file.name)
                    raise BlobCorruptError(f"blob {blob.digest} in {self._name} was changed") from error
                except BaseException:
                    os.unlink(file.name)
                    raise
        except (NatsError, TimeoutError) as error:
            raise self._error(error) from error
        except OSError as error:
            raise explained(error, target.parent) from error
        if progress is not None and blob.size:
            progress(blob.size, blob.size)

    async def has(self, blob: Blob) -> bool:
        """Ask for the object's size."""
        await self._open()
        info = await self._info(blob.digest)
        return info is not None and info.size == blob.size

    async def delete(self, digest: str, *, unused_for_s: float = 0.0) -> bool:
        """Remove the object, by the time in its description."""
        objects = await self._open()
        info = await self._info(digest)
        if info is None:
            return True
        try:
            if unused_for_s and time.time() - float(info.description or 0) < unused_for_s:
                return False
            await objects.delete(digest)
        except ObjectNotFoundError:
            return True
        except (NatsError, TimeoutError) as error:
            raise self._error(error) from error
        return True

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            client, self._client, self._objects = self._client, None, None
            await client.close()

    @property
    def _name(self) -> str:
        return f"bucket {self._bucket} of {shown(self._url)}"

    async def _open(self) -> ObjectStore:
        async with self._opening:
            if self._objects is None:
                client = self._client = Client()
                try:
                    async with asyncio.timeout(_CONNECT_S):  # else it would try for ever, which is right only later
                        await client.connect(
                            self._url.split(","), name="shoal-blobs", error_cb=_trouble, max_reconnect_attempts=-1,
                            tls=self._tls,
                        )  # fmt: skip
                    stream = client.jetstream(timeout=_PATIENCE_S)
                    try:
                        self._objects = await stream.object_store(self._bucket)
                    except (BucketNotFoundError, NotFoundError):
                        config = ObjectStoreConfig(bucket=self._bucket)
                        self._objects = await stream.create_object_store(self._bucket, config)
                except (NatsError, OSError, TimeoutError) as error:
                    await self.close()
                    raise self._error(error) from error
            return self._objects

    async def _info(self, digest: str) -> ObjectInfo | None:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise BlobError(f"{digest!r} is not the SHA-256 of anything")
        assert self._objects is not None
        try:
            return await self._objects.get_info(digest)
        except ObjectNotFoundError:
            return None
        except (NatsError, TimeoutError) as error:
            raise self._error(error) from error

    def _error(self, error: BaseException) -> BlobError:
        if isinstance(error, APIError) and error.err_code in _FULL:
            return BlobSpaceError(f"there is no room left in {self._name}: {error.description}")
        return BlobError(f"{self._name}: {error or repr(error)}")


def _content(info: ObjectInfo) -> str:
    """Return the SHA-256 that an object's own description of itself tells, in hexadecimal."""
    encoded = (info.digest or "").partition("=")[2]
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex() if encoded else ""
