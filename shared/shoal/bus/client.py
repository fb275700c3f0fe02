"""nats-py's client, with shorter ways for the two things that Shoal does a million times: publishing and hearing.

nats-py checks and composes a publication's headers one by one, and of each message that comes it makes an object and a
dictionary, puts it into a queue and wakes a task. Here a publication is one formatted line, and what comes goes
straight to whoever listens, as bytes (`shoal.bus.transport`). All else is nats-py's: connecting, TLS, reconnecting,
subscriptions, requests. See ADR 0021 and 0023.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from nats.aio.client import DEFAULT_BUFFER_SIZE, Client, Srv
from nats.aio.subscription import Subscription
from nats.errors import BadHeaderError, BadSubjectError

from shoal.bus.tls import not_accepted
from shoal.bus.transport import DirectTransport

_LINE: Final = b"NATS/1.0"
_END: Final = b"\r\n"
_STATUS: Final = b"NATS/1.0 "
_ID_FIRST: Final = b"NATS/1.0\r\nNats-Msg-Id:"
_TCP: Final = ("nats", "tls")

Hear = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with a message's subject, where to reply, its headers and its payload."""


class DirectClient(Client):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._listeners: dict[int, Hear] = {}
        self._complaints: set[asyncio.Task[None]] = set()
        self._writing = False
        self.tried = 0
        """How many times a server was tried."""

    async def listen(self, subject: str, hear: Hear) -> Subscription:
        """Subscribe; `hear` is called in the turn of the event loop in which a message comes. Raises as `subscribe`."""
        number = self._sid + 1
        self._listeners[number] = hear
        try:
            return await self.subscribe(subject)
        except BaseException:
            self._listeners.pop(number, None)
            raise

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._listeners.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    async def _connect_to_server(self, s: Srv) -> None:
        self.tried += 1
        if s.uri.scheme not in _TCP:
            await super()._connect_to_server(s)
            return
        s.last_attempt = time.monotonic()
        if not self._transport:
            self._transport = DirectTransport(self._heard)
        await self._transport.connect(s.uri, DEFAULT_BUFFER_SIZE, self.options["connect_timeout"])

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except (OSError, RuntimeError) as error:  # RuntimeError: of uvloop, for a transport that is closed
            transport = self._transport
            if isinstance(transport, DirectTransport):
                refused = not_accepted(transport.trouble or error, transport.encrypted)
                asked = self._server_info.get("tls_verify")  # else the end of the connection says nothing of it
                if refused is not None and (refused.said or asked):
                    raise refused from error
            raise

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # What nats-py's parser has: all of another transport, and here what nobody listens for.
        if not self._heard(sid, subject, reply, headers or b"", data):
            await super()._process_msg(sid, subject, reply, data, headers)

    def _heard(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> bool:
        hear = self._listeners.get(sid)
        if hear is None:
            return False
        try:
            hear(subject, reply, headers, payload)
        except Exception as error:  # whoever listens is at fault, and must not end the connection for the others
            complaint = asyncio.create_task(self._complain(error))
            self._complaints.add(complaint)
            complaint.add_done_callback(self._complaints.discard)
        return True

    async def _complain(self, error: Exception) -> None:
        await self._error_cb(error)

    def put(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        """Publish, in this turn of the event loop with all others of it. `reply` must be a subject.

        Nothing bounds what is under way: whoever publishes must. Raises BadSubjectError, BadHeaderError, and
        ConnectionResetError without a connection.
        """
        flusher = self._flusher_task
        if not self.is_connected or flusher is None or flusher.done():
            raise ConnectionResetError("there is no connection to the broker")
        if headers:
            head = b"%b\r\n%b\r\n" % (_LINE, b"".join([_line(name, value) for name, value in headers.items()]))
            size = len(head)
            command = b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
                _subject(subject), reply.encode(), size, size + len(payload), head, payload,
            )  # fmt: skip
        else:
            command = b"PUB %b %b %d\r\n%b\r\n" % (_subject(subject), reply.encode(), len(payload), payload)
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        """Write what was put in this turn of the event loop, and what nats-py would have written."""
        self._writing = False
        if not self.is_connected or not self._transport:
            return  # whoever put it hears of that, and does so again
        commands, self._pending, self._pending_data_size = self._pending, [], 0
        with contextlib.suppress(OSError, RuntimeError):  # it is closed: nats-py's reader finds that out
            self._transport.writelines(commands)


@lru_cache(4096)
def _subject(subject: str) -> bytes:
    """Return a subject for the wire: white space in it would be the protocol's. Raises BadSubjectError."""
    if not subject or subject.split() != [subject]:
        raise BadSubjectError
    return subject.encode()


def _line(name: str, value: str) -> bytes:
    if "\n" in value or "\r" in value:
        raise BadHeaderError(name)
    return f"{name}: {value}\r\n".encode()


def message_id(headers: bytes) -> str:
    """Return what a message was published with as its id, empty where there is none."""
    if headers.startswith(_ID_FIRST):  # as Shoal writes them
        return headers[len(_ID_FIRST) : headers.find(_END, len(_ID_FIRST))].strip().decode()
    return header(headers, b"Nats-Msg-Id")


def header(headers: bytes, name: bytes) -> str:
    """Return the value of a header, empty where there is none."""
    at = headers.find(b"\r\n%b:" % name)
    if at < 0:
        return ""
    at += len(name) + 3
    return headers[at : headers.find(_END, at)].strip().decode()


def status(headers: bytes) -> tuple[str, str]:
    """Return the code and the words of the broker's own messages; both are empty for what was published."""
    if not headers.startswith(_STATUS):
        return "", ""
    code, _, words = headers[len(_LINE) : headers.find(_END)].strip().decode().partition(" ")
    return code, words.strip()
