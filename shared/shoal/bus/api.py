"""JetStream's request API: streams, consumers and values, as JSON."""

import asyncio
import time
from typing import Any, Final

import msgspec

from shoal.bus.connection import Connection
from shoal.bus.protocol import BusError, NoStreamError, StreamFullError, UnreachableError

_DEADLINE_S: Final = 15.0
STREAM_NOT_FOUND: Final = 10059
NO_MESSAGE: Final = 10037
NAME_IN_USE: Final = 10058
SUBJECTS_OVERLAP: Final = 10065
NO_PEERS: Final = 10005
"""Fewer servers are there than a stream wants replicas."""
_NO_CLUSTER: Final = 10074
_NO_SPACE: Final = {10023, 10028, 10047}


class RefusedError(BusError):
    """JetStream refused a request; `code` is its error code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Api:
    """Asks JetStream. Every request sent here may be sent twice without harm."""

    def __init__(
        self, connection: Connection, deadline_s: float = _DEADLINE_S, *, absent_s: float | None = None
    ) -> None:
        """`deadline_s`: how long to ask again. `absent_s`: how long where JetStream is not even there, if less."""
        self._connection = connection
        self._deadline_s = deadline_s
        self._absent_s = absent_s

    async def ask(
        self, what: str, body: dict[str, Any] | None = None, *, stream: str = "", no_stream_patience_s: float = 0.0
    ) -> dict[str, Any]:
        """Return the answer to a request, `what` being its subject after `$JS.API.`.

        Raises UnreachableError, NoStreamError, StreamFullError (no room for what is to be made) or RefusedError.
        """
        payload = msgspec.json.encode(body) if body is not None else b""
        until = time.monotonic() + self._deadline_s
        patient_until = time.monotonic() + no_stream_patience_s
        while True:
            left = max(until - time.monotonic(), 0.5)
            reply = await self._connection.request(f"$JS.API.{what}", payload, left, absent_s=self._absent_s)
            answer: dict[str, Any] = msgspec.json.decode(reply.data)
            error = answer.get("error")
            if error is None:
                return answer
            code, text = int(error.get("err_code", 0)), str(error.get("description", "refused"))
            if code == STREAM_NOT_FOUND and time.monotonic() >= patient_until:
                raise NoStreamError(f"there is no stream {stream or what.split('.')[2]}; is the cluster set up?")
            if code in _NO_SPACE:
                raise StreamFullError(
                    f"the broker has no room for {what}: {text}; raise max_file_store in its JetStream configuration"
                )
            if code == _NO_CLUSTER:
                raise RefusedError(f"the broker refused {what}: {text}; more than one replica takes a cluster", code)
            transient = code in (STREAM_NOT_FOUND, NO_PEERS) or int(error.get("code", 0)) in (408, 429, 503)
            if not transient or time.monotonic() >= until:
                if int(error.get("code", 0)) == 503:
                    raise UnreachableError(f"JetStream cannot serve {what}: {text}; enable it, or wait for its leader")
                raise RefusedError(f"the broker refused {what}: {text}", code)
            await asyncio.sleep(0.1)
