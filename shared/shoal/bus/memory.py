"""The bus inside one process, for tests and simulations: `MemoryBroker` keeps the streams, `MemoryBus` connects."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from shoal.bus.protocol import (
    BusError,
    Delivery,
    Entry,
    Kept,
    NoStreamError,
    Stored,
    StreamFullError,
    TooLargeError,
    UnreachableError,
)
from shoal.bus.refusals import full_text
from shoal.wire.streams import Stream, subjects_overlap

MAX_PAYLOAD: Final = 1024**2
"""Bytes of id and payload together; as much as a NATS server takes by default."""
_OVERHEAD: Final = 64  # what a stored message takes beyond its subject, id and payload, about


def wall_clock_ms() -> int:
    """Return the machine's time in ms since the epoch."""
    return time.time_ns() // 1_000_000


class _Log:
    """One stream's messages; `first` is the sequence of the oldest one kept."""

    def __init__(self, spec: Stream) -> None:
        self.spec = spec
        self.messages: deque[Delivery] = deque()
        self.first = 1
        self.bytes = 0
        self.ids: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self.waiting: dict[asyncio.Future[None], None] = {}  # in order: a simulation repeats itself

    @property
    def last(self) -> int:
        return self.first + len(self.messages) - 1

    def expire(self, now_ms: int) -> None:
        oldest = now_ms - int(self.spec.max_age_s * 1000)
        while self.spec.max_age_s and self.messages and self.messages[0].time_ms <= oldest:
            self.bytes -= _size(self.messages.popleft())
            self.first += 1
        window = now_ms - int(self.spec.dedupe_s * 1000)
        while self.ids and next(iter(self.ids.values()))[1] <= window:
            self.ids.popitem(last=False)

    def purge(self, up_to: int) -> None:
        while self.messages and self.first <= up_to:
            self.bytes -= _size(self.messages.popleft())
            self.first += 1

    def append(self, subject: str, payload: bytes, id: str, now_ms: int) -> Stored:
        now_ms = max(now_ms, self.messages[-1].time_ms if self.messages else 0)
        self.expire(now_ms)
        known = self.ids.get(id) if id else None
        if known is not None:
            return Stored(self.spec.name, known[0], True)
        message = Delivery(subject, payload, self.last + 1, now_ms, id)
        if self.spec.makes_room and 0 <= _size(message) <= self.spec.max_bytes:
            while self.bytes + _size(message) > self.spec.max_bytes:
                self.purge(self.first)
        if self.spec.max_bytes >= 0 and self.bytes + _size(message) > self.spec.max_bytes:
            raise StreamFullError(full_text(self.spec.name, "maximum bytes exceeded"), self.spec.name)
        self.messages.append(message)
        self.bytes += _size(message)
        if id:
            self.ids[id] = (message.sequence, now_ms)
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.waiting.clear()
        return Stored(self.spec.name, message.sequence, False)


def _size(message: Delivery) -> int:
    return len(message.subject) + len(message.payload) + len(message.id) + _OVERHEAD


class MemoryBroker:
    """Streams and values that outlive the connections to them. `clock` returns ms since the epoch."""

    def __init__(self, clock: Callable[[], int] = wall_clock_ms, *, max_payload: int = MAX_PAYLOAD) -> None:
        self.clock = clock
        self.max_payload = max_payload
        self._logs: dict[str, _Log] = {}
        self._values: dict[str, dict[str, Entry]] = {}
        self._revision = 0

    def connect(self) -> "MemoryBus":
        """Return a new connection."""
        return MemoryBus(self)

    def ensure(self, stream: Stream) -> None:
        """Create a stream, or bring it to these limits. Raises BusError when another one keeps its subjects."""
        for other in self._logs.values():
            if other.spec.name != stream.name and any(
                subjects_overlap(mine, theirs) for mine in stream.subjects for theirs in other.spec.subjects
            ):
                raise BusError(f"streams {stream.name} and {other.spec.name} would both keep some subject")
        if stream.name in self._logs:
            self._logs[stream.name].spec = stream
        else:
            self._logs[stream.name] = _Log(stream)

    def room(self, stream: str) -> int:
        """Return the bytes a stream may take, -1 without limit; 0 where there is none."""
        return self._logs[stream].spec.max_bytes if stream in self._logs else 0

    def store(self, subject: str, payload: bytes, id: str) -> Stored:
        """Store a message. Raises what `Bus.publish` fails with."""
        if len(payload) + len(id) > self.max_payload:
            raise TooLargeError(
                f"a message of {len(payload)} bytes for {subject} exceeds the broker's {self.max_payload} bytes"
            )
        for log in self._logs.values():
            if any(subjects_overlap(pattern, subject) for pattern in log.spec.subjects):
                return log.append(subject, payload, id, self.clock())
        raise NoStreamError(f"no stream keeps {subject}; is the cluster set up?")

    def log(self, stream: str) -> _Log:
        """Return a stream's log. Raises NoStreamError."""
        if stream not in self._logs:
            raise NoStreamError(f"there is no stream {stream}; is the cluster set up?")
        found = self._logs[stream]
        found.expire(self.clock())
        return found

    def names(self) -> list[str]:
        """Return the streams' names, sorted."""
        return sorted(self._logs)

    def messages(self, stream: str) -> list[Delivery]:
        """Return all a stream keeps, for tests to look at."""
        return list(self.log(stream).messages)

    def put(self, bucket: str, key: str, value: bytes) -> int:
        """Store a value; returns its revision."""
        self._revision += 1
        self._values.setdefault(bucket, {})[key] = Entry(value, self._revision)
        return self._revision

    def bucket(self, name: str) -> dict[str, Entry]:
        """Return a bucket's entries by key."""
        return self._values.setdefault(name, {})


