"""nats-py's client, with shorter ways for the two things that Shoal does a million times: publishing and hearing.

nats-py checks and composes a publication's headers one by one, and of each message that comes it makes an object and a
dictionary, puts it into a queue and wakes a task. Here a publication is one formatted line, and what comes goes from
the parser straight to whoever listens, as bytes. All else is nats-py's: connecting, TLS, reconnecting, subscriptions,
requests. See ADR 0021.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import BadHeaderError, BadSubjectError

_LINE: Final = b"NATS/1.0"
_END: Final = b"\r\n"

Hear = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with a message's subject, where to reply, its headers and its payload."""


class DirectClient(Client):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._listeners: dict[int, Hear] = {}

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

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        hear = self._listeners.get(sid)
        if hear is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        try:
            hear(subject, reply, headers or b"", data)
        except Exception as error:  # whoever listens is at fault, and must not end the connection for the others
            await self._error_cb(error)

    def put(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        """Publish, in this turn of the event loop with all others of it. `reply` must be a subject.

        Nothing bounds what is under way: whoever publishes must. Raises BadSubjectError, BadHeaderError, and
        ConnectionResetError without a connection.
        """
        flushes, flusher = self._flush_queue, self._flusher_task
        if not self.is_connected or flushes is None or flusher is None or flusher.done():
            raise ConnectionResetError("there is no connection to the broker")
        if headers:
            head = b"%b\r\n%b\r\n" % (_LINE, b"".join(_line(name, value) for name, value in headers.items()))
            size = len(head)
            command = b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
                _subject(subject), reply.encode(), size, size + len(payload), head, payload,
            )  # fmt: skip
        else:
            command = b"PUB %b %b %d\r\n%b\r\n" % (_subject(subject), reply.encode(), len(payload), payload)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(payload)
        self._pending.append(command)
        self._pending_data_size += len(command)
        if flushes.empty():
            flushes.put_nowait(asyncio.get_running_loop().create_future())


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


def header(headers: bytes, name: bytes) -> str:
    """Return the value of a header, empty where there is none."""
    at = headers.find(b"\r\n%b:" % name)
    if at < 0:
        return ""
    at += len(name) + 3
    return headers[at : headers.find(_END, at)].strip().decode()


def status(headers: bytes) -> tuple[str, str]:
    """Return the code and the words of the broker's own messages; both are empty for what was published."""
    if not headers.startswith(b" ", len(_LINE)):
        return "", ""
    code, _, words = headers[len(_LINE) : headers.find(_END)].strip().decode().partition(" ")
    return code, words.strip()
