"""Publishing without waiting: a future for each message, a deadline, retries with the same id, a bound on what is
under way.

Messages are sent in call order, and again in that order after a lost connection; copies are dropped by the broker.
Only where the broker refuses one message in the middle of others for a moment may that one be stored after them.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
from nats.errors import BadHeaderError, BadSubjectError, MaxPayloadError
from nats.errors import Error as NatsError

from shoal.bus.ending import end
from shoal.bus.protocol import (
    BusError,
    NoStreamError,
    PublishTimeoutError,
    Stored,
    StreamFullError,
    TooLargeError,
    UnreachableError,
)

IN_FLIGHT: Final = 4096
"""The broker queues 10,000 messages for a stream and refuses more; several publishers share that."""
IN_FLIGHT_BYTES: Final = 32 * 1024**2
_SWEEP_S: Final = 0.25
_RETRY_S: Final = 0.1
_HEADER_BYTES: Final = 32  # the headers' first line, the id's name, ends of lines

_STORE_FAILED: Final = 10077
_NO_SPACE: Final = {10023, 10028, 10047}  # insufficient resources, memory and storage
_EXCEEDS_MAXIMUM: Final = 10054
WRONG_LAST_SEQUENCE: Final = {10071, 10164}


class WrongLastError(BusError):
    """The subject already has a message, though the publication was to be its first."""


class Transport(Protocol):
    """What an outbox sends through."""

    @property
    def ready(self) -> bool:
        """Whether what is sent now is sent now."""
        ...

    @property
    def max_payload(self) -> int:
        """Bytes of headers and payload together that are taken."""
        ...

    async def send(self, subject: str, payload: bytes, reply: str, headers: dict[str, Any] | None) -> None:
        """Send one message."""
        ...


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


_ack_decoder = msgspec.json.Decoder(_Ack)


@dataclass(slots=True, eq=False)
class _Entry:
    number: int
    future: "asyncio.Future[Stored]"
    subject: str
    payload: bytes
    headers: dict[str, Any] | None
    deadline: float
    size: int
    sent_at: float = 0.0
    unheard_since: float = 0.0
    trouble: str = "the broker did not answer"


class Outbox:
    """Publishes through a transport; whoever hears the replies calls `replied`."""

    def __init__(
        self,
        transport: Transport,
        inbox: str,
        *,
        deadline_s: float = 30.0,
        resend_s: float = 5.0,
        no_stream_patience_s: float = 3.0,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        """Replies are asked for at `<inbox>.<number>`."""
        self._transport = transport
        self._inbox = inbox
        self._deadline_s = deadline_s
        self._resend_s = resend_s
        self._patience_s = no_stream_patience_s
        self._limit = in_flight
        self._queue: deque[_Entry] = deque()
        self._under_way: dict[int, _Entry] = {}
        self._bytes = 0
        self._number = 0
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._closed = False
        self._sweeping: asyncio.TimerHandle | None = None
        self._pump = self._loop.create_task(self._pumping(), name="outbox")

    @property
    def outstanding(self) -> int:
        """How many messages are not confirmed yet."""
        return len(self._queue) + len(self._under_way)

    def publish(
        self, subject: str, payload: bytes, id: str, headers: dict[str, Any] | None = None
    ) -> "asyncio.Future[Stored]":
        """Publish in call order; see `Bus.publish`."""
        future: asyncio.Future[Stored] = self._loop.create_future()
        if self._closed:
            future.set_exception(UnreachableError("the connection to the broker was closed; connect again"))
            return future
        sent = {"Nats-Msg-Id": id, **(headers or {})} if id else headers
        size = (
            len(payload)
            + (_HEADER_BYTES if sent else 0)
            + sum(len(k) + len(v.encode()) for k, v in (sent or {}).items())
        )
        self._number += 1
        entry = _Entry(self._number, future, subject, payload, sent, self._loop.time() + self._deadline_s, size)
        self._queue.append(entry)
        self._wake.set()
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)
        return future

    async def _pumping(self) -> None:
        while True:
            while self._queue and self._transport.ready and self._may_send():
                await self._send(self._queue.popleft())
            self._wake.clear()
            await self._wake.wait()

    def _may_send(self) -> bool:
        return len(self._under_way) < self._limit and self._bytes < IN_FLIGHT_BYTES

    async def _send(self, entry: _Entry) -> None:
        if entry.future.done():
            return
        if entry.size > self._transport.max_payload:
            entry.future.set_exception(_too_large(entry, self._transport.max_payload))
            return
        entry.sent_at = self._loop.time()
        self._under_way[entry.number] = entry
        self._bytes += entry.size
        try:
            await self._transport.send(entry.subject, entry.payload, f"{self._inbox}.{entry.number}", entry.headers)
        except (BadSubjectError, BadHeaderError, ValueError) as error:
            self._settle(entry, BusError(f"{entry.subject!r} cannot be published on: {error}"))
        except MaxPayloadError:
            self._settle(entry, _too_large(entry, self._transport.max_payload))
        except (NatsError, OSError) as error:
            # The connection is going; whoever notices has perhaps taken the message back already.
            entry.trouble = str(error) or type(error).__name__
            self._again_later(entry)

    def replied(self, number: int, status: str, payload: bytes) -> None:
        """Note the broker's answer: `status` is the reply's status header, empty for none."""
        entry = self._under_way.get(number)
        if entry is None:
            return
        now = self._loop.time()
        if status:
            entry.trouble = "no stream keeps the subject" if status == "503" else f"the broker answered {status}"
            entry.unheard_since = entry.unheard_since or now
            if status == "503" and now - entry.unheard_since >= self._patience_s:
                self._settle(entry, NoStreamError(f"no stream keeps {entry.subject}; is the cluster set up?"))
            else:
                self._again_later(entry)
            return
        try:
            ack = _ack_decoder.decode(payload)
        except msgspec.DecodeError:
            ack = _Ack(error=_Error(description="the broker's answer makes no sense"))
        if ack.error is None:
            self._settle(entry, Stored(ack.stream, ack.seq, ack.duplicate))
            return
        entry.trouble = ack.error.description
        final = _final(entry, ack.error)
        if final is not None:
            self._settle(entry, final)
        else:
            self._again_later(entry)

    def _settle(self, entry: _Entry, outcome: Stored | BusError) -> None:
        self._take_back(entry)
        if not entry.future.done():
            if isinstance(outcome, Stored):
                entry.future.set_result(outcome)
            else:
                entry.future.set_exception(outcome)
        self._wake.set()

    def _take_back(self, entry: _Entry) -> bool:
        if self._under_way.pop(entry.number, None) is None:
            return False
        self._bytes -= entry.size
        return True

    def _again_later(self, entry: _Entry) -> None:
        self._loop.call_later(_RETRY_S, self._again, entry)

    def _again(self, entry: _Entry) -> None:
        if self._take_back(entry):
            self._queue.appendleft(entry)
            self._wake.set()

    def interrupted(self) -> None:
        """Take back everything under way: its connection is lost. It is sent again first, in order, under its id."""
        entries = sorted(self._under_way.values(), key=lambda entry: entry.number, reverse=True)
        for entry in entries:
            self._take_back(entry)
            entry.trouble = "the connection was lost"
            self._queue.appendleft(entry)

    def resume(self) -> None:
        """There is a connection again."""
        self._wake.set()

    def _sweep(self) -> None:
        """Fail what is over its deadline and send again what got no answer."""
        now = self._loop.time()
        expired = [entry for entry in self._under_way.values() if entry.deadline <= now or entry.future.done()]
        silent = [entry for entry in self._under_way.values() if now - entry.sent_at > self._resend_s]
        for entry in expired:
            self._settle(entry, _timed_out(entry, self._deadline_s))
        if self._transport.ready:
            for entry in reversed(silent):
                self._again(entry)
        while self._queue and (self._queue[0].deadline <= now or self._queue[0].future.done()):
            entry = self._queue.popleft()
            if not entry.future.done():
                entry.future.set_exception(_timed_out(entry, self._deadline_s))
        self._sweeping = None if not self.outstanding or self._closed else self._loop.call_later(_SWEEP_S, self._sweep)

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything published is confirmed or failed, at most timeout_s seconds."""
        futures = [entry.future for entry in (*self._under_way.values(), *self._queue) if not entry.future.done()]
        if futures:
            await asyncio.wait(futures, timeout=timeout_s)

    async def close(self, timeout_s: float) -> None:
        """Drain, then end; what is not confirmed by then fails with PublishTimeoutError."""
        await self.drain(timeout_s)
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        await end(self._pump)
        for entry in (*self._under_way.values(), *self._queue):
            if not entry.future.done():
                entry.future.set_exception(_timed_out(entry, timeout_s))
        self._under_way.clear()
        self._queue.clear()


