"""Following a JetStream stream in order: an ephemeral consumer without acknowledgements, pulled ahead of its reader.

The consumer belongs to one connection and is expendable. Whatever happens to it (a gap in its numbering, silence, its
deletion, a reconnect), a new one goes on after the last message that came, so nothing is skipped and nothing twice.
Where the stream itself was made anew there is nothing to go on with, and the reader says so.
"""

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from shoal.bus.api import Api
from shoal.bus.client import header, message_id, status
from shoal.bus.connection import Connection
from shoal.bus.ending import end
from shoal.bus.origin import Origin
from shoal.bus.permissions import Violation
from shoal.bus.protocol import BusError, Delivery, NoStreamError, NotAllowedError, StreamAnewError

_FIRST: Final = 64
_AHEAD: Final = 4096
"""Messages asked for or held beyond what the reader has taken: so many at first, and at most. Each time it has taken
all there is it is `_MORE` times as many. Whoever looks at one message only (which is the first since then?) would else
hear four thousand, and they are 40 ms of a service's time, in which it does nothing else."""
_MORE: Final = 4
_AHEAD_BYTES: Final = 64 * 1024**2
_EXPIRES_S: Final = 30.0
_HEARTBEAT_S: Final = 2.0
_SILENCE_S: Final = 5.0
_INACTIVE_S: Final = 60.0
_NO_STREAM_PATIENCE_S: Final = 5.0
_NS: Final = 1_000_000_000
_DELIVERY: Final = b"$JS.ACK."

_FINAL: Final = (NoStreamError, StreamAnewError)


class Position(NamedTuple):
    """Where a delivery stands: in its stream, and among what its consumer delivered."""

    consumer: bytes
    sequence: int
    consumer_sequence: int
    time_ns: int


def parse_ack_subject(reply: bytes) -> Position:
    """Return what a delivery's reply subject says. Raises ValueError for any other subject.

    Two forms: `$JS.ACK.<stream>.<consumer>.<tries>.<sequence>.<consumer sequence>.<time>.<pending>`, and one with
    domain and account before the stream and perhaps more tokens at the end.
    """
    tokens = reply.split(b".")
    count = len(tokens)
    at = 3 if count == 9 else 5
    if count < 9 or count == 10 or not reply.startswith(_DELIVERY):
        raise ValueError(f"{reply!r} is not the reply subject of a delivery")
    return Position(tokens[at], int(tokens[at + 2]), int(tokens[at + 3]), int(tokens[at + 4]))


