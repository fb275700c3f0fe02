"""Writing an archive, block by block: killed at any moment, it goes on behind the last good block."""

import contextlib
import fcntl
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final

from shoal.archive import blocks, frames, records
from shoal.archive.account import Account
from shoal.archive.looking import Found, look
from shoal.archive.places import LocalFile
from shoal.archive.records import Entry, Header, Missing, Saved, Summary
from shoal.archive.source import ArchiveError, ConflictError
from shoal.bus.protocol import Delivery
from shoal.machine.checkpoint import Checkpoint, seal

BLOCK: Final = 1024**2
"""Bytes of messages in a block, before compression, about: what a reader has in memory of each stream it follows."""
_OVERHEAD: Final = 16


class Writer:
    """A file that is being written. Make one with `create` or `resume`; one process at a time has it."""

    def __init__(self, path: Path, file: IO[bytes], header: Header, account: Account, digest: bytes) -> None:
        self.path = path
        self.header = header
        self.account = account
        self.digest = digest
        self._file = file
        self._at = file.tell()
        self._pending: dict[str, list[Delivery]] = {}
        self._missing: list[Missing] = []
        self._size = 0
        self._messages = 0

    @classmethod
    def create(cls, path: Path, header: Header) -> "Writer":
        """Begin a file; what is there is overwritten. Raises ArchiveError."""
        file = _locked(path)
        with _explained(path, file):
            file.truncate()
            file.write(frames.MAGIC)
            block = blocks.build(records.HEADER, header, frames.FIRST)
            file.write(block)
            file.flush()
        return cls(path, file, header, Account.after(header), block[-frames.DIGEST :])

    @classmethod
    async def resume(cls, path: Path, may_cut: Callable[[Found], Awaitable[bool]]) -> "Writer | Found":
        """Go on behind the last good block of a file; a block of which only a part was written is cut off.

        So is more than that, where the file was altered, if `may_cut`: nothing is lost by it. That is asked of every
        file that has a header, before anything is changed; it raises where the file is another than is wanted. Returns
        what was found, having changed nothing, of a file that is whole, or to which nothing was written yet. Raises
        ArchiveError.
        """
        file = _locked(path)  # which makes it, where there is none
        try:
            found = await look(LocalFile(path))
            trouble = found.trouble
            allowed = found.header is not None and await may_cut(found)
            if trouble is not None and not trouble.unfinished and not allowed:
                good = (
                    "; what follows may be kept nowhere else: move it away to keep that, or"
                    f" `truncate -s {found.end}` makes it one to go on with, without it"
                )
                raise ArchiveError(f"{trouble}{good if found.header is not None else '; choose another name'}")
            if found.header is None or found.closed:
                file.close()
                return found
            with _explained(path, file):
                account, end, digest = found.account, found.end, found.digest
                file.truncate(end)
                file.seek(end)
        except BaseException:
            file.close()
            raise
        return cls(path, file, found.header, account, digest)

    @property
    def written(self) -> int:
        """Bytes in the file."""
        return self._at

    @property
    def messages(self) -> int:
        """Messages that were written since it was made, without those that are only added yet."""
        return self._messages

    def position(self, stream: str) -> int:
        """Return up to which sequence a stream is here, what is not written yet included."""
        pending = self._pending.get(stream)
        return pending[-1].sequence if pending else self.account.positions.get(stream, 0)

    def append(self, stream: str, delivery: Delivery) -> None:
        """Add a message; of one stream, in order. Raises ArchiveError."""
        self._pending.setdefault(stream, []).append(delivery)
        self._size += len(delivery.payload) + len(delivery.subject) + len(delivery.id) + _OVERHEAD
        if self._size >= BLOCK:
            self.flush()

    def miss(self, stream: str, first: int, last: int) -> None:
        """Note that messages are not kept any more. Raises ArchiveError."""
        self.flush()
        self._missing.append(Missing(stream, first, last))
        self.flush()

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Add a partition's state. Raises ArchiveError."""
        self.flush()
        sealed = seal(checkpoint)
        saved = Saved(
            checkpoint.core, checkpoint.version, checkpoint.stream, checkpoint.sequence, checkpoint.time_ms, len(sealed)
        )
        self._block(records.CHECKPOINT, sealed, Summary(saved=saved))

    def values(self, values: Mapping[str, Mapping[str, bytes]]) -> None:
        """Note how the cluster is set up from now on, by bucket. Raises ArchiveError."""
        self.flush()
        self._block(records.VALUES, values, Summary(buckets=tuple(values)))

    def flush(self) -> None:
        """Write what was added, so that it stays whatever becomes of this process. Raises ArchiveError."""
        if not self._pending and not self._missing:
            return
        packed, parts = blocks.pack_messages(list(self._pending.items()))
        self._block(records.MESSAGES, packed, Summary(parts, tuple(self._missing)))
        self._messages += sum(map(len, self._pending.values()))
        self._pending.clear()
        self._missing.clear()
        self._size = 0

    def finish(self) -> None:
        """Write the end, and see that the disk has all of it. Raises ArchiveError."""
        self.flush()
        if self.account.entries:
            self._index()
        footer = self._at
        self._write(blocks.build(frames.FOOTER, self.account.footer(footer), self.digest))
        with _explained(self.path, self._file):
            self._file.write(frames.trailer(footer))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            directory = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        self._at += frames.TRAILER

    def close(self) -> None:
        """Let go of the file without an end: what was flushed is kept, and can be gone on with."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _index(self) -> None:
        offset = self._at
        self._write(blocks.build(records.INDEX, tuple(self.account.entries), self.digest))
        self.account.index(offset, self._at - offset)

    def _block(self, kind: bytes, body: object, summary: Summary) -> None:
        if self.account.index_due:  # before and not behind a block: a process killed between the two does it then
            self._index()
        offset = self._at
        self._write(blocks.build(kind, body, self.digest, summary))
        self.account.add(Entry(offset, self._at - offset, kind, summary))

    def _write(self, block: bytes) -> None:
        with _explained(self.path, self._file):
            self._file.write(block)
            self._file.flush()
        self._at += len(block)
        self.digest = block[-frames.DIGEST :]


def _locked(path: Path) -> IO[bytes]:
    """Open a file for writing, or make it; nobody else writes it meanwhile. Raises ArchiveError."""
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
    except OSError as error:
        raise ArchiveError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConflictError(f"{path} is being written by another process") from error
    return file


@contextlib.contextmanager
def _explained(path: Path, file: IO[bytes]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):  # it tries once more to write what there was no room for
            file.close()
        raise ArchiveError(f"{path} cannot be written: {error.strerror or error}") from error
