"""The bus on NATS JetStream."""

import asyncio
import base64
import contextlib
import secrets
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from shoal.bus.api import NAME_IN_USE, NO_MESSAGE, Api, RefusedError
from shoal.bus.client import status
from shoal.bus.connection import INBOX, Connection, OnError
from shoal.bus.origin import broker_time_ns
from shoal.bus.outbox import Outbox
from shoal.bus.permissions import Violation
from shoal.bus.protocol import BusError, Entry, Kept, NoStreamError, NotAllowedError, Stored, UnreachableError
from shoal.bus.pull import PullReader
from shoal.bus.refusals import WrongLastError
from shoal.bus.tls import tls_from_environment
from shoal.wire.streams import CELLS_KEY, CLUSTER_BUCKET, DEDUPE_S, REPLICAS_KEY, Stream

_NS: Final = 1_000_000_000
_FLUSH_S: Final = 10.0
_LEADER_S: Final = 15.0  # a cluster of brokers elects a new leader within ten
_NO_QUORUM_S: Final = 120.0
_PAUSE_S: Final = 0.2
_UNKNOWN_S: Final = 3.0
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"


class JetStreamBus:
    """A connection to NATS; see `Bus`. Make one with `connect`."""

    def __init__(
        self, connection: Connection, deadline_s: float, no_stream_patience_s: float, replicas: int = 1
    ) -> None:
        self._connection = connection
        self._api = Api(connection)
        self._replicas = replicas
        self._replicas_known = False
        self._nonce = secrets.token_hex(8)
        self._inbox = f"{connection.inbox}.{secrets.token_hex(11)}"
        self._outbox = Outbox(
            connection,
            self._inbox,
            kept=self._is_kept,
            deadline_s=deadline_s,
            no_stream_patience_s=no_stream_patience_s,
        )
        self._readers: list[PullReader] = []
        self._buckets: set[str] = set()
        self._puts = 0

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        name: str = "shoal",
        on_error: OnError | None = None,
        connect_timeout: float = 3.0,
        deadline_s: float = 30.0,
        no_stream_patience_s: float = 3.0,
        tls: ssl.SSLContext | None = None,
        replicas: int = 1,
        inbox: str = INBOX,
    ) -> "JetStreamBus":
        """Connect to a server, or to one of several separated by commas. Once connected, it reconnects for ever.

        `on_error` hears a sentence for each trouble of the connection. Times in seconds: `connect_timeout` for the
        first connection, `deadline_s` for a publication with its retries, `no_stream_patience_s` for a stream to
        appear. `tls`: for `tls://` addresses and servers that insist on it; None: what the environment says
        (`shoal.bus.tls`). `replicas`: on how many servers streams and buckets made here are kept where the cluster
        that is set up there says nothing else. `inbox`: what subjects begin with on which it hears answers; whoever may
        subscribe to those hears them, too. Raises UnreachableError, saying what to do, NotAllowedError and TlsError.
        """
        connection = Connection(url, name, on_error, connect_timeout, tls or tls_from_environment(), inbox)
        await connection.dial()
        bus = cls(connection, deadline_s, no_stream_patience_s, replicas)
        try:
            await bus._subscribe()
            connection.follow(bus)
            # Where nobody listens JetStream is not there; where nobody answers it has no leader, for a moment.
            await Api(connection, max(connect_timeout, _LEADER_S), absent_s=connect_timeout).ask("INFO")
        except BaseException:
            await bus._outbox.close(0)
            await connection.close()
            raise
        return bus

    # --- the connection's side

    async def _subscribe(self) -> None:
        await self._connection.client.listen(f"{self._inbox}.*", self._on_reply)

    def _on_reply(self, subject: bytes, _: bytes, headers: bytes, payload: bytes) -> None:
        code = status(headers)[0] if headers else ""
        self._outbox.replied(int(subject[len(self._inbox) + 1 :]), code, payload)

    def disconnected(self) -> None:
        """Take back what was under way, to send it again."""
        self._outbox.interrupted()

    async def connected(self, fresh: bool) -> None:
        """Send what waits, and again what got no answer."""
        if fresh:
            await self._subscribe()
        self._outbox.interrupted()
        self._outbox.resume()

    def forbidden(self, what: Violation) -> bool:
        """Fail what the broker forbids to publish, or all of it where its answers cannot be heard."""
        ours = f"{self._inbox}.*"
        return self._outbox.forbidden(lambda subject: what.error(self._connection.url, subject, ours))

    @property
    def max_payload(self) -> int:
        """Bytes of headers and payload together that the server takes."""
        return self._connection.max_payload

    # --- streams

    async def ensure(self, streams: Sequence[Stream]) -> None:
        """Create these streams where they do not exist; existing ones are brought to these limits, or have more room.

        New ones are kept on as many servers as they ask for, or the cluster has by rule, if that is more.
        """
        replicas = await self._cluster_replicas()
        await asyncio.gather(*(self._ensure(_stream_config(stream, replicas)) for stream in streams))

    async def _cluster_replicas(self) -> int:
        """Return on how many servers this cluster keeps things. Where none is set up it is for us to say."""
        if not self._replicas_known:
            entry = await self.get(CLUSTER_BUCKET, REPLICAS_KEY)
            if entry is None and await self.get(CLUSTER_BUCKET, CELLS_KEY) is None:
                return self._replicas
            self._replicas = int(entry.value) if entry is not None else 1  # made before there was a choice
            self._replicas_known = True
        return self._replicas

    async def _ensure(self, config: dict[str, Any]) -> None:
        name = config["name"]
        try:
            await self._api.ask(f"STREAM.CREATE.{name}", config)
        except RefusedError as error:
            if error.code != NAME_IN_USE:
                raise
            known = (await self._about(f"STREAM.INFO.{name}"))["config"]
            room = [known["max_bytes"], config["max_bytes"]]
            kept = {"num_replicas": known["num_replicas"], "max_bytes": -1 if -1 in room else max(room)}
            wanted = {**known, **config, **kept}
            if wanted != known:
                await self._about(f"STREAM.UPDATE.{name}", wanted)

    async def _about(self, what: str, body: dict[str, Any] | None = None, *, stream: str = "") -> dict[str, Any]:
        """Ask about a stream that should be there. Raises NoStreamError.

        In a cluster of servers one that was just elected to answer may not know yet what was made a moment ago.
        """
        patience_s = _UNKNOWN_S if self._connection.clustered else 0.0
        return await self._api.ask(what, body, stream=stream, no_stream_patience_s=patience_s)

    async def _is_kept(self, subject: str) -> bool | None:
        """Return whether some stream keeps a subject, whether it has a leader now or not; None for not known."""
        try:
            answer = await Api(self._connection, 2.0).ask("STREAM.NAMES", {"subject": subject})
        except BusError:
            return None
        return bool(answer.get("streams"))

    def publish(self, subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
        """Publish without waiting, in call order; see the protocol."""
        return self._outbox.publish(subject, payload, id)

    async def reader(
        self, stream: str, *, after: int | None = 0, since_ms: int | None = None, filters: Sequence[str] = ()
    ) -> PullReader:
        """Follow a stream; see the protocol. Raises NoStreamError, UnreachableError, NotAllowedError.

        Where most servers of a cluster are away it waits for them for two minutes, as readers do that follow already.
        """
        until = time.monotonic() + (_NO_QUORUM_S if self._connection.clustered else 0.0)
        while True:
            try:
                reader = await self._reader(stream, 0 if since_ms is not None else after, since_ms, filters)
                break
            except UnreachableError as error:
                if isinstance(error, NotAllowedError) or time.monotonic() >= until:
                    raise
                self._connection.tell(f"reader of {stream}: {error}")
                await asyncio.sleep(_PAUSE_S)
        self._readers = [known for known in self._readers if not known.closed]
        self._readers.append(reader)
        return reader

    async def _reader(self, stream: str, after: int | None, since_ms: int | None, filters: Sequence[str]) -> PullReader:
        begin = await self.last_sequence(stream) if after is None else after
        reader = PullReader(self._connection, self._api, stream, begin, since_ms, filters)
        await reader.open()
        return reader

    async def last_sequence(self, stream: str, subject: str = "") -> int:
        """Return the sequence of the stream's last message, or of the last of a subject. Raises NoStreamError."""
        if subject:
            try:
                answer = await self._about(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, stream=stream)
            except RefusedError as error:
                if error.code == NO_MESSAGE:
                    return 0
                raise
            return int(answer["message"]["seq"])
        return int((await self._about(f"STREAM.INFO.{stream}"))["state"]["last_seq"])

    async def first_sequence(self, stream: str) -> int:
        """Return the sequence of the oldest message kept, or one after the last. Raises NoStreamError."""
        state = (await self._about(f"STREAM.INFO.{stream}"))["state"]
        return int(state["first_seq"] if state["messages"] else state["last_seq"] + 1)

    async def stored_ms(self, stream: str, sequence: int) -> int | None:
        """Return when a message was stored (ms since 1970), None where it is kept no longer.

        Raises NoStreamError, UnreachableError, RefusedError.
        """
        try:
            answer = await self._about(f"STREAM.MSG.GET.{stream}", {"seq": sequence}, stream=stream)
        except RefusedError as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        return broker_time_ns(str(answer["message"]["time"])) // 1_000_000

    async def streams(self, prefix: str = "") -> Mapping[str, Kept]:
        """Return what each stream keeps whose name begins so, by name. Raises BusError while some cannot tell."""
        found: dict[str, Kept] = {}
        seen = 0
        while True:
            answer = await self._api.ask("STREAM.LIST", {"offset": seen})
            if missing := answer.get("missing"):
                raise UnreachableError(f"{len(missing)} streams have no leader now, {missing[0]} among them; try again")
            page = answer.get("streams") or []
            for each in page:
                name, state = each["config"]["name"], each["state"]
                if name.startswith(prefix) and not name.startswith(("KV_", "OBJ_")):
                    first = state["first_seq"] if state["messages"] else state["last_seq"] + 1
                    found[name] = Kept(int(first), int(state["last_seq"]))
            seen += len(page)
            if not page or seen >= int(answer.get("total", 0)):
                return dict(sorted(found.items()))

    async def purge(self, stream: str, up_to: int) -> None:
        """Remove a stream's messages up to and including sequence `up_to`. Raises NoStreamError."""
        await self._about(f"STREAM.PURGE.{stream}", {"seq": up_to + 1})

    # --- values

    async def put(self, bucket: str, key: str, value: bytes) -> int:
        """Store a value whatever was there; returns its revision."""
        return (await self._put(bucket, key, value, None)).sequence

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        """Store a value only where the key's is of this revision (0: where there is none)."""
        try:
            return (await self._put(bucket, key, value, {_EXPECTED: str(revision)})).sequence
        except WrongLastError:
            return None

    async def _put(self, bucket: str, key: str, value: bytes, headers: Mapping[str, str] | None) -> Stored:
        if bucket not in self._buckets:
            await self._ensure_bucket(bucket)
        self._puts += 1
        try:
            return await self._outbox.publish(f"$KV.{bucket}.{key}", value, f"{self._nonce}:{self._puts}", headers)
        except NoStreamError:
            self._buckets.discard(bucket)  # somebody deleted it
            raise

    async def get(self, bucket: str, key: str) -> Entry | None:
        """Return a key's newest value, or None: the stream's leader is asked."""
        try:
            answer = await self._api.ask(f"STREAM.MSG.GET.KV_{bucket}", {"last_by_subj": f"$KV.{bucket}.{key}"})
        except NoStreamError:
            return None
        except RefusedError as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        return Entry(base64.b64decode(message.get("data", "")), int(message["seq"]))

    async def keys(self, bucket: str, prefix: str = "") -> Sequence[str]:
        """Return the keys that begin with the prefix, sorted."""
        begin = f"$KV.{bucket}."
        pattern = f"{begin}{prefix}.>" if prefix else f"{begin}>"
        found: list[str] = []
        while True:
            try:
                asked = {"subjects_filter": pattern, "offset": len(found)}
                answer = await self._api.ask(f"STREAM.INFO.KV_{bucket}", asked)
            except NoStreamError:
                return []
            page = answer["state"].get("subjects") or {}
            found += page
            if not page or len(found) >= int(answer.get("total", 0)):
                return sorted(subject[len(begin) :] for subject in found)

    async def delete(self, bucket: str, key: str) -> None:
        """Remove a value; nothing happens where there is none."""
        with contextlib.suppress(NoStreamError):
            await self._api.ask(f"STREAM.PURGE.KV_{bucket}", {"filter": f"$KV.{bucket}.{key}"})

    async def _ensure_bucket(self, bucket: str) -> None:
        with contextlib.suppress(NoStreamError):
            await self._api.ask(f"STREAM.INFO.KV_{bucket}")
            self._buckets.add(bucket)  # it is there, perhaps with other limits: good enough
            return
        replicas = self._replicas if bucket == CLUSTER_BUCKET else await self._cluster_replicas()
        config = {
            "name": f"KV_{bucket}",
            "subjects": [f"$KV.{bucket}.>"],
            "max_msgs_per_subject": 1,
            "discard": "new",
            "storage": "file",
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
            "num_replicas": replicas,
            "duplicate_window": int(DEDUPE_S * _NS),
        }
        try:
            await self._api.ask(f"STREAM.CREATE.KV_{bucket}", config)
        except RefusedError as error:
            if error.code != NAME_IN_USE:
                raise  # else somebody made it meanwhile
        self._buckets.add(bucket)

    async def close(self) -> None:
        """Flush what was published, for at most ten seconds, then disconnect; readers end."""
        for reader in self._readers:
            await reader.close()
        await self._outbox.close(_FLUSH_S)
        self._connection.unfollow(self)
        await self._connection.close()


def _stream_config(stream: Stream, replicas: int) -> dict[str, Any]:
    return {
        "name": stream.name,
        "subjects": list(stream.subjects),
        "retention": "limits",
        "discard": "old" if stream.makes_room else "new",
        "storage": "file",
        "max_age": int(stream.max_age_s * _NS),
        "max_bytes": stream.max_bytes,
        "duplicate_window": int(min(stream.dedupe_s, stream.max_age_s or stream.dedupe_s) * _NS),
        "num_replicas": max(stream.replicas, replicas),
        "allow_direct": True,
    }
