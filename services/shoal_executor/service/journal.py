"""What happened to an executor, written down on its node before anything follows from it.

Sandboxes outlive their executor; what it knew of them must, too. The journal is a file beside them: it need survive the
process, not the machine, so nothing waits for the disk. A machine that started anew has no sandboxes any more, and an
executor that finds such a journal begins a new life.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, NoReturn

import msgspec

from shoal.wire.asked import Answer, Asked
from shoal.wire.messages import (
    DestroySandboxes,
    EndReason,
    GiveUp,
    NodeSpec,
    PreemptSandboxes,
    Ranges,
    SandboxResult,
    Snapshot,
    StartSandboxes,
)
from shoal_executor.core import Key

VERSION: Final = 7
"""Changes with what is said for what happens: who says something else must not go on in the middle of a sentence."""
_HEAD: Final = struct.Struct(">II")
_LOCK_S: Final = 10.0
LARGE: Final = 64 * 1024**2
"""Bytes beyond which a journal is written anew with only what still matters."""


class JournalError(Exception):
    """The journal cannot be used; the text says what to do."""


class Record(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One thing that happened."""


class Began(Record, frozen=True):
    """An executor offered itself under this boot. With another name, place, offer or version, nothing here holds.

    `processes`: how many there were under this boot, each of which went on where the one before it was killed.
    """

    executor: str
    cell: int
    boot: str
    machine: str
    isolation: str
    nodes: tuple[NodeSpec, ...]
    version: int = 1
    processes: int = 1


class Knew(Record, frozen=True):
    """What all earlier records came to: they are left out. `inbox`: None until the first message of it could come."""

    inbox: int | None
    core: bytes
    answers: bytes
    sent: int
    unsent: tuple[tuple[int, str, bytes], ...]
    held: tuple[tuple[Key, Ranges], ...] = ()
    origins: tuple[tuple[str, int, int, Snapshot], ...] = ()
    commands: tuple[tuple[str, int, int, int], ...] = ()


class Took(Record, frozen=True):
    """A message of the inbox was taken. `time_ms`: when the broker stored it, by its clock; `at_ms`: when it was taken,

    by this machine's (`clock`). What is left of a time that a message tells is the difference to the first.
    """

    sequence: int
    message: StartSandboxes | DestroySandboxes | PreemptSandboxes | Asked | GiveUp
    time_ms: int = 0
    at_ms: int = 0


class Up(Record, frozen=True):
    """Sandboxes take commands, since that moment (ms as `clock` counts them)."""

    group: Key
    indices: Ranges
    since_ms: int = 0


class Failed(Record, frozen=True):
    """Sandboxes could not be started, as `start_failed` or `bad_input`."""

    group: Key
    indices: Ranges
    detail: str
    reason: EndReason = EndReason.START_FAILED


class JobsDone(Record, frozen=True):
    """The one command of each of these sandboxes is done."""

    group: Key
    results: tuple[SandboxResult, ...]


class Exited(Record, frozen=True):
    """A sandbox ended and nobody asked for it."""

    group: Key
    index: int
    reason: EndReason
    detail: str


class Gone(Record, frozen=True):
    """Nothing is left of these sandboxes."""

    group: Key
    indices: Ranges


class Returned(Record, frozen=True):
    """A sandbox was made what a snapshot holds: it has started from that, and no longer from its order's."""

    rollout: str
    index: int
    attempt: int
    snapshot: Snapshot


class Slept(Record, frozen=True):
    """All of a sandbox is stored, and it stands still for good."""

    group: Key
    index: int
    snapshot: Snapshot
    preempted: bool = False


class Expired(Record, frozen=True):
    """A group's time was up."""

    group: Key


class Answered(Record, frozen=True):
    """A trainer's command or file operation has its answer."""

    cell: int
    tenant: str
    run: str
    answer: Answer


class Flushed(Record, frozen=True):
    """What was gathered to be reported was put into messages. `promoted`: the readiness of jobs, too, if it is old."""

    promoted: bool = False


class Freed(Record, frozen=True):
    """The slots of what is gone of these groups were given back."""

    groups: tuple[Key, ...]


class Stored(Record, frozen=True):
    """The broker has every message up to this number."""

    number: int


