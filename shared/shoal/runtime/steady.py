"""Publishing that does not give up, and keeps each stream's messages in order while the broker refuses some.

A full stream refuses a large message and takes a small one that comes after it. So behind a message that was refused
the others for its stream wait: it is tried again, alone, and when it is stored they follow. Only what was under way at
that moment can have been stored before it.
"""

import asyncio
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec
import structlog

from shoal.bus.lane import lane_of
from shoal.bus.protocol import Bus, BusError, Stored, TooLargeError

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
_SAY_EVERY_S: Final = 30.0

Outcome = Stored | BaseException | None
"""Where a message is stored, or why it never will be: TooLargeError. None where whoever ran the bus gave it up."""

log = structlog.get_logger()


class _Kept(msgspec.Struct, eq=False):
    """One message that is not known to be stored. Times are the event loop's."""

    number: int
    subject: str
    payload: bytes
    id: str
    settled: Callable[[Outcome], None]

    def __lt__(self, other: "_Kept") -> bool:
        return self.number < other.number


@dataclass(slots=True)
class _Lane:
    """What goes to one stream. While `held`, the oldest of `back` is tried again and again, and the others wait."""

    stream: str
    back: list[_Kept] = field(default_factory=list)
    held: bool = False
    tried: _Kept | None = None
    pause: float = FIRST_PAUSE_S
    said_at: float = float("-inf")
    said: bool = False


class SteadyPublisher:
    """Publishes until the broker has it. `name` is for the log."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name
        self._lanes: dict[str, _Lane] = {}
        self._number = 0

    def publish(self, subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
        """Publish after what was published before it; the future fails only with what no waiting mends: TooLargeError.

        It is cancelled with the bus's own.
        """
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()

        def settle(outcome: Outcome) -> None:
            if future.done():
                return
            if isinstance(outcome, Stored):
                future.set_result(outcome)
            elif outcome is not None:
                future.set_exception(outcome)
            else:
                future.cancel()

        self.send(subject, payload, id, settle)
        return future

    def send(self, subject: str, payload: bytes, id: str, settled: Callable[[Outcome], None]) -> None:
        """Publish after what was published before it; `settled` is called once, in a later turn of the event loop."""
        stream = lane_of(subject)
        lane = self._lanes.get(stream)
        if lane is None:
            lane = self._lanes[stream] = _Lane(stream)
        self._number += 1
        kept = _Kept(self._number, subject, payload, id, settled)
        if lane.held:
            lane.back.append(kept)
        else:
            self._send(lane, kept)

    def _send(self, lane: _Lane, kept: _Kept) -> None:
        self._bus.publish(kept.subject, kept.payload, kept.id).add_done_callback(partial(self._answered, lane, kept))

    def _answered(self, lane: _Lane, kept: _Kept, stored: "asyncio.Future[Stored]") -> None:
        error = None if stored.cancelled() else stored.exception()
        if isinstance(error, BusError) and not isinstance(error, TooLargeError):
            insort(lane.back, kept)
            self._hold(lane, kept, error)
            return
        kept.settled(None if stored.cancelled() else error or stored.result())
        if lane.tried is kept:
            self._let_go(lane)

    def _hold(self, lane: _Lane, kept: _Kept, error: BusError) -> None:
        if lane.held and lane.tried is not kept:
            return  # its turn comes
        lane.pause = min(lane.pause * 2, LONGEST_PAUSE_S) if lane.held else FIRST_PAUSE_S
        lane.held, lane.tried = True, None
        loop = asyncio.get_running_loop()
        if loop.time() - lane.said_at >= _SAY_EVERY_S:
            lane.said_at, lane.said = loop.time(), True
            log.error(
                "a stream takes nothing; trying until it does",
                by=self._name, stream=lane.stream, waiting=len(lane.back), error=str(error),
            )  # fmt: skip
        loop.call_later(lane.pause, self._try, lane)

    def _try(self, lane: _Lane) -> None:
        lane.tried = lane.back.pop(0)
        self._send(lane, lane.tried)

    def _let_go(self, lane: _Lane) -> None:
        lane.held, lane.tried = False, None
        following, lane.back = lane.back, []
        if lane.said:
            lane.said = False
            log.warning("a stream takes messages again", by=self._name, stream=lane.stream, waiting=len(following))
        for kept in following:
            self._send(lane, kept)