class PullReader:
    """A Reader of one stream."""

    def __init__(
        self, connection: Connection, api: Api, stream: str, after: int, since_ms: int | None, filters: Sequence[str]
    ) -> None:
        self._connection = connection
        self._api = api
        self._stream = stream
        self._origin = Origin(api, stream)
        self._checked = 0  # the generation of the consumer after which the stream was last looked at
        self._last = after
        self._last_ns = 0  # when that was stored; 0 where it was not read here
        self._since_ms = since_ms
        self._filters = list(filters)
        self._buffer: deque[Delivery] = deque()
        self._taken: asyncio.Future[None] | None = None
        self._inbox = f"{connection.inbox}.{secrets.token_hex(11)}"
        self._subscription: Subscription | None = None
        self._wanted = 1  # generations of the consumer: the one that is wanted, and the one there is
        self._made = 0
        self._consumer = b""
        self._consumer_sequence = 0
        self._pulls: dict[int, int] = {}  # how many messages of each are to come
        self._asked = 0  # of all of them
        self._ahead = _FIRST
        self._low = _FIRST // 2
        self._pull_number = 0
        self._heard = 0.0
        self._average = 256.0
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure: BusError | None = None
        self._served = False
        self._closed = False
        self.restarts = 0

    @property
    def closed(self) -> bool:
        """Whether it was told to stop."""
        return self._closed

    async def open(self) -> None:
        """Begin; when this returns, nothing published later is missed. Raises NoStreamError."""
        # The client may be lost at this moment: then it subscribes when there is a connection again.
        with contextlib.suppress(NatsError, OSError, RuntimeError):
            await self._subscribe()
        self._connection.follow(self)
        try:
            await self._make_consumer()
            self._top_up()
        except BaseException:
            await self.close()
            raise
        self._task = asyncio.create_task(self._working(), name=f"reader of {self._stream}")

    async def _subscribe(self) -> None:
        self._subscription = await self._connection.client.listen(f"{self._inbox}.*.*", self._on_message)

    # --- the reader's side

    async def batch(self, limit: int = 1024) -> Sequence[Delivery]:
        """Return the next messages, at least one, at most limit; waits until there is one."""
        while True:
            if self._closed:
                raise BusError("this reader is closed")
            if self._buffer:
                if len(self._buffer) <= limit:
                    found = list(self._buffer)
                    self._buffer.clear()
                    self._ahead = min(_MORE * self._ahead, _AHEAD)
                else:
                    found = [self._buffer.popleft() for _ in range(limit)]
                self._ask_for_more()
                return found
            if self._failure is not None:
                raise self._failure
            self._taken = asyncio.get_running_loop().create_future()
            try:
                await self._taken
            finally:
                self._taken = None

    def _hand_over(self) -> None:
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    async def close(self) -> None:
        """Stop following; a waiting `batch` is cancelled."""
        if self._closed:
            return
        self._closed = True
        self._connection.unfollow(self)
        if self._taken is not None:
            self._taken.cancel()
        if self._task is not None:
            await end(self._task)
        if self._connection.ready:
            try:
                if self._subscription is not None:
                    await self._subscription.unsubscribe()
                self._forget_consumer()
            except (NatsError, OSError, RuntimeError):
                pass  # the connection went meanwhile; the broker forgets the consumer by itself

    # --- the connection's side

    def disconnected(self) -> None:
        """Nothing to do: what was received is kept, the rest is asked for anew."""

    async def connected(self, fresh: bool) -> None:
        """Go on with a new consumer: deliveries under way were lost, and perhaps the consumer with its server."""
        if fresh:
            await self._subscribe()
        self._start_over("")

    def forbidden(self, what: Violation) -> bool:
        """End where the broker forbids to ask for messages, or to hear them. Who was served waits until he is again."""
        if self._served:
            return False
        error = what.error(self._connection.url, self._next_subject, f"{self._inbox}.*.*")
        if error is None:
            return False
        self._fail(error)
        return True

    def _fail(self, error: BusError) -> None:
        self._failure = error
        self._hand_over()
        self._work.set()

    def _on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        if not reply.startswith(_DELIVERY) and status(headers)[0]:
            _, generation, pull = subject.rsplit(b".", 2)
            if int(generation) == self._made == self._wanted:
                self._heard = time.monotonic()
                self._on_status(int(pull), headers)
            return
        consumer, sequence, consumer_sequence, time_ns = parse_ack_subject(reply)
        if consumer != self._consumer or self._made != self._wanted:
            return  # from a consumer that was given up
        self._heard = time.monotonic()
        self._served = True
        if consumer_sequence != self._consumer_sequence + 1:
            self._start_over(f"delivery {self._consumer_sequence + 1} is missing before {consumer_sequence}")
            return
        self._consumer_sequence = consumer_sequence
        self._count_off()
        if sequence > self._last:
            self._last, self._last_ns = sequence, time_ns
            self._average += (len(payload) + 256 - self._average) / 16
            id = message_id(headers)
            self._buffer.append(Delivery(subject.decode(), payload, sequence, time_ns // 1_000_000, id))
            self._hand_over()
        if self._asked <= self._low:
            self._ask_for_more()

    def _count_off(self) -> None:
        """One message of the oldest pull came: the broker serves them in turn."""
        for number, left in self._pulls.items():
            if left > 1:
                self._pulls[number] = left - 1
            else:
                del self._pulls[number]
            self._asked -= 1
            return

    def _on_status(self, pull: int, headers: bytes) -> None:
        code, text = status(headers)
        text = text.lower() or ("nobody serves its consumer" if code == "503" else "")
        if code == "100":
            delivered = header(headers, b"Nats-Last-Consumer")
            if delivered.isdigit() and int(delivered) > self._consumer_sequence:
                self._start_over(f"deliveries up to {delivered} are missing after {self._consumer_sequence}")
            return
        self._asked -= self._pulls.pop(pull, 0)
        if code in ("404", "408") or "batch completed" in text:
            self._ask_for_more()
        else:
            self._start_over(f"{code} {text}")

    def _start_over(self, why: str) -> None:
        """Give the consumer up; a new one goes on after the last message received."""
        if why:
            self._connection.tell(f"reader of {self._stream} starts over: {why}")
        self._wanted = self._made + 1
        self.restarts += 1
        self._work.set()

    def _ask_for_more(self) -> None:
        if self._room() > 0:
            self._work.set()

    def _room(self) -> int:
        """Return how many messages to ask for now: none before half of what may be ahead is used up."""
        if self._asked > self._low:
            return 0
        ahead = max(16, min(self._ahead, int(_AHEAD_BYTES / self._average)))
        self._low = ahead // 2
        return ahead - self._asked - len(self._buffer) if self._asked <= self._low else 0

    async def _working(self) -> None:
        """Make consumers and pull from them, until closed."""
        pause = 0.05
        while self._failure is None:
            self._work.clear()
            try:
                if self._made != self._wanted:
                    await self._make_consumer()
                    pause = 0.05
                if self._checked != self._made:
                    await self._origin.check(self._last, self._last_ns)
                    self._checked = self._made
                self._top_up()
            except (BusError, NatsError, OSError) as error:
                if isinstance(error, _FINAL) or (isinstance(error, NotAllowedError) and not self._served):
                    self._fail(error)
                    return
                self._connection.tell(f"reader of {self._stream}: {error}")
                self._work.set()
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)
                continue
            try:
                async with asyncio.timeout(1.0):
                    await self._work.wait()
            except TimeoutError:
                self._look_for_silence()

    def _look_for_silence(self) -> None:
        if self._connection.ready and self._pulls and time.monotonic() - self._heard > _SILENCE_S:
            self._start_over("the broker went silent")

    async def _make_consumer(self) -> None:
        generation = self._wanted
        self._forget_consumer()
        name = f"shoal-{secrets.token_hex(8)}"
        config: dict[str, Any] = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._last + 1,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(_INACTIVE_S * _NS),
        }
        if self._since_ms is not None and self._last == 0:
            del config["opt_start_seq"]
            config["deliver_policy"] = "by_start_time"
            start = datetime.fromtimestamp(self._since_ms / 1000, UTC)
            config["opt_start_time"] = start.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._filters:
            config["filter_subjects"] = self._filters
        body = {"stream_name": self._stream, "config": config, "action": "create"}
        await self._api.ask(f"CONSUMER.CREATE.{self._stream}.{name}", body, no_stream_patience_s=_NO_STREAM_PATIENCE_S)
        self._consumer, self._consumer_sequence = name.encode(), 0
        self._pulls.clear()
        self._asked = 0
        self._heard = time.monotonic()
        self._made = generation

    def _forget_consumer(self) -> None:
        if self._consumer and self._connection.ready:
            subject = f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer.decode()}"
            self._consumer = b""
            self._connection.send(subject, b"", "", None)

    @property
    def _next_subject(self) -> str:
        """On what its consumer is asked for messages."""
        return f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer.decode()}"

    def _top_up(self) -> None:
        """Ask for what there is room for, ahead of need."""
        room = self._room()
        if room <= 0 or not self._connection.ready:
            return
        self._pull_number += 1
        pull = {"batch": room, "expires": int(_EXPIRES_S * _NS), "idle_heartbeat": int(_HEARTBEAT_S * _NS)}
        if not self._pulls:
            self._heard = time.monotonic()
        self._pulls[self._pull_number] = room
        self._asked += room
        self._connection.send(
            self._next_subject,
            msgspec.json.encode(pull),
            f"{self._inbox}.{self._made}.{self._pull_number}",
            None,
        )
