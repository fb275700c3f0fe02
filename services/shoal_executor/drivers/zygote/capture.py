"""A live sandbox's disk, kept: what it wrote becomes an EROFS file, while its processes stand still.

mkfs.erofs reads what a stranger wrote, so it runs as the sandbox's root, which is nobody outside: in the template's
user namespace. It wants a path, and what a sandbox writes has none on the host; so it gets a mount namespace of its
own, in which that is mounted.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shoal_executor.drivers import kernel
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.link import Link
from shoal_executor.drivers.layers import make_layer
from shoal_executor.drivers.protocol import Captured, DriverError, UnsupportedError
from shoal_executor.drivers.zygote.becoming import UPPER
from shoal_executor.drivers.zygote.forkserver import ForkServer

_PLACES: Final = ("/mnt", "/media", "/srv", "/opt")
"""Directories that every host has and anybody may pass through; one is mounted upon, where nobody else sees it."""


async def capture(
    name: str, link: Link, server: ForkServer, directory: Path, ended: asyncio.Event, *, idle: bool
) -> Captured:
    """Write `layer` into the directory; `idle`: only if that is all of it; `ended`: set at the sandbox's end.

    Raises DriverError, having left nothing.
    """
    tools = [tool for tool in ("mkfs.erofs", "nsenter") if shutil.which(tool) is None]
    if tools:
        raise UnsupportedError(f"snapshots need {' and '.join(tools)} on the node: install erofs-utils and util-linux")
    if os.geteuid() != 0:
        raise UnsupportedError("snapshots need an executor that runs as root")
    pid = await server.where(name)
    layer = directory / "layer"
    began = time.monotonic_ns()
    try:
        frozen = await link.ask(frames.Freeze)
        if not isinstance(frozen, frames.Frozen):
            raise DriverError(frozen.detail if isinstance(frozen, frames.Failed) else "the sandbox has ended")
        if idle and frozen.holding:
            what = f"isolation zygote keeps no memory, and this sandbox has {frozen.holding}"
            raise UnsupportedError(f"{what}: end or remove them first")
        halt = threading.Event()
        await _apart(lambda: _make(pid, layer, server, halt), halt, ended)
    except BaseException:
        layer.unlink(missing_ok=True)
        raise
    finally:
        link.say(frames.Thaw(0))
    return Captured(layer, None, (time.monotonic_ns() - began) // 1000, frozen.finished)


async def _apart(work: Callable[[], None], halt: threading.Event, ended: asyncio.Event) -> None:
    """Run in a thread of its own, with a mount namespace of its own, which ends with it.

    `halt` is set when nobody waits for it any more, or its sandbox has `ended`.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        try:
            kernel.unshare(kernel.NEWNS)
            kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
            work()
        except BaseException as error:
            loop.call_soon_threadsafe(settle, error)
        else:
            loop.call_soon_threadsafe(settle, None)

    thread = threading.Thread(target=run, name="capture")
    thread.start()
    ends = asyncio.create_task(ended.wait())
    try:
        await asyncio.wait((done, ends), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            halt.set()
        await asyncio.shield(done)
    except asyncio.CancelledError:  # the sandbox stands still until mkfs.erofs is done with it
        halt.set()
        with contextlib.suppress(DriverError):
            await done
        raise
    finally:
        ends.cancel()


def _make(pid: int, layer: Path, server: ForkServer, halt: threading.Event) -> None:
    place = next(path for path in _PLACES if os.path.isdir(path))
    opened: list[int] = []
    try:
        opened.append(os.open(f"/proc/{pid}/fd/{UPPER}", os.O_PATH | os.O_CLOEXEC))
        ours = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        opened.append(ours)
        theirs = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        opened.append(theirs)
        kernel.setns(theirs, kernel.NEWNS)  # a detached mount can be copied only from where it comes from
        try:
            copy = kernel.clone_mount(opened[0], None)
        finally:
            kernel.setns(ours, kernel.NEWNS)
        opened.append(copy)
        kernel.attach_mount(copy, place)
        within = ["nsenter", f"--user=/proc/{server.pid}/ns/user", "--"]
        make_layer(place, layer, within=within, owner=server.base, halt=halt)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise UnsupportedError(f"snapshots of live sandboxes need Linux 6.15 or later ({error})") from error
        raise DriverError(f"the disk could not be kept: {error.strerror or error}") from error
    finally:
        for fd in opened:
            os.close(fd)