class MemoryReader:
    """Follows one stream of a MemoryBroker."""

    def __init__(self, log: _Log, after: int, filters: Sequence[str]) -> None:
        self._log = log
        self._position = after
        self._filters = tuple(filters)
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    async def batch(self, limit: int = 1024) -> Sequence[Delivery]:
        """Return the next messages, at least one, at most limit; waits until there is one."""
        while True:
            if self._closed:
                raise BusError("this reader is closed")
            found = self._take(limit)
            if found:
                return found
            self._waiter = asyncio.get_running_loop().create_future()
            self._log.waiting[self._waiter] = None
            try:
                await self._waiter
            finally:
                self._log.waiting.pop(self._waiter, None)
                self._waiter = None

    def _take(self, limit: int) -> list[Delivery]:
        found: list[Delivery] = []
        start = max(self._position + 1 - self._log.first, 0)
        for message in islice(self._log.messages, start, None):
            self._position = message.sequence
            if not self._filters or any(subjects_overlap(pattern, message.subject) for pattern in self._filters):
                found.append(message)
                if len(found) == limit:
                    break
        return found

    async def close(self) -> None:
        """Stop following; a waiting `batch` is cancelled."""
        self._closed = True
        if self._waiter is not None:
            self._waiter.cancel()


class MemoryBus:
    """A connection to a MemoryBroker."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._readers: list[MemoryReader] = []
        self._closed = False

    def _open(self) -> MemoryBroker:
        if self._closed:
            raise UnreachableError("the connection to the broker was closed; connect again")
        return self._broker

    @property
    def max_payload(self) -> int:
        """Bytes of an id and payload together that the broker takes."""
        return self._broker.max_payload

    async def ensure(self, streams: Sequence[Stream]) -> None:
        """Create these streams where they do not exist; existing ones are brought to these limits."""
        broker = self._open()
        for stream in streams:
            room = [stream.max_bytes, broker.room(stream.name)]
            broker.ensure(replace(stream, max_bytes=-1 if -1 in room else max(room)))

    def publish(self, subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
        """Store a message now; the future is done when this returns."""
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(self._open().store(subject, payload, id))
        except BusError as error:
            future.set_exception(error)
        return future

    async def reader(
        self, stream: str, *, after: int | None = 0, since_ms: int | None = None, filters: Sequence[str] = ()
    ) -> MemoryReader:
        """Follow a stream; see the protocol. Raises NoStreamError."""
        log = self._open().log(stream)
        if since_ms is not None:
            after = next((m.sequence - 1 for m in log.messages if m.time_ms >= since_ms), log.last)
        elif after is None:
            after = log.last
        reader = MemoryReader(log, after, filters)
        self._readers.append(reader)
        return reader

    async def last_sequence(self, stream: str, subject: str = "") -> int:
        """Return the sequence of the stream's last message, or of the last of a subject. Raises NoStreamError."""
        log = self._open().log(stream)
        if subject:
            return next((m.sequence for m in reversed(log.messages) if subjects_overlap(subject, m.subject)), 0)
        return log.last

    async def first_sequence(self, stream: str) -> int:
        """Return the sequence of the oldest message kept, or one after the last. Raises NoStreamError."""
        return self._open().log(stream).first

    async def stored_ms(self, stream: str, sequence: int) -> int | None:
        """Return when a message was stored (ms since 1970), None where it is kept no longer. Raises NoStreamError."""
        log = self._open().log(stream)
        return log.messages[sequence - log.first].time_ms if log.first <= sequence <= log.last else None

    async def streams(self, prefix: str = "") -> Mapping[str, Kept]:
        """Return what each stream keeps whose name begins so, by name."""
        broker = self._open()
        logs = ((name, broker.log(name)) for name in broker.names() if name.startswith(prefix))
        return {name: Kept(log.first, log.last) for name, log in logs}

    async def purge(self, stream: str, up_to: int) -> None:
        """Remove a stream's messages up to and including sequence `up_to`. Raises NoStreamError."""
        self._open().log(stream).purge(up_to)

    async def put(self, bucket: str, key: str, value: bytes) -> int:
        """Store a value whatever was there; returns its revision."""
        return self._open().put(bucket, key, value)

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        """Store a value only where the key's is of this revision (0: where there is none)."""
        broker = self._open()
        known = broker.bucket(bucket).get(key)
        if (known.revision if known else 0) != revision:
            return None
        return broker.put(bucket, key, value)

    async def get(self, bucket: str, key: str) -> Entry | None:
        """Return a key's newest value, or None."""
        return self._open().bucket(bucket).get(key)

    async def keys(self, bucket: str, prefix: str = "") -> Sequence[str]:
        """Return the keys that begin with the prefix, sorted."""
        begin = f"{prefix}." if prefix else ""
        return sorted(key for key in self._open().bucket(bucket) if key.startswith(begin))

    async def delete(self, bucket: str, key: str) -> None:
        """Remove a value; nothing happens where there is none."""
        self._open().bucket(bucket).pop(key, None)

    async def close(self) -> None:
        """Disconnect; readers end."""
        self._closed = True
        for reader in self._readers:
            await reader.close()
