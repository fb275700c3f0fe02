"""Files of the sandbox, read and written by its first process."""

import os
import stat
from typing import Final

from shoal.wire.values import APPEND
from shoal_executor.drivers import kernel
from shoal_executor.drivers.agent import frames

REFUSALS: Final = (OSError, ValueError, OverflowError, RecursionError)
"""What comes of paths, places and homes that no file can have: a zero byte, say, or a thousand directories to make."""


def write(asked: frames.Write, home: str) -> frames.Wrote | frames.Failed:
    """Write a piece; paths are relative to home."""
    path = os.path.normpath(os.path.join(home, asked.path))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd, new = _to_write(path, asked)
        try:
            _must_be_regular(fd, path)
            if new:
                os.fchmod(fd, asked.mode)
            view = memoryview(asked.data)
            offset = asked.offset
            while view:
                written = os.write(fd, view) if asked.offset == APPEND else os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
    except REFUSALS as error:
        return _failed(asked, error)
    return frames.Wrote(asked.id, size)


def _to_write(path: str, asked: frames.Write) -> tuple[int, bool]:
    """Return a descriptor to write to, and whether the file begins anew."""
    if asked.offset != APPEND:
        new = asked.offset == 0
        return plain(path, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if new else 0), asked.mode), new
    try:
        return plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, asked.mode), True
    except FileExistsError:
        return plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, asked.mode), False


def read(asked: frames.Read, home: str) -> frames.Piece | frames.Failed:
    """Read a piece; paths are relative to home."""
    path = os.path.normpath(os.path.join(home, asked.path))
    try:
        fd = plain(path, os.O_RDONLY)
        try:
            _must_be_regular(fd, path)
            data = os.pread(fd, asked.limit, asked.offset)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
    except REFUSALS as error:
        return _failed(asked, error)
    return frames.Piece(asked.id, data, size, len(data) < asked.limit or asked.offset + len(data) >= size)


def _failed(asked: frames.Write | frames.Read, error: Exception) -> frames.Failed:
    return frames.Failed(asked.id, f"{asked.path}: {why(error)}")


def why(error: Exception) -> object:
    """Return what is told of an error."""
    if isinstance(error, RecursionError):
        return "too many directories to make"
    return (error.strerror if isinstance(error, OSError) else None) or error


def plain(path: str, flags: int, mode: int = 0) -> int:
    """Open a path of the sandbox's, and wait for nothing: not for who reads or writes a pipe."""
    if "\0" in path:  # the kernel would take what is before it for the path
        raise ValueError("a path has no zero bytes")
    at_once = 0 if flags & os.O_PATH else os.O_NONBLOCK | os.O_NOCTTY  # openat2 refuses them where they mean nothing
    # Not by way of /proc/self/fd: the agent's own descriptors are not the tenant's, and one is a file of the host.
    try:
        return kernel.open_plainly(path, flags | at_once | os.O_CLOEXEC, mode)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None


def _must_be_regular(fd: int, path: str) -> None:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(0, "is a directory" if stat.S_ISDIR(mode) else "is not a regular file", path)
    not_the_agents(fd, path)


def not_the_agents(fd: int, path: str) -> None:
    """Raise OSError for what /proc tells of the agent."""
    if os.readlink(f"/proc/self/fd/{fd}").startswith("/proc/1/"):  # its memory map names files of the host
        raise OSError(0, "is the agent's own", path)
