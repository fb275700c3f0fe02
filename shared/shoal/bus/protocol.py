"""What Shoal asks of a message bus. Every implementation inherits `tests/conformance/bus.py`.

A bus holds streams and buckets. A stream is an ordered log: what is published on a stream's subjects gets the next
sequence (from 1). A reader follows one stream in order, each message once. A bucket holds values by key; every change
of a value has a revision, so that a writer can insist on replacing exactly what it has seen.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from shoal.wire.streams import Stream


class BusError(Exception):
    """The bus could not do what was asked; the text is one sentence for people."""


class UnreachableError(BusError):
    """No broker answers at the address, or none that lets us in. `reason`: the text without what to do about it."""

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason or text


class NotAllowedError(UnreachableError):
    """The broker does not let this client in, or forbids what was asked: trying again changes nothing."""


class PublishTimeoutError(BusError):
    """The broker did not confirm a message within its deadline, tries included. It may have been stored."""


class StreamFullError(BusError):
    """The stream, which `stream` names where that is known, takes no new messages until there is room for them."""

    def __init__(self, text: str, stream: str = "") -> None:
        super().__init__(text)
        self.stream = stream


class TooLargeError(BusError):
    """The message exceeds what the broker takes."""


class NoStreamError(BusError):
    """No such stream, or no stream keeps the subject."""


class StreamAnewError(BusError):
    """The stream that a reader follows is not the one it has read: it was made again, or has lost its end.

    `last`: with which message it ended when that was seen; what came after it has not been read.
    """

    def __init__(self, text: str, last: int = 0) -> None:
        super().__init__(text)
        self.last = last


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One message as a reader gets it. `time_ms`: when the broker stored it; `id`: what it was published with."""

    subject: str
    payload: bytes
    sequence: int
    time_ms: int
    id: str


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A publication the broker confirmed. `duplicate`: it knew the id already and stored nothing new."""

    stream: str
    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """What a stream keeps: the sequences of its oldest and its last message; `first` is one more when it keeps none."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A bucket's value and its revision, which grows with every change in the bucket."""

    value: bytes
    revision: int


class Reader(Protocol):
    """Follows one stream, or a part of it, in order."""

    async def batch(self, limit: int = 1024) -> Sequence[Delivery]:
        """Return the next messages, at least one, at most limit; waits until there is one.

        Pulls overlap: the next batch is already asked for while this one is worked on. After a lost connection it
        goes on where it was; nothing is skipped and nothing comes twice. Raises NoStreamError when the stream was
        removed, StreamAnewError when it was made again.
        """
        ...

    async def close(self) -> None:
        """Stop following; a waiting `batch` is cancelled."""
        ...


class Bus(Protocol):
    """A connection to a broker."""

    @property
    def max_payload(self) -> int:
        """Bytes of headers and payload together that the broker takes in one message."""
        ...

    async def ensure(self, streams: Sequence[Stream]) -> None:
        """Create these streams where they do not exist; existing ones are left or brought to these limits.

        None is made smaller: the room that somebody made in a full stream stays.
        """
        ...

    def publish(self, subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
        """Publish without waiting, in call order. The future resolves when the broker has stored the message.

        Retries with the same id until a deadline; a stream drops a copy whose id it has seen inside its window.
        Fails with PublishTimeoutError, StreamFullError, TooLargeError, NoStreamError or NotAllowedError.
        """
        ...

    async def reader(
        self, stream: str, *, after: int | None = 0, since_ms: int | None = None, filters: Sequence[str] = ()
    ) -> Reader:
        """Follow a stream from the first message after sequence `after` (0: from its beginning; None: only new ones),

        or from the first stored at or after `since_ms`; only subjects that match `filters`, if any are given.
        When this returns, nothing published later will be missed.
        """
        ...

    async def last_sequence(self, stream: str, subject: str = "") -> int:
        """Return the sequence of the stream's last message, 0 when it never had one.

        With a subject, which may be a pattern: of the last of those it keeps, 0 when it keeps none. Raises
        NoStreamError.
        """
        ...

    async def first_sequence(self, stream: str) -> int:
        """Return the sequence of the oldest message the stream still keeps; one after the last when it keeps none.

        Raises NoStreamError.
        """
        ...

    async def stored_ms(self, stream: str, sequence: int) -> int | None:
        """Return when a message was stored, in ms since 1970, as its deliveries say; None where it is kept no longer.

        Raises NoStreamError, and BusError while the broker cannot tell.
        """
        ...

    async def streams(self, prefix: str = "") -> Mapping[str, Kept]:
        """Return what each stream keeps whose name begins so, by name; those of buckets are not among them.

        All of them or, while the broker cannot tell of some, none: raises BusError then.
        """
        ...

    async def purge(self, stream: str, up_to: int) -> None:
        """Remove a stream's messages up to and including sequence `up_to`; sequences go on. Raises NoStreamError."""
        ...

    async def put(self, bucket: str, key: str, value: bytes) -> int:
        """Store a value whatever was there; returns its revision."""
        ...

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        """Store a value only where the key's is of this revision (0: where there is none).

        Returns the new revision, or None when somebody else changed it. Of any number of callers at once one succeeds.
        """
        ...

    async def get(self, bucket: str, key: str) -> Entry | None:
        """Return a key's newest value, or None."""
        ...

    async def keys(self, bucket: str, prefix: str = "") -> Sequence[str]:
        """Return the keys that begin with the prefix (whole tokens, each followed by a dot), sorted."""
        ...

    async def delete(self, bucket: str, key: str) -> None:
        """Remove a value; nothing happens where there is none."""
        ...

    async def close(self) -> None:
        """Flush what was published, then disconnect."""
        ...
