"""EROFS disks of this node: each mounted once, at no place, and lent to whatever stacks it.

A file is mounted directly, without a loop device (Linux 6.12 and later). All who use a disk share its page cache. A
detached mount ends with its last descriptor, so nothing stays behind whoever is killed.
"""

import asyncio
import errno
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from shoal.blobs.cache import Cache
from shoal.blobs.protocol import BlobError
from shoal.wire.messages import Blob
from shoal_executor.drivers import kernel
from shoal_executor.drivers.protocol import Disks, DriverError

KEPT: Final = 512
"""Mounts kept at hand; those used longest ago are let go first, and stay for as long as a sandbox has them."""


class CachedDisks:
    """The disks of a node's cache of blobs."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    async def path_of(self, blob: Blob) -> Path:
        """Return a local file with exactly this content. Raises DriverError."""
        try:
            return await self._cache.path_of(blob)
        except BlobError as error:
            raise DriverError(str(error)) from error


class Mounted:
    """The node's disks, mounted."""

    def __init__(self, disks: Disks | None) -> None:
        self._disks = disks
        self._mounts: OrderedDict[str, asyncio.Task[int]] = OrderedDict()

    async def lend(self, blob: Blob, namespace: int | None) -> int:
        """Return a descriptor of a copy of its mount, for the caller to close. Raises DriverError."""
        mount = await self._mount(blob)
        try:
            return kernel.clone_mount(mount, namespace)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise DriverError(f"disk {blob.digest[:12]} cannot be lent: {error}") from error
        try:  # a kernel before 6.15 copies no detached mount: this one is mounted again, with a page cache of its own
            fresh = await asyncio.to_thread(self._mounted, blob, await self._path(blob))
            kernel.map_mount(fresh, namespace)
        except OSError as error:
            raise DriverError(f"disk {blob.digest[:12]} cannot be lent: {error}") from error
        return fresh

    async def lend_all(self, blobs: Iterable[Blob], namespace: int | None) -> list[int]:
        """Return descriptors of copies of all of them, or of none. Raises DriverError."""
        lent: list[int] = []
        try:
            for blob in blobs:
                fd = await self.lend(blob, namespace)
                lent.append(fd)
        except BaseException:
            for fd in lent:
                os.close(fd)
            raise
        return lent

    async def _mount(self, blob: Blob) -> int:
        known = self._mounts.pop(blob.digest, None)
        if known is not None and known.done() and (known.cancelled() or known.exception()):
            known = None
        if known is None:
            known = asyncio.create_task(self._mount_anew(blob))
        self._mounts[blob.digest] = known  # at the end: the order is that of their use
        while len(self._mounts) > KEPT:
            _, oldest = self._mounts.popitem(last=False)
            _close(oldest)
        return await asyncio.shield(known)

    async def _mount_anew(self, blob: Blob) -> int:
        return await asyncio.to_thread(self._mounted, blob, await self._path(blob))

    async def _path(self, blob: Blob) -> str:
        if self._disks is None:
            raise DriverError("this node has no blob store: start its executor with --blobs")
        return str(await self._disks.path_of(blob))

    @staticmethod
    def _mounted(blob: Blob, path: str) -> int:
        if os.geteuid() != 0:
            raise DriverError("only root can mount disks: run the executor as root, or use host, dir: or tar:")
        try:
            return kernel.mount_detached("erofs", path)
        except OSError as error:
            if error.errno == errno.ENOTBLK:
                why = "this kernel mounts no files: it takes Linux 6.12 or later with EROFS"
            elif error.errno == errno.ENODEV:
                why = "this kernel has no EROFS"
            else:
                why = "it is no disk, or is damaged" if error.errno == errno.EINVAL else str(error)
            raise DriverError(f"disk {blob.digest[:12]} cannot be mounted: {why}") from error

    def close(self) -> None:
        """Let all of them go."""
        while self._mounts:
            _close(self._mounts.popitem()[1])


def _close(mount: "asyncio.Task[int]") -> None:
    if not mount.done():
        mount.cancel()
    elif not mount.cancelled() and mount.exception() is None:
        os.close(mount.result())
