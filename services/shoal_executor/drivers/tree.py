"""The files of a simulated sandbox, in memory."""

import posixpath
import time
from collections.abc import Sequence
from typing import Final

from shoal.wire.messages import FileEntry, FileOp, InputFile
from shoal.wire.values import APPEND
from shoal_executor.drivers.protocol import FileChunk, Found, SandboxFileError

_ENTRIES: Final = 4096
"""Entries of a directory that are told at most."""


class _File:
    """A file, or, without content, a directory."""

    __slots__ = ("content", "mode", "modified_ms")

    def __init__(self, content: bytearray | None, mode: int) -> None:
        self.content = content
        self.mode = mode
        self.touched()

    def touched(self) -> None:
        """It is changed now."""
        self.modified_ms = int(time.time() * 1000)


class Tree:
    """See the module. Directories are there from the first file in them on. What fails is a SandboxFileError."""

    def __init__(self, disk: int, files: Sequence[InputFile] = ()) -> None:
        self._disk = disk
        self._nodes: dict[str, _File] = {"/": _File(None, 0o755)}
        self._done: dict[str, int | Found | SandboxFileError] = {}
        self._make_dir("/root", "/root")
        for file in files:
            self._put(file.path, file.data, 0, file.mode)

    def write(self, path: str, data: bytes, offset: int, mode: int, id: str) -> int:
        """Write a piece; what is appended under an id is, once."""
        if not id or offset != APPEND:
            return self._put(path, data, offset, mode)
        if id not in self._done:
            try:
                self._done[id] = self._put(path, data, offset, mode)
            except SandboxFileError as error:
                self._done[id] = error
        if isinstance(known := self._done[id], int):
            return known
        raise _of_before(known)

    def read(self, path: str, offset: int, limit: int) -> FileChunk:
        """Read a piece."""
        content = self._file(path).content
        if content is None:
            raise SandboxFileError(f"{path}: is a directory")
        data = bytes(content[offset : offset + limit])
        return FileChunk(data, len(content), offset + len(data) >= len(content))

    def manage(self, op: FileOp, path: str, to: str, id: str, *, recursive: bool) -> Found:
        """Look at files, or change which there are; under an id, once."""
        if not id or not op.changes:
            return self._manage(op, path, to, recursive=recursive)
        if id not in self._done:
            try:
                self._done[id] = self._manage(op, path, to, recursive=recursive)
            except SandboxFileError as error:
                self._done[id] = error
        if isinstance(known := self._done[id], Found):
            return known
        raise _of_before(known)

    def _put(self, path: str, data: bytes, offset: int, mode: int) -> int:
        place = _absolute(path)
        known = self._nodes.get(place)
        if known is not None and known.content is None:
            raise SandboxFileError(f"{path}: is a directory")
        if known is None and offset > 0:
            raise SandboxFileError(f"{path}: no such file to write to at offset {offset}")
        if sum(len(each.content or b"") for each in self._nodes.values()) + len(data) > self._disk:
            raise SandboxFileError(f"{path}: no space left in the sandbox")
        self._make_dir(posixpath.dirname(place), path)
        if known is None or offset == 0:
            known = self._nodes[place] = _File(bytearray(), mode)
        content = known.content
        assert content is not None
        at = len(content) if offset == APPEND else offset
        content[at : at + len(data)] = data
        known.touched()
        return len(content)

    def _manage(self, op: FileOp, path: str, to: str, *, recursive: bool) -> Found:
        place = _absolute(path)
        if place == "/" and op in (FileOp.REMOVE, FileOp.RENAME):
            raise SandboxFileError(f"{path}: is the root directory")
        match op:
            case FileOp.STAT:
                known = self._nodes.get(place)
                return Found((_entry(place, known),) if known is not None else ())
            case FileOp.LIST:
                if self._file(path).content is not None:
                    raise SandboxFileError(f"{path}: Not a directory")
                found = sorted(each for each in self._nodes if each != place and posixpath.dirname(each) == place)
                entries = tuple(_entry(each, self._nodes[each]) for each in found[:_ENTRIES])
                return Found(entries, len(found) > _ENTRIES)
            case FileOp.REMOVE:
                self._file(path)
                within = self._within(place)
                if len(within) > 1 and not recursive:
                    text = "is a directory with something in it; recursive=True removes all of it"
                    raise SandboxFileError(f"{path}: {text}")
                for each in within:
                    del self._nodes[each]
            case FileOp.MAKE_DIR:
                self._make_dir(place, path)
            case FileOp.RENAME:
                self._rename(path, to)
        return Found()

    def _rename(self, path: str, to: str) -> None:
        place, target = _absolute(path), _absolute(to)
        about = f"{path} to {to}"
        moved, there = self._nodes.get(place), self._nodes.get(target)
        if moved is None:
            raise SandboxFileError(f"{about}: No such file or directory")
        if target.startswith(f"{place}/"):
            raise SandboxFileError(f"{about}: Invalid argument")
        if there is not None and target != place:
            if (there.content is None) != (moved.content is None):
                raise SandboxFileError(f"{about}: {'Is' if there.content is None else 'Not'} a directory")
            if len(self._within(target)) > 1:
                raise SandboxFileError(f"{about}: Directory not empty")
        self._make_dir(posixpath.dirname(target), about)
        for each in self._within(place):
            self._nodes[target + each.removeprefix(place)] = self._nodes.pop(each)

    def _make_dir(self, place: str, path: str) -> None:
        missing: list[str] = []
        while place not in self._nodes:
            missing.append(place)
            place = posixpath.dirname(place)
        if self._nodes[place].content is not None:
            raise SandboxFileError(f"{path}: a file is in the place of a directory")
        for each in reversed(missing):
            self._nodes[each] = _File(None, 0o755)

    def _file(self, path: str) -> _File:
        known = self._nodes.get(_absolute(path))
        if known is None:
            raise SandboxFileError(f"{path}: No such file or directory")
        return known

    def _within(self, place: str) -> list[str]:
        return [each for each in self._nodes if each == place or each.startswith(f"{place}/")]


def _absolute(path: str) -> str:
    return posixpath.normpath(posixpath.join("/root", path))


def _entry(place: str, file: _File) -> FileEntry:
    kind = "directory" if file.content is None else "file"
    return FileEntry(posixpath.basename(place) or "/", kind, len(file.content or b""), file.mode, file.modified_ms)


def _of_before(known: object) -> SandboxFileError:
    return SandboxFileError(str(known)) if isinstance(known, SandboxFileError) else SandboxFileError("it was another")
