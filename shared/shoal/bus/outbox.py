"""Publishing without waiting: a future for each message, a deadline, retries with the same id, a bound on what is
under way.

What goes to one stream is stored in call order, also through lost connections and changes of the stream's leader:
after any trouble, and after a pause, the oldest message goes alone, and the others follow once it is confirmed. Copies
are dropped by the broker. Order is lost only where the broker refuses or loses some of the messages under way and takes
later ones, as a leader that resigns may at that instant; then the former are stored after the latter. Streams do not
wait for each other.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from nats.errors import BadHeaderError, BadSubjectError, Error as NatsError

from shoal.bus.ending import end
from shoal.bus.lane import Entry, Lane, lane_of
from shoal.bus.protocol import (
    BusError,
    NoStreamError,
    PublishTimeoutError,
    Stored,
    TooLargeError,
    UnreachableError,
)
from shoal.bus.refusals import read_answer

IN_FLIGHT: Final = 4096
"""The broker queues 10,000 messages for a stream and refuses more; several publishers share that."""
IN_FLIGHT_BYTES: Final = 32 * 1024**2
_SWEEP_S: Final = 0.25
_RETRY_S: Final = 0.1
_LONELY_RESEND_S: Final = 1.0
_ID: Final = "Nats-Msg-Id"
_HEADER_BYTES: Final = 32  # the headers' first line, the id's name, ends of lines


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

    def send(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        """Send one message."""
        ...


class Outbox:
    """Publishes through a transport; whoever hears the replies calls `replied`."""

    def __init__(
        self,
        transport: Transport,
        inbox: str,
        *,
        kept: Callable[[str], Awaitable[bool | None]] | None = None,
        deadline_s: float = 30.0,
        resend_s: float = 5.0,
        no_stream_patience_s: float = 3.0,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        """Replies are asked for at `<inbox>.<number>`.

        `kept` says whether some stream keeps a subject, None for not known. It is asked when nobody has responded for
        `no_stream_patience_s` seconds: that may be a stream's absence, or its leader's for a while.
        """
        self._transport = transport
        self._inbox = inbox
        self._kept = kept
        self._deadline_s = deadline_s
        self._resend_s = resend_s
        self._patience_s = no_stream_patience_s
        self._limit = in_flight
        self._lanes: dict[str, Lane] = {}
        self._open: dict[int, Entry] = {}
        self._queue: deque[Entry] = deque()  # in call order; a lane's own are younger than what waits in it
        self._alone: deque[Entry] = deque()
        self._flying = 0
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
        return len(self._open)

    def publish(
        self, subject: str, payload: bytes, id: str, headers: Mapping[str, str] | None = None
    ) -> "asyncio.Future[Stored]":
        """Publish in call order; see `Bus.publish`."""
        future: asyncio.Future[Stored] = self._loop.create_future()
        if self._closed:
            future.set_exception(UnreachableError("the connection to the broker was closed; connect again"))
            return future
        sent = ({_ID: id, **headers} if headers else {_ID: id}) if id else headers
        size = len(payload)
        if sent:
            size += _HEADER_BYTES + sum([len(name) + len(value.encode()) for name, value in sent.items()])
        self._number += 1
        name = lane_of(subject)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane()
        now = self._loop.time()
        entry = Entry(self._number, future, lane, subject, payload, sent, now + self._deadline_s, size)
        self._open[entry.number] = entry
        waits = self._queue or self._alone or not self._may_send()
        if not waits and self._transport.ready and lane.takes(now):
            self._send(entry, now)
        else:
            self._queue.append(entry)
            self._send_all()
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)
        return future

    # --- sending

    async def _pumping(self) -> None:
        while True:
            self._send_all()
            self._wake.clear()
            await self._wake.wait()

    def _send_all(self) -> None:
        while self._transport.ready and self._may_send() and (entry := self._next()) is not None:
            self._send(entry, self._loop.time())

    def _may_send(self) -> bool:
        return self._flying < self._limit and self._bytes < IN_FLIGHT_BYTES

    def _next(self) -> Entry | None:
        if self._alone:
            return self._alone.popleft()
        now = self._loop.time()
        while self._queue:
            entry = self._queue.popleft()
            if entry.lane.takes(now) or entry.future.done():
                return entry
            entry.lane.waiting.append(entry)
        return None

    def _send(self, entry: Entry, now: float) -> None:
        lane = entry.lane
        if lane.next is entry:
            lane.next = None
        if entry.future.done():
            self._settle(entry, None)
            return
        if entry.size > self._transport.max_payload:
            self._settle(entry, _too_large(entry, self._transport.max_payload))
            return
        entry.sent_at = now
        lane.under_way[entry.number] = entry
        self._flying += 1
        self._bytes += entry.size
        try:
            self._transport.send(entry.subject, entry.payload, f"{self._inbox}.{entry.number}", entry.headers)
        except (BadSubjectError, BadHeaderError, ValueError) as error:
            self._settle(entry, BusError(f"{entry.subject!r} cannot be published on: {error}"))
        except (NatsError, OSError) as error:
            # The connection is going; whoever notices has perhaps taken the message back already.
            entry.trouble = str(error) or type(error).__name__
            self._hold(lane)

    # --- what becomes of them

    def replied(self, number: int, status: str, payload: bytes) -> None:
        """Note the broker's answer: `status` is the reply's status header, empty for none."""
        entry = self._open.get(number)
        if entry is None:
            return
        lane = entry.lane
        if status:
            entry.trouble = "no stream keeps the subject" if status == "503" else f"the broker answered {status}"
            if status == "503":
                self._unheard(entry)
            self._refused(entry)
            return
        answer = read_answer(payload, entry.subject, entry.size)
        if isinstance(answer, str):
            entry.trouble = answer
            self._refused(entry)
            return
        lane.unheard_since = None
        if number in lane.under_way:  # else it is an old copy that was confirmed, which says nothing of today
            lane.confirmed = self._loop.time()
        lost_some = isinstance(answer, Stored) and not answer.duplicate and lane.lost_some(number)
        self._settle(entry, answer)
        if lost_some:
            self._hold(lane, 0.0)

    def _refused(self, entry: Entry) -> None:
        """It is sent again, unless that is arranged already: then this answers an earlier copy."""
        if entry.number in entry.lane.under_way:
            self._hold(entry.lane)

    def _settle(self, entry: Entry, outcome: Stored | BusError | None) -> None:
        self._take_back(entry)
        self._open.pop(entry.number, None)
        if not entry.future.done():
            if isinstance(outcome, Stored):
                entry.future.set_result(outcome)
            elif outcome is not None:
                entry.future.set_exception(outcome)
        self._go_on(entry.lane)
        if self._queue or self._alone:
            self._wake.set()

    def _take_back(self, entry: Entry) -> None:
        if entry.lane.under_way.pop(entry.number, None) is not None:
            self._flying -= 1
            self._bytes -= entry.size

    def _hold(self, lane: Lane, seconds: float = _RETRY_S) -> None:
        """Take back what is under way in a lane; after so many seconds its oldest message is tried alone."""
        back = sorted(lane.under_way.values(), key=lambda entry: entry.number)
        for entry in back:
            self._take_back(entry)
        lane.waiting.extendleft(reversed(back))
        lane.confirmed = float("-inf")
        lane.not_before = self._loop.time() + seconds
        if seconds:
            self._loop.call_later(seconds, self._go_on, lane)
        else:
            self._go_on(lane)
        self._wake.set()  # there is room for other lanes

    def _go_on(self, lane: Lane) -> None:
        """Let out what waits in a lane: all of it where it flows, else the oldest alone."""
        if not lane.waiting:
            return
        now = self._loop.time()
        if lane.next is None and lane.flows(now):
            self._queue.extendleft(reversed(lane.waiting))
            lane.waiting.clear()
        elif (entry := lane.choose(now)) is not None:
            self._alone.append(entry)
        self._wake.set()

    def interrupted(self) -> None:
        """Take back everything under way: its connection is lost. It is sent again first, in order, under its id."""
        for lane in self._lanes.values():
            for entry in list(lane.under_way.values()):
                self._take_back(entry)
                entry.trouble = "the connection was lost"
            lane.waiting.clear()
            lane.next = lane.unheard_since = None
            lane.confirmed, lane.not_before = float("-inf"), 0.0
        self._alone.clear()
        self._queue = deque(self._open.values())

    def forbidden(self, fails: Callable[[str], BusError | None]) -> bool:
        """Fail what the broker forbids, where `fails` has an error for its subject. Returns whether there was any."""
        hit = False
        for entry in list(self._open.values()):
            if (error := fails(entry.subject)) is not None:
                hit = True
                self._settle(entry, error)
        return hit

    def resume(self) -> None:
        """There is a connection again."""
        self._wake.set()

    # --- nobody responds

    def _unheard(self, entry: Entry) -> None:
        lane, now = entry.lane, self._loop.time()
        if lane.unheard_since is None:
            lane.unheard_since = now
        if now - lane.unheard_since < self._patience_s or lane.looking is not None:
            return
        if self._kept is None:
            self._give_up(lane)
        else:
            lane.looking = self._loop.create_task(self._look(lane, entry.subject, self._kept), name="look for a stream")

    async def _look(self, lane: Lane, subject: str, kept: Callable[[str], Awaitable[bool | None]]) -> None:
        try:
            found = await kept(subject)
            if found is False and lane.unheard_since is not None:
                self._give_up(lane)
            lane.unheard_since = None
        finally:
            lane.looking = None

    def _give_up(self, lane: Lane) -> None:
        """No stream keeps what this lane is for: fail all that was published there."""
        lane.unheard_since = None
        for entry in [entry for entry in self._open.values() if entry.lane is lane]:
            self._settle(entry, NoStreamError(f"no stream keeps {entry.subject}; is the cluster set up?"))

    # --- time

    def _sweep(self) -> None:
        """Fail what is over its deadline and send again what got no answer."""
        now = self._loop.time()
        while self._open and (entry := next(iter(self._open.values()))).deadline <= now:
            self._settle(entry, _timed_out(entry, self._deadline_s))
        for lane in self._lanes.values():
            if lane.under_way and self._transport.ready:
                oldest = next(iter(lane.under_way.values()))
                alone = len(lane.under_way) == 1 and not lane.flows(now)
                if now - oldest.sent_at > (min(_LONELY_RESEND_S, self._resend_s) if alone else self._resend_s):
                    self._hold(lane, 0.0)
            self._go_on(lane)
        self._sweeping = None if not self.outstanding or self._closed else self._loop.call_later(_SWEEP_S, self._sweep)

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything published is confirmed or failed, at most timeout_s seconds."""
        futures = [entry.future for entry in self._open.values() if not entry.future.done()]
        if futures:
            await asyncio.wait(futures, timeout=timeout_s)

    async def close(self, timeout_s: float) -> None:
        """Drain, then end; what is not confirmed by then fails with PublishTimeoutError."""
        await self.drain(timeout_s)
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        await end(self._pump, *(lane.looking for lane in self._lanes.values() if lane.looking is not None))
        for entry in self._open.values():
            if not entry.future.done():
                entry.future.set_exception(_timed_out(entry, timeout_s))
        self._open.clear()
        self._queue.clear()
        self._lanes.clear()


def _too_large(entry: Entry, limit: int) -> TooLargeError:
    return TooLargeError(f"a message of {entry.size} bytes for {entry.subject} exceeds the broker's {limit} bytes")


def _timed_out(entry: Entry, seconds: float) -> PublishTimeoutError:
    return PublishTimeoutError(
        f"the broker did not confirm a message on {entry.subject} within {seconds:g} s ({entry.trouble})"
    )
