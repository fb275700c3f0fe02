"""Ordered logs on simulated time: what a broker does for cores, with the faults of the way to it."""

from collections.abc import Callable
from dataclasses import dataclass

from shoal.testing.faults import Faults
from shoal.testing.world import World
from shoal.wire.messages import AnyMessage
from shoal.wire.streams import stream_of


@dataclass(frozen=True, slots=True)
class Entry:
    """One message in a log."""

    sequence: int
    time_ms: int
    subject: str
    message: AnyMessage
    id: str


class Log:
    """One stream. Drops copies of an id inside its window, and only there."""

    def __init__(self, name: str, window_ms: int) -> None:
        self.name = name
        self.entries: list[Entry] = []
        self.readers: list[Callable[[], None]] = []
        self._window_ms = window_ms
        self._ids: dict[str, int] = {}

    def knows(self, id: str) -> bool:
        """Return whether a message with this id was ever stored."""
        return id in self._ids

    def append(self, subject: str, message: AnyMessage, id: str, now_ms: int) -> bool:
        """Store a message, unless its id is known; tells the readers."""
        known = self._ids.get(id)
        if known is not None and now_ms - known < self._window_ms:
            return False
        self._ids[id] = now_ms
        self.entries.append(Entry(len(self.entries) + 1, now_ms, subject, message, id))
        for reader in self.readers:
            reader()
        return True


class Broker:
    """All logs, and the way to them. Each publisher's messages for one log arrive in the order it sent them."""

    def __init__(self, world: World, faults: Faults, window_ms: int) -> None:
        self._world = world
        self.faults = faults
        self._window_ms = window_ms
        self._logs: dict[str, Log] = {}
        self._latest: dict[tuple[str, str], int] = {}

    def log(self, stream: str) -> Log:
        """Return a stream's log."""
        if stream not in self._logs:
            self._logs[stream] = Log(stream, self._window_ms)
        return self._logs[stream]

    def publish(self, publisher: str, subject: str, message: AnyMessage, id: str) -> int:
        """Send a message on its way; returns when (ms) its publisher may know that it is stored."""
        world, faults = self._world, self.faults
        log = self.log(stream_of(subject))
        delay = world.random.randint(1, faults.delay_ms)
        if world.chance(faults.slow):
            delay *= world.random.randint(2, 100)
        arrival = max(world.now_ms + delay, self._latest.get((publisher, log.name), 0))
        self._latest[publisher, log.name] = arrival
        world.after(arrival - world.now_ms, log.append, subject, message, id, arrival)
        copies = []
        if world.chance(faults.duplicate):
            copies.append(arrival + world.random.randint(1, 2000))
        if world.chance(faults.late_duplicate):
            copies.append(arrival + self._window_ms + world.random.randint(1, 2000))
        for again in copies:
            world.after(again - world.now_ms, self._append_now, log, subject, message, id)
        return arrival + world.random.randint(1, faults.delay_ms)

    def _append_now(self, log: Log, subject: str, message: AnyMessage, id: str) -> None:
        log.append(subject, message, id, self._world.now_ms)
