"""One connection to a NATS server that comes back by itself, for ever, and says loudly what happens to it."""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError, NoRespondersError

from shoal.bus.address import shown
from shoal.bus.client import DirectClient
from shoal.bus.dialing import NO_TLS, Attempts, in_the_clear, unreachable
from shoal.bus.ending import end
from shoal.bus.permissions import Requests, Violation, violation
from shoal.bus.protocol import UnreachableError

_PENDING_BYTES: Final = 64 * 1024**2
_PING_S: Final = 5
_RECONNECT_S: Final = 0.2
_LOOK_S: Final = 1.0
_SAME_ERROR_S: Final = 10.0
"""The same trouble is told once in so many seconds, or a broker's absence would fill the log."""

logger = logging.getLogger("shoal.bus")

OnError = Callable[[str], None]


class Follower(Protocol):
    """Whoever must know when the connection comes and goes."""

    def disconnected(self) -> None:
        """What was under way is lost."""
        ...

    async def connected(self, fresh: bool) -> None:
        """There is a connection again; `fresh`: a new one that knows nothing of earlier subscriptions."""
        ...

    def forbidden(self, what: Violation) -> bool:
        """The broker forbids this. Returns whether it is of theirs, and whoever asked for it is told."""
        ...


INBOX: Final = "_INBOX"