class Left(Record, frozen=True):
    """The executor is about to say that it has left: this boot is over, whatever else of it is found."""


AnyRecord = (
    Began | Knew | Took | Up | Failed | JobsDone | Exited | Gone | Returned | Slept | Expired | Answered
    | Flushed | Freed | Stored | Left
)  # fmt: skip

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[AnyRecord] = msgspec.msgpack.Decoder(AnyRecord)


def _raise(error: OSError) -> NoReturn:
    raise error


class Journal:
    """The journal in a directory, held by one process at a time."""

    def __init__(self, directory: Path, unwritten: Callable[[OSError], NoReturn] = _raise) -> None:
        """`unwritten` is called where something cannot be written down, and does not return.

        A process that knows more than its journal must end there and then, as if it had been killed: its sandboxes live
        on, and the next one asks what became of them. It may not tell anybody anything, nor end them.
        """
        self._path = directory / "journal"
        self._unwritten = unwritten
        self._lock: IO[bytes] | None = None
        self._file: IO[bytes] | None = None
        self.size = 0

    def hold(self) -> None:
        """Take hold of it, unless this process has. Raises JournalError when another process will not let go."""
        if self._lock is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = (self._path.parent / "journal.lock").open("ab")
            try:
                self._wait_for_lock(lock)
            except BaseException:
                lock.close()
                raise
            self._lock = lock

    def open(self) -> list[AnyRecord]:
        """Take hold of it, and return what it says. Raises JournalError when another process will not let go.

        A record that was cut off, and whatever follows it, was as good as never written: nothing followed from it.
        """
        self.hold()
        records: list[AnyRecord] = []
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            data = b""
        at = 0
        while at + _HEAD.size <= len(data):
            length, checksum = _HEAD.unpack_from(data, at)
            body = data[at + _HEAD.size : at + _HEAD.size + length]
            if len(body) < length or zlib.crc32(body) != checksum:
                break
            try:
                records.append(_decoder.decode(body))
            except msgspec.DecodeError:
                break  # of another version of this program
            at += _HEAD.size + length
        self._file = self._path.open("r+b" if data else "wb", buffering=0)
        self._file.truncate(at)
        self._file.seek(at)
        self.size = at
        return records

    @staticmethod
    def _wait_for_lock(lock: IO[bytes]) -> None:
        until = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise JournalError(
                        "another executor uses this state directory; stop it, or choose another with --state"
                    ) from None
                time.sleep(0.05)

    def append(self, *records: AnyRecord) -> None:
        """Write records down; they survive this process when this returns. Raises OSError, having written nothing."""
        assert self._file is not None
        data = b"".join(map(_packed, records))
        try:
            _write(self._file, data)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self.size)
            self._file.seek(self.size)
            self._unwritten(error)
        self.size += len(data)

    def rewrite(self, *records: AnyRecord) -> None:
        """Put these records in the place of all there are. Raises OSError; they stay as they are then."""
        fresh = self._path.with_suffix(".new")
        data = b"".join(map(_packed, records))
        try:
            file = fresh.open("wb", buffering=0)
            _write(file, data)
            os.replace(fresh, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            self._unwritten(error)
        if self._file is not None:
            self._file.close()
        self._file, self.size = file, len(data)

    def look(self) -> None:
        """See that it is where the next process looks for it. Where it is not, that is as when it cannot be written."""
        assert self._file is not None
        why = f"{self._path.parent} was deleted or replaced while an executor used it"
        try:
            found, ours = self._path.stat(), os.fstat(self._file.fileno())
        except FileNotFoundError:
            self._unwritten(FileNotFoundError(errno.ENOENT, why))
        if (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino):
            self._unwritten(FileNotFoundError(errno.ENOENT, why))

    def close(self, *, remove: bool) -> None:
        """Let go of it; `remove` it when there is nothing to remember."""
        if remove:
            self._path.unlink(missing_ok=True)
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = self._lock = None


def _write(file: IO[bytes], data: bytes) -> None:
    """Write all of it: a disk that is nearly full takes a part, and says no more than how much."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _packed(record: AnyRecord) -> bytes:
    body = _encode(record)
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def machine() -> str:
    """Return what tells this start of this machine from any other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return secrets.token_hex(16)  # cannot be told: then no journal is continued
