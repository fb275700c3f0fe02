"""A lane: what one connection publishes to one stream, kept in order whatever happens to that stream's leader."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import msgspec

from shoal.bus.protocol import Stored
from shoal.wire.streams import stream_of

FLOWS_S: Final = 1.0
"""A lane flows while the broker has confirmed something on it within so many seconds.

Else it has one message under way at a time: a leader that was lost may have taken the ones before with it, and a new
one may come at any moment. Elections take longer than this.
"""


class Entry(msgspec.Struct, eq=False):
    """One publication that is not settled yet. Times are the event loop's."""

    number: int
    future: "asyncio.Future[Stored]"
    lane: "Lane"
    subject: str
    payload: bytes
    headers: Mapping[str, str] | None
    deadline: float
    size: int
    sent_at: float = 0.0
    trouble: str = "the broker did not answer"


@dataclass(slots=True, eq=False)
class Lane:
    """What goes to one stream. All under way is older than all that waits, and both are in order."""

    under_way: OrderedDict[int, Entry] = field(default_factory=OrderedDict)  # whose first is found at once
    waiting: deque[Entry] = field(default_factory=deque)
    next: Entry | None = None  # chosen to be sent alone
    confirmed: float = float("-inf")
    not_before: float = 0.0
    unheard_since: float | None = None
    looking: "asyncio.Task[None] | None" = None

    def flows(self, now: float) -> bool:
        """Return whether messages may follow each other without waiting for answers."""
        return now >= self.not_before and now - self.confirmed < FLOWS_S

    def takes(self, now: float) -> bool:
        """Return whether a message may be sent now."""
        if self.waiting or self.next is not None:
            return False
        return self.flows(now) or (now >= self.not_before and not self.under_way)

    def lost_some(self, number: int) -> bool:
        """Return whether the confirmation of a message means that an older one was lost: they are stored in order."""
        return next(iter(self.under_way), number) < number

    def choose(self, now: float) -> Entry | None:
        """Return the oldest waiting message where it may be sent alone, as `next`."""
        if self.next is not None or self.under_way or now < self.not_before:
            return None
        while self.waiting:
            entry = self.waiting.popleft()
            if not entry.future.done():
                self.next = entry
                return entry
        return None


@lru_cache(4096)
def lane_of(subject: str) -> str:
    """Return which lane a subject belongs to: its stream, or for others than Shoal's its first two tokens."""
    try:
        return stream_of(subject)
    except ValueError:
        return ".".join(subject.split(".", 2)[:2])
