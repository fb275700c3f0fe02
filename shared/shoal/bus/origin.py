"""Which stream a reader follows. One that is made again has the old name, and its sequences begin anew."""

import asyncio
from typing import Final

from shoal.bus.api import Api
from shoal.bus.protocol import StreamAnewError

_LOOKS: Final = 10
_PAUSE_S: Final = 0.3


class Origin:
    """A stream as it was when it was first looked at."""

    def __init__(self, api: Api, stream: str) -> None:
        self._api = api
        self._stream = stream
        self._created = ""

    async def check(self, position: int) -> None:
        """Raise StreamAnewError when this is no longer the stream of which somebody has read so far.

        A server that was just elected to lead a stream may not have all of it for a moment: one that seems too short
        is looked at again. Raises NoStreamError, UnreachableError, RefusedError.
        """
        for look in range(_LOOKS):
            if look:
                await asyncio.sleep(_PAUSE_S)
            about = await self._api.ask(f"STREAM.INFO.{self._stream}", no_stream_patience_s=_LOOKS * _PAUSE_S)
            created, last = str(about.get("created", "")), int(about["state"]["last_seq"])
            self._created = self._created or created
            if created != self._created:
                raise StreamAnewError(
                    f"stream {self._stream} was made anew at {created}, and is not the one that was read up to message"
                    f" {position}"
                )
            if last >= position:
                return
        raise StreamAnewError(
            f"stream {self._stream} ends with message {last}, and was read up to message {position}: it was made anew,"
            " or its broker has lost the end of it"
        )
