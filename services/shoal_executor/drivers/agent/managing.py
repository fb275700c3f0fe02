"""Files of the sandbox, listed, removed, made and renamed by its first process.

It serves all of the sandbox in one thread, so nothing here takes long: of a large directory the first entries are told,
and one that is removed with all that is in it goes a piece at a time, for as often as the driver asks.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from shoal.wire.bounds import MOST
from shoal.wire.values import FileEntry, FileOp
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.files import REFUSALS, not_the_agents, plain, why

ENTRIES: Final = 4096
"""Entries of a directory that are told at most."""
_NAMES: Final = 384 * 1024
"""Bytes of their names."""
_AT_ONCE: Final = 1024
"""Entries that are removed for one question."""
_DEEPEST: Final = 256
_LOOKS: Final = 3
"""How often a directory is looked through that was empty, and was not: somebody fills it."""
_PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR)


class _MoreError(Exception):
    """So much was removed, and there is more."""


def manage(asked: frames.Manage, home: str) -> frames.Managed | frames.Failed:
    """Do it; paths are relative to home."""
    path = os.path.normpath(os.path.join(home, asked.path))
    try:
        match asked.op:
            case FileOp.LIST:
                return _listed(asked, path)
            case FileOp.STAT:
                return _found(asked, path)
            case FileOp.REMOVE:
                _remove(path, recursive=asked.recursive, going_on=asked.going_on)
            case FileOp.MAKE_DIR:
                os.close(_made(path))
            case FileOp.RENAME:
                _rename(path, os.path.normpath(os.path.join(home, asked.to)))
    except _MoreError:
        return frames.Managed(asked.id, more=True)
    except REFUSALS as error:
        about = f"{asked.path} to {asked.to}" if asked.op is FileOp.RENAME else asked.path
        return frames.Failed(asked.id, f"{about}: {why(error)}")
    return frames.Managed(asked.id)


def _listed(asked: frames.Manage, path: str) -> frames.Managed:
    found: list[FileEntry] = []
    size, more = 0, False
    fd = plain(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        not_the_agents(fd, path)
        with os.scandir(fd) as entries:
            for entry in entries:
                size += len(entry.name) * 4  # of what is not UTF-8, each byte becomes four
                more = len(found) == ENTRIES or size > _NAMES
                if more:
                    break
                with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                    found.append(_entry(entry.name, os.stat(entry.name, dir_fd=fd, follow_symlinks=False)))
    finally:
        os.close(fd)
    return frames.Managed(asked.id, tuple(sorted(found, key=lambda each: each.name)), more)


def _found(asked: frames.Manage, path: str) -> frames.Managed:
    try:
        fd = plain(path, os.O_PATH)
    except OSError as error:
        if error.errno in _ABSENT:
            return frames.Managed(asked.id)
        raise
    try:
        not_the_agents(fd, path)
        return frames.Managed(asked.id, (_entry(os.path.basename(path) or "/", os.fstat(fd)),))
    finally:
        os.close(fd)


def _entry(name: str, found: os.stat_result) -> FileEntry:
    kind = next((kind for is_one, kind in _KINDS if is_one(found.st_mode)), "other")
    shown = os.fsencode(name).decode(errors="backslashreplace")
    changed_ms = max(-MOST, min(found.st_mtime_ns // 1_000_000, MOST))
    return FileEntry(shown, kind, min(found.st_size, MOST), stat.S_IMODE(found.st_mode), changed_ms)


_KINDS: Final = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "directory"), (stat.S_ISLNK, "link"))


def _made(path: str) -> int:
    """Return a descriptor of a directory, made with those above it where it is not there."""
    missing: list[str] = []
    while True:
        try:
            fd = plain(path, _PLACE)
            break
        except FileNotFoundError:
            path, name = os.path.split(path)
            missing.append(name)
        except NotADirectoryError:
            raise OSError(errno.ENOTDIR, "a file is in the place of a directory", path) from None
    while missing:
        name = missing.pop()
        try:
            with contextlib.suppress(FileExistsError):  # somebody else made it just now, or a link leads to nothing
                os.mkdir(name, dir_fd=fd)
            inner = os.open(name, _PLACE | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


@contextlib.contextmanager
def _above(path: str) -> Iterator[tuple[int, str]]:
    """Yield a descriptor of the directory that a path is in, and its name there."""
    directory, name = os.path.split(path)
    if not name:
        raise OSError(errno.EBUSY, "is the root directory", path)
    fd = plain(directory, _PLACE)
    try:
        yield fd, name
    finally:
        os.close(fd)


def _rename(path: str, to: str) -> None:
    with _above(path) as (fd, name):
        os.stat(name, dir_fd=fd, follow_symlinks=False)  # or directories would be made for nothing
        directory, new = os.path.split(to)
        if not new:
            raise OSError(errno.EBUSY, "is the root directory", to)
        target = _made(directory)
        try:
            os.rename(name, new, src_dir_fd=fd, dst_dir_fd=target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            text = "they are on different file systems, or it is a directory of the template; `mv` copies it"
            raise OSError(errno.EXDEV, text, path) from None
        finally:
            os.close(target)


def _remove(path: str, *, recursive: bool, going_on: bool) -> None:
    try:
        with _above(path) as (fd, name):
            if not _is_directory(name, fd):
                os.unlink(name, dir_fd=fd)
            elif recursive:
                _Removing().remove(name, fd, 0)
            else:
                os.rmdir(name, dir_fd=fd)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY and not recursive:
            text = "is a directory with something in it; recursive=True removes all of it"
            raise OSError(errno.ENOTEMPTY, text, path) from None
        if not going_on or error.errno not in _ABSENT:
            raise  # else somebody else has removed the rest of it


def _is_directory(name: str, fd: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)


class _Removing:
    """Removes a directory with all that is in it, as far as it comes. Links are removed, and never followed."""

    def __init__(self) -> None:
        self._left = _AT_ONCE

    def remove(self, name: str, parent: int, depth: int) -> None:
        """Remove a directory. Raises _MoreError when enough was removed, and OSError."""
        if depth == _DEEPEST:
            text = f"it has more than {_DEEPEST} directories one in the other; `rm -r` removes it"
            raise OSError(errno.ELOOP, text, name)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for _ in range(_LOOKS):
                self._empty(fd, depth)
                try:
                    os.rmdir(name, dir_fd=parent)
                except FileNotFoundError:
                    return
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY:
                        raise
                else:
                    return
        finally:
            os.close(fd)
        raise OSError(errno.ENOTEMPTY, "somebody fills it while it is removed", name)

    def _empty(self, fd: int, depth: int) -> None:
        with os.scandir(fd) as entries:
            for entry in entries:
                if not self._left:
                    raise _MoreError
                self._left -= 1
                with contextlib.suppress(FileNotFoundError):  # somebody else removed it
                    if _is_directory(entry.name, fd):
                        self.remove(entry.name, fd, depth + 1)
                    else:
                        os.unlink(entry.name, dir_fd=fd)
