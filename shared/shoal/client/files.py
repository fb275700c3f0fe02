"""The files of a sandbox."""

from typing import TYPE_CHECKING, Final

import msgspec

from shoal.client.belonging import Live
from shoal.client.errors import FileError
from shoal.client.requests import PIECE, checked, content, file_path, truth, whole_number
from shoal.wire.messages import FileEntry, FileManaged, FileOp, FileRead, FileWritten, ManageFile, ReadFile, WriteFile
from shoal.wire.quantities import format_bytes, parse_bytes
from shoal.wire.values import APPEND

if TYPE_CHECKING:
    from shoal.client.sandbox import Head, Sandbox

TIMEOUT_S: Final = 60.0
LIMIT: Final = "64MiB"
"""Of what is read, unless another is given."""


class FileInfo(msgspec.Struct, frozen=True):
    """A file. `kind`: file, directory, link or other. `size` in bytes, `modified` in seconds since the epoch.

    `name` is the last part of its path; what of it is not UTF-8 is written as a backslash, x and two digits. `mode` has
    the permissions, such as 0o644.
    """

    name: str
    kind: str
    size: int
    mode: int
    modified: float

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.kind == "directory"


class Listing(list[FileInfo]):
    """What is in a directory, by name. `cut`: it has more than that, and these are not the first of them by name."""

    cut: bool = False


