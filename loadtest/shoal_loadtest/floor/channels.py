"""How a bare process speaks with the broker: through Shoal's own bus, or through nats-py with nothing around it.

Both pull ahead of their reader, publish without waiting and have every publication confirmed. `BusChannel` also has all
that makes the bus safe: order, retries, reconnects. `NatsChannel` has none of it: any trouble ends the process.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
import nats
from nats.aio.msg import Msg

from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import Reader, Stored

UNDER_WAY: Final = 4096
"""Publications not confirmed yet, at most: as many as the bus has."""
_AHEAD: Final = 4096
_EXPIRES_S: Final = 30.0
_AGAIN_S: Final = 0.02


class ChannelError(Exception):
    """The broker did not do what was asked: a floor has no second try."""


class Channel(Protocol):
    """One process's connection: one stream is read, any is written."""

    async def open(self, url: str, stream: str, after: int) -> None:
        """Connect, and read this stream from the first message after a sequence."""
        ...

    async def batch(self) -> Sequence[tuple[int, bytes]]:
        """Return the next messages with their sequences, at least one."""
        ...

    async def publish(self, subject: str, payload: bytes, id: str) -> None:
        """Publish; waits only while too much is under way. Raises ChannelError for what was refused before."""
        ...

    async def settled(self) -> None:
        """Wait until all that was published is confirmed. Raises ChannelError."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class BusChannel:
    """Shoal's own bus."""

    def __init__(self) -> None:
        self._bus: JetStreamBus | None = None
        self._reader: Reader | None = None
        self._open: set[asyncio.Future[Stored]] = set()
        self._trouble: BaseException | None = None
        self._fewer = asyncio.Event()

    async def open(self, url: str, stream: str, after: int) -> None:
        """Connect and begin to read."""
        self._bus = await JetStreamBus.connect(url, name="floor")
        self._reader = await self._bus.reader(stream, after=after)

    async def batch(self) -> Sequence[tuple[int, bytes]]:
        """Return what there is."""
        assert self._reader is not None
        return [(delivery.sequence, delivery.payload) for delivery in await self._reader.batch()]

    async def publish(self, subject: str, payload: bytes, id: str) -> None:
        """Publish, and remember it until it is confirmed."""
        assert self._bus is not None
        while len(self._open) >= 2 * UNDER_WAY:
            await self._less()
        future = self._bus.publish(subject, payload, id)
        self._open.add(future)
        future.add_done_callback(self._done)

    def _done(self, future: "asyncio.Future[Stored]") -> None:
        self._open.discard(future)
        self._trouble = self._trouble or (None if future.cancelled() else future.exception())
        self._fewer.set()

    async def _less(self) -> None:
        self._fewer.clear()
        await self._fewer.wait()
        if self._trouble is not None:
            raise ChannelError(str(self._trouble)) from self._trouble

    async def settled(self) -> None:
        """Wait for all confirmations."""
        while self._open:
            await self._less()

    async def close(self) -> None:
        """Disconnect."""
        if self._bus is not None:
            await self._bus.close()