def _too_large(entry: _Entry, limit: int) -> TooLargeError:
    return TooLargeError(f"a message of {entry.size} bytes for {entry.subject} exceeds the broker's {limit} bytes")


def _timed_out(entry: _Entry, seconds: float) -> PublishTimeoutError:
    return PublishTimeoutError(
        f"the broker did not confirm a message on {entry.subject} within {seconds:g} s ({entry.trouble})"
    )


def _final(entry: _Entry, error: _Error) -> BusError | None:
    """Return what a refusal means for the publisher, or None where it is worth another try."""
    text = error.description
    if error.err_code in WRONG_LAST_SEQUENCE:
        return WrongLastError(f"{entry.subject} has a message already")
    if error.err_code == _EXCEEDS_MAXIMUM:
        return TooLargeError(f"a message of {entry.size} bytes for {entry.subject} exceeds what its stream takes")
    if (error.err_code == _STORE_FAILED and "maximum" in text) or error.err_code in _NO_SPACE:
        return StreamFullError(
            f"the stream of {entry.subject} is full and takes no new messages until older ones expire ({text}); "
            "raise its max_bytes or wait"
        )
    if 400 <= error.code < 500 and error.code not in (408, 429):
        return BusError(f"the broker refused a message on {entry.subject}: {text}")
    return None