class Files(Live):
    """The files of a sandbox. A relative path is relative to where its commands run.

    Everything here raises FileError where it cannot be done, and is a step with an id, else as `Sandbox.run`.
    """

    def __init__(self, sandbox: "Sandbox") -> None:
        self._sandbox = sandbox

    def __repr__(self) -> str:
        return f"<Files of {self._sandbox.name}>"

    async def write(
        self,
        path: str,
        data: bytes | str,
        *,
        mode: int = 0o644,
        append: bool = False,
        idempotent: bool = True,
        id: str | None = None,
    ) -> None:
        """Write a file, with the directories it needs; large ones in pieces. append: to its end, if it is there.

        Then mode is that of a new file only. Raises FileError. Else as `run`.
        """
        path, whole = file_path(path, "path"), content(data, "data")
        whole_number(mode, "mode", 0, 0o7777)
        truth(append, "append")
        truth(idempotent, "idempotent")
        async with self._sandbox.step(id) as step:
            for offset in range(0, max(len(whole), 1), PIECE):
                # The last piece has the step's own id: the step is done when that is.
                name = step if offset + PIECE >= len(whole) else f"{step}+{offset // PIECE}"
                piece = whole[offset : offset + PIECE]
                await self._write(name, path, piece, APPEND if append else offset, mode, idempotent=idempotent)

    async def read(self, path: str, *, limit: int | str = LIMIT, id: str | None = None) -> str:
        """Return a file as UTF-8 text. Raises FileError; also when it is no such text. Else as `read_bytes`."""
        found = await self.read_bytes(path, limit=limit, id=id)
        try:
            return found.decode()
        except UnicodeDecodeError as error:
            raise FileError(self._sandbox.name, path, f"it is not UTF-8 ({error.reason}); use read_bytes") from error

    async def read_bytes(self, path: str, *, limit: int | str = LIMIT, id: str | None = None) -> bytes:
        """Return a file's bytes; large ones come in pieces. Raises FileError.

        limit: bytes it may have, or such as "1GiB"; of what has more, nothing is returned, and no more than that is
        fetched. What runs in a sandbox decides how large its files are: one of a terabyte costs it nothing, and all
        that is read of it is held here and kept in the log.
        """
        path, most = file_path(path, "path"), checked(parse_bytes, limit, "limit")
        pieces: list[bytes] = []
        offset = 0
        async with self._sandbox.step(id) as step:
            while True:
                piece = await self._read(f"{step}+{len(pieces)}" if pieces else step, path, offset)
                pieces.append(piece.data)
                offset += len(piece.data)
                self._bounded(path, max(piece.size, offset), most)
                if piece.eof or not piece.data:
                    return b"".join(pieces)

    async def list(self, path: str = ".", *, id: str | None = None) -> Listing:
        """Return what is in a directory, sorted by name; links are told as such. Raises FileError.

        Of a very large directory some thousands of entries are told: then `cut` is true.
        """
        found = await self._manage(FileOp.LIST, path, id)
        listing = Listing(map(_info, found.entries))
        listing.cut = found.more
        return listing

    async def exists(self, path: str, *, id: str | None = None) -> bool:
        """Return whether there is anything at this path; a link that leads to nothing is nothing."""
        return bool((await self._manage(FileOp.STAT, path, id)).entries)

    async def stat(self, path: str, *, id: str | None = None) -> FileInfo:
        """Return what is at this path; of a link, what it leads to. Raises FileError where nothing is."""
        found = await self._manage(FileOp.STAT, path, id)
        if not found.entries:
            raise FileError(self._sandbox.name, path, f"{path}: No such file or directory")
        return _info(found.entries[0])

    async def remove(
        self, path: str, *, recursive: bool = False, idempotent: bool = True, id: str | None = None
    ) -> None:
        """Remove a file or an empty directory; recursive: a directory with all that is in it. Links are not followed.

        Raises FileError, also where nothing is.
        """
        truth(recursive, "recursive")
        await self._manage(FileOp.REMOVE, path, id, recursive=recursive, idempotent=idempotent)

    async def make_dir(self, path: str, *, idempotent: bool = True, id: str | None = None) -> None:
        """Make a directory, with those above it; one that is there already is as good. Raises FileError."""
        await self._manage(FileOp.MAKE_DIR, path, id, idempotent=idempotent)

    async def rename(self, path: str, to: str, *, idempotent: bool = True, id: str | None = None) -> None:
        """Give a file or directory another path, with the directories that needs; a file that is there is replaced.

        Raises FileError, also where it would have to be copied: that a command does, `mv`.
        """
        await self._manage(FileOp.RENAME, path, id, to=file_path(to, "to"), idempotent=idempotent)

    def _bounded(self, path: str, size: int, most: int) -> None:
        if size > most:
            limit = f"the limit of {most} ({format_bytes(most)})"
            detail = f"it has {size} bytes ({format_bytes(size)}), more than {limit}; give a higher limit= to read it"
            raise FileError(self._sandbox.name, path, detail)

    async def _write(self, id: str, path: str, data: bytes, offset: int, mode: int, *, idempotent: bool) -> None:
        """Write one piece of a file."""

        def message(head: "Head") -> WriteFile:
            return WriteFile(*head, path, data, offset, mode, idempotent)

        answer = await self._sandbox.ask(message, TIMEOUT_S, f"writing {path!r}", id)
        if not isinstance(answer, FileWritten):
            raise self._sandbox.unexpected(answer, path)
        self._sandbox.done(answer, f"writing {path}")

    async def _manage(
        self, op: FileOp, path: str, id: str | None, *, to: str = "", recursive: bool = False, idempotent: bool = True
    ) -> FileManaged:
        """Look at files, or change which there are."""
        path = file_path(path, "path")
        truth(idempotent, "idempotent")
        what = f"{op} {path}"

        def message(head: "Head") -> ManageFile:
            return ManageFile(*head, op, path, to, recursive, idempotent)

        async with self._sandbox.step(id) as step:
            answer = await self._sandbox.ask(message, TIMEOUT_S, what, step)
        if not isinstance(answer, FileManaged):
            raise self._sandbox.unexpected(answer, path)
        if op.changes:
            self._sandbox.done(answer, what)
        return answer

    async def _read(self, id: str, path: str, offset: int) -> FileRead:
        """Read one piece of a file."""

        def message(head: "Head") -> ReadFile:
            return ReadFile(*head, path, offset, PIECE)

        answer = await self._sandbox.ask(message, TIMEOUT_S, f"reading {path!r}", id)
        if not isinstance(answer, FileRead):
            raise self._sandbox.unexpected(answer, path)
        return answer


def _info(entry: FileEntry) -> FileInfo:
    return FileInfo(entry.name, entry.kind, entry.size, entry.mode, entry.modified_ms / 1000)
