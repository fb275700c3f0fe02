"""Which stream a reader follows. One that is made again has the old name, and its sequences begin anew."""

import asyncio
from datetime import UTC, datetime
from typing import Final

from shoal.bus.api import NO_MESSAGE, Api, RefusedError
from shoal.bus.protocol import StreamAnewError

_LOOKS: Final = 10
_PAUSE_S: Final = 0.3


class Origin:
    """A stream as it was when it was first looked at."""

    def __init__(self, api: Api, stream: str) -> None:
        self._api = api
        self._stream = stream
        self._created = ""

    async def check(self, position: int, stored_ns: int = 0) -> None:
        """Raise StreamAnewError when this is no longer the stream of which somebody has read so far.

        `stored_ns`: when the broker stored that message, in ns since 1970; 0 where nobody knows. A stream that has lost
        its end may be as long again, by other messages.

        A server that was just elected to lead a stream may not have all of it for a moment: one that seems too short
        is looked at again. Raises NoStreamError, UnreachableError, RefusedError.
        """
        ended = position
        for look in range(_LOOKS):
            if look:
                await asyncio.sleep(_PAUSE_S)
            about = await self._api.ask(f"STREAM.INFO.{self._stream}", no_stream_patience_s=_LOOKS * _PAUSE_S)
            created, last = str(about.get("created", "")), int(about["state"]["last_seq"])
            self._created = self._created or created
            ended = min(ended, last)
            if created != self._created:
                raise StreamAnewError(
                    f"stream {self._stream} was made anew at {created}, and is not the one that was read up to message"
                    f" {position}"
                )
            if last >= position:
                if position and stored_ns and await self._is_another(position, stored_ns):
                    raise StreamAnewError(
                        f"message {position} of stream {self._stream} is not the one that was read: its broker has lost"
                        " the end of it, as when a backup is restored",
                        ended if ended < position else 0,
                    )
                return
        raise StreamAnewError(
            f"stream {self._stream} ends with message {last}, and was read up to message {position}: it was made anew,"
            " or its broker has lost the end of it",
            ended,
        )

    async def _is_another(self, position: int, stored_ns: int) -> bool:
        """Return whether the message there was stored at another moment; False where it is kept no longer."""
        try:
            found = await self._api.ask(f"STREAM.MSG.GET.{self._stream}", {"seq": position})
        except RefusedError as error:
            if error.code == NO_MESSAGE:
                return False
            raise
        return broker_time_ns(str(found["message"]["time"])) != stored_ns


def broker_time_ns(text: str) -> int:
    """Return a moment as the broker writes it, such as 2026-01-31T12:00:00.123456789Z, in ns since 1970."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    whole = int(datetime.fromisoformat(seconds).replace(tzinfo=UTC).timestamp())
    return whole * 1_000_000_000 + int(fraction.ljust(9, "0"))