class Connection:
    """Wraps a nats-py client, which it replaces when that gives up."""

    def __init__(
        self,
        url: str,
        name: str,
        on_error: OnError | None,
        connect_timeout: float,
        tls: ssl.SSLContext | None = None,
        inbox: str = INBOX,
    ) -> None:
        self.inbox = inbox
        """What subjects begin with on which this connection hears answers."""
        self._url = url
        self._tls = tls
        self._name = name
        self._on_error = on_error
        self._connect_timeout = connect_timeout
        self._followers: list[Follower] = []
        self._up = asyncio.Event()
        self._requests = Requests(url, inbox)
        self._told: dict[str, float] = {}
        self._closing = False
        self._redialing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.client = DirectClient()

    @property
    def ready(self) -> bool:
        """Whether what is sent now is sent now."""
        return bool(self.client.is_connected)

    @property
    def url(self) -> str:
        """Where it connects to, and as whom."""
        return self._url

    @property
    def max_payload(self) -> int:
        """Bytes of headers and payload together that the server takes."""
        return int(self.client.max_payload)

    async def dial(self) -> None:
        """Connect for the first time. Raises UnreachableError when no server answers within connect_timeout seconds.

        Each server has its share of them. Raises NotAllowedError where one answers and does not let us in.
        """
        attempts = Attempts(self._url, self._connect_timeout)
        client = DirectClient()
        dialing = True

        async def on_error(error: Exception) -> None:
            if dialing:
                attempts.failure(client.tried, error)
            else:
                self._went_wrong(error)

        async def on_disconnected() -> None:
            if self.client is client:
                self._disconnected(client)

        async def on_reconnected() -> None:
            if self._in_the_clear(client):
                self.tell(str(unreachable(self._url, NO_TLS)))
                await client.close()  # and dial again
                return
            await self._connected(fresh=False)

        async def on_closed() -> None:
            if self.client is client:
                self._begin_to_redial()

        connecting = asyncio.create_task(
            client.connect(
                attempts.servers,
                name=self._name,
                error_cb=on_error,
                disconnected_cb=on_disconnected,
                reconnected_cb=on_reconnected,
                closed_cb=on_closed,
                connect_timeout=attempts.share_s,  # type: ignore[arg-type]  # seconds; a fraction works
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_S,  # type: ignore[arg-type]  # seconds; a fraction works
                ping_interval=_PING_S,
                max_outstanding_pings=2,
                pending_size=_PENDING_BYTES,
                tls=self._tls,
                inbox_prefix=self.inbox,
            )
        )
        giving_up = asyncio.create_task(attempts.failed.wait())
        try:
            await asyncio.wait(
                {connecting, giving_up}, timeout=self._connect_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not connecting.done():
                raise attempts.error()
            try:
                connecting.result()
            except (OSError, NatsError, ValueError) as error:
                raise unreachable(self._url, str(error) or type(error).__name__) from error
            if self._in_the_clear(client):
                raise unreachable(self._url, NO_TLS)
        except BaseException:
            await end(connecting)
            with contextlib.suppress(Exception):
                await client.close()
            raise
        finally:
            giving_up.cancel()
        dialing = False
        client.options["connect_timeout"] = self._connect_timeout  # from now on it tries for ever
        self.client = client
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="watch the connection")
        await self._connected(fresh=True)

    @property
    def clustered(self) -> bool:
        """Whether the server is one of several that have elected who answers for them."""
        return bool(self.client._server_info.get("cluster"))

    def _in_the_clear(self, client: Client) -> bool:
        return in_the_clear(self._url, client._server_info.get("tls_required"))

    def _went_wrong(self, error: Exception) -> None:
        """Tell whoever asked for what the broker forbids, and everybody of all else."""
        text = f"{type(error).__name__}: {error}"
        what = violation(error)
        if what is not None:
            theirs = [follower.forbidden(what) for follower in list(self._followers)]
            if self._requests.forbidden(what) or any(theirs):
                self._told[text] = time.monotonic()  # it comes once for each message of a subject, and all have failed
        self.tell(text)

    def follow(self, follower: Follower) -> None:
        """Tell the follower from now on when the connection comes and goes."""
        self._followers.append(follower)

    def unfollow(self, follower: Follower) -> None:
        """Tell it no longer."""
        if follower in self._followers:
            self._followers.remove(follower)

    def tell(self, text: str) -> None:
        """Say what went wrong: to the log and to whoever asked to be told."""
        now = time.monotonic()
        if now - self._told.get(text, -_SAME_ERROR_S) < _SAME_ERROR_S:
            return
        if len(self._told) > 1000:
            self._told.clear()
        self._told[text] = now
        logger.error("broker connection %s: %s", self._name, text)
        if self._on_error is not None:
            self._on_error(text)

    def _disconnected(self, client: Client) -> None:
        if not self._up.is_set():
            return
        self._up.clear()
        if not self._closing:
            self.tell("the connection to the broker is lost; trying again until it is back")
        # What nats-py still holds would be sent first after a reconnect, before what the outbox sends again, and so
        # out of order. The outbox keeps all of it.
        client._pending = []
        client._pending_data_size = 0
        for follower in list(self._followers):
            follower.disconnected()

    async def _connected(self, fresh: bool) -> None:
        again = bool(self._told)
        self._up.set()
        if again:
            self._told.clear()
            logger.warning("broker connection %s: connected", self._name)
        for follower in list(self._followers):
            await follower.connected(fresh)

    async def _watch(self) -> None:
        """Give up clients that have come to a standstill.

        On uvloop a closed transport raises RuntimeError, which nats-py does not expect: a cut at the wrong moment ends
        its reader or its attempts to reconnect, and it never says so.
        """
        stuck: Client | None = None
        while True:
            await asyncio.sleep(_LOOK_S)
            client = self.client
            if client.is_closed or not _stands_still(client):
                stuck = None
            elif stuck is not client:
                stuck = client  # it may be between one task and the next
            else:
                self.tell("the client has come to a standstill; making a new one")
                await self._discard(client)
                self._begin_to_redial()
                stuck = None

    async def _discard(self, client: Client) -> None:
        closing = asyncio.create_task(client.close())
        await asyncio.wait({closing}, timeout=_PING_S)
        await end(closing)

    def _begin_to_redial(self) -> None:
        if not self._closing and (self._redialing is None or self._redialing.done()):
            self._redialing = asyncio.create_task(self._redial(), name="redial")

    async def _redial(self) -> None:
        """Make a new client: the old one has closed itself for good, as it does after some errors of the server."""
        self._disconnected(self.client)
        while not self._closing:
            try:
                await self.dial()
            except UnreachableError as error:
                self.tell(str(error))
            except (NatsError, OSError, RuntimeError) as error:  # it was lost again before anything could be said
                self.tell(str(error) or type(error).__name__)
                self._disconnected(self.client)
                await self._discard(self.client)
            else:
                return
            await asyncio.sleep(_RECONNECT_S)

    async def request(self, subject: str, payload: bytes, deadline_s: float, *, absent_s: float | None = None) -> Msg:
        """Ask the server's API, again until it answers: only what may come twice.

        Raises UnreachableError, and NotAllowedError at once where the broker's permissions forbid it.
        After `absent_s` seconds it is no longer asked where nobody listens for such a question.
        """
        began = time.monotonic()
        until = began + deadline_s
        why = "not connected"
        while (left := until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._up.wait()
                return await self._requests.answer(
                    subject, self.client.request(subject, payload, timeout=min(left, 2.0))
                )
            except NoRespondersError:
                why = "JetStream is not enabled there, or not ready; start nats-server with --jetstream"
                if absent_s is not None and time.monotonic() - began >= absent_s:
                    break
            except (NatsError, TimeoutError, OSError, RuntimeError) as error:
                why = str(error) or type(error).__name__
            await asyncio.sleep(min(0.05, max(until - time.monotonic(), 0)))
        raise UnreachableError(f"the broker at {shown(self._url)} does not answer {subject.split('.', 2)[-1]} ({why})")

    def send(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        """Publish. Raises NatsError for what cannot be published, and ConnectionResetError."""
        self.client.put(subject, payload, reply, headers)

    async def close(self) -> None:
        """Disconnect for good."""
        self._closing = True
        await end(*(task for task in (self._watching, self._redialing) if task is not None))
        if not self.client.is_closed:
            await self.client.close()
        self._up.clear()


def _stands_still(client: Client) -> bool:
    """Return whether nobody reads from its connection or writes to it, or nobody makes it a new one."""
    at_work = (client._reading_task, client._flusher_task) if client.is_connected else (client._reconnection_task,)
    return any(task is None or task.done() for task in at_work)
