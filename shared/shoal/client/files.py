"""The files of a sandbox."""

from typing import TYPE_CHECKING, Final

from shoal.client.belonging import Live
from shoal.client.errors import FileError
from shoal.client.requests import PIECE, checked, content, file_path, truth, whole_number
from shoal.wire.messages import FileRead, FileWritten, ReadFile, WriteFile
from shoal.wire.quantities import format_bytes, parse_bytes

if TYPE_CHECKING:
    from shoal.client.sandbox import Head, Sandbox

TIMEOUT_S: Final = 60.0
LIMIT: Final = "64MiB"
"""Of what is read, unless another is given."""


class Files(Live):
    """The files of a sandbox. A relative path is relative to where its commands run."""

    def __init__(self, sandbox: "Sandbox") -> None:
        self._sandbox = sandbox

    def __repr__(self) -> str:
        return f"<Files of {self._sandbox.name}>"

    async def write(
        self, path: str, data: bytes | str, *, mode: int = 0o644, idempotent: bool = True, id: str | None = None
    ) -> None:
        """Write a file, with the directories it needs; large ones in pieces. Raises FileError. Else as `run`."""
        path, whole = file_path(path, "path"), content(data, "data")
        whole_number(mode, "mode", 0, 0o7777)
        truth(idempotent, "idempotent")
        step = await self._sandbox.step(id)
        for offset in range(0, max(len(whole), 1), PIECE):
            # The last piece has the step's own id: the step is done when that is.
            name = step if offset + PIECE >= len(whole) else f"{step}+{offset // PIECE}"
            piece = whole[offset : offset + PIECE]
            await self._write(name, path, piece, offset, mode, idempotent=idempotent)

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
        step = await self._sandbox.step(id)
        pieces: list[bytes] = []
        offset = 0
        while True:
            piece = await self._read(f"{step}+{len(pieces)}" if pieces else step, path, offset)
            pieces.append(piece.data)
            offset += len(piece.data)
            self._bounded(path, max(piece.size, offset), most)
            if piece.eof or not piece.data:
                return b"".join(pieces)

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

    async def _read(self, id: str, path: str, offset: int) -> FileRead:
        """Read one piece of a file."""

        def message(head: "Head") -> ReadFile:
            return ReadFile(*head, path, offset, PIECE)

        answer = await self._sandbox.ask(message, TIMEOUT_S, f"reading {path!r}", id)
        if not isinstance(answer, FileRead):
            raise self._sandbox.unexpected(answer, path)
        return answer