class NatsChannel:
    """nats-py and nothing else: confirmations are counted, not kept."""

    def __init__(self) -> None:
        self._client: Any = None
        self._stream = ""
        self._consumer = f"floor-{secrets.token_hex(6)}"
        self._inbox = f"_INBOX.{secrets.token_hex(8)}"
        self._buffer: list[tuple[int, bytes]] = []
        self._arrived = asyncio.Event()
        self._asked = 0
        self._under_way = 0
        self._trouble = ""
        self._confirmed = asyncio.Event()
        self._pulls: set[asyncio.Task[None]] = set()

    async def open(self, url: str, stream: str, after: int) -> None:
        """Connect, make a consumer and pull from it."""
        self._client = await nats.connect(
            url.split(","), pending_size=64 * 1024**2, skip_subject_validation=True, allow_reconnect=False
        )
        self._stream = stream
        unlimited = {"pending_msgs_limit": 0, "pending_bytes_limit": 0}
        await self._client.subscribe(f"{self._inbox}.ack", cb=self._on_ack, **unlimited)
        await self._client.subscribe(f"{self._inbox}.next", cb=self._on_message, **unlimited)
        config = {
            "name": self._consumer, "deliver_policy": "by_start_sequence", "opt_start_seq": after + 1,
            "ack_policy": "none", "mem_storage": True, "num_replicas": 1, "inactive_threshold": 60_000_000_000,
        }  # fmt: skip
        body = msgspec.json.encode({"stream_name": stream, "config": config, "action": "create"})
        reply = await self._client.request(f"$JS.API.CONSUMER.CREATE.{stream}.{self._consumer}", body, timeout=10)
        if b'"error"' in reply.data:
            raise ChannelError(f"no consumer of {stream}: {reply.data.decode(errors='replace')}")
        await self._pull()

    async def _pull(self) -> None:
        self._asked += _AHEAD
        pull = msgspec.json.encode({"batch": _AHEAD, "expires": int(_EXPIRES_S * 1e9)})
        next_ = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        await self._client.publish(next_, pull, reply=f"{self._inbox}.next")

    async def _on_message(self, msg: Msg) -> None:
        if not msg.reply:  # a status: a pull has expired, and says how much of it was left
            headers = msg.headers or {}
            if headers.get("Status") == "503":  # this server has not heard of its consumer yet, which is another's
                await asyncio.sleep(_AGAIN_S)
                self._asked -= _AHEAD
                await self._pull()
                return
            left = headers.get("Nats-Pending-Messages", "")
            if not left.isdigit():
                self._trouble = f"the broker ended a pull from {self._stream}: {meaning(headers, msg.data)}"
                self._arrived.set()
                return
            self._asked -= int(left)
        else:
            self._asked -= 1
            self._buffer.append((int(msg.reply.split(".")[5]), msg.data))
            self._arrived.set()
        if self._asked <= _AHEAD // 2:
            await self._pull()

    async def batch(self) -> Sequence[tuple[int, bytes]]:
        """Return what has arrived."""
        self._check()
        while not self._buffer:
            self._arrived.clear()
            await self._arrived.wait()
            self._check()
        found, self._buffer = self._buffer, []
        return found

    async def publish(self, subject: str, payload: bytes, id: str) -> None:
        """Publish."""
        while self._under_way >= UNDER_WAY:
            self._confirmed.clear()
            await self._confirmed.wait()
            self._check()
        self._under_way += 1
        await self._client.publish(subject, payload, f"{self._inbox}.ack", {"Nats-Msg-Id": id})

    async def _on_ack(self, msg: Msg) -> None:
        if msg.headers or b'"error"' in msg.data:
            self._trouble = f"a publication was refused: {meaning(msg.headers or {}, msg.data)}"
            self._arrived.set()  # whoever waits for messages is told, too
        self._under_way -= 1
        self._confirmed.set()

    def _check(self) -> None:
        if self._trouble:
            raise ChannelError(self._trouble)

    async def settled(self) -> None:
        """Wait for all confirmations."""
        while self._under_way:
            self._confirmed.clear()
            await self._confirmed.wait()
        self._check()

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            await self._client.close()


def meaning(headers: Mapping[str, str], payload: bytes) -> str:
    """Return what an answer of the broker says that is no confirmation: it has a status, or an error as its payload."""
    if payload:
        return payload.decode(errors="replace")
    status, words = headers.get("Status", ""), headers.get("Description", "")
    if status == "503":
        return (
            "nobody answers for its stream (status 503): it has no leader at the moment, as while servers elect one, or"
            " was never made; look whether all servers run, and measure again"
        )
    return f"{words} (status {status})" if words else f"status {status}, without a word; see the servers' logs"


CHANNELS: Final[dict[str, type[BusChannel] | type[NatsChannel]]] = {"bus": BusChannel, "nats-py": NatsChannel}
"""By the names under which they are chosen."""
