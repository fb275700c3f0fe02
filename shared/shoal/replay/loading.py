"""Shadow load: recorded requests once more, with their timing, under a new run, into another cluster."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from shoal.archive.source import ArchiveError, History, merged
from shoal.bus.protocol import Bus, Stored
from shoal.client.ids import new_id
from shoal.replay.rebuilding import cells_of
from shoal.runtime.cluster import cells_of as cells_of_bus
from shoal.wire import messages as m, streams, subjects
from shoal.wire.codec import UndecodableError, decode, encode
from shoal.wire.quantities import BadValueError

_AHEAD_S: Final = 0.05
Request = m.RolloutSubmitted | m.RolloutReleased | m.RolloutCancelled | m.SandboxesWanted


@dataclass(frozen=True, slots=True)
class Due:
    """One recorded request: how long after the first one it came (ms)."""

    at_ms: int
    message: Request


@dataclass(slots=True)
class Loaded:
    """What was sent: rollouts, their sandboxes, all requests; how late the latest one was (s), and their run."""

    run: str
    rollouts: int = 0
    sandboxes: int = 0
    requests: int = 0
    late_s: float = 0.0


async def requests(
    history: History, *, since_ms: int | None = None, until_ms: int | None = None
) -> list[Due]:  # fmt: skip
    """Return what trainers asked of a cluster between two moments. Raises ArchiveError where that is nothing."""
    names = [streams.rollout(cell).name for cell in range(await cells_of(history))]
    found: list[Due] = []
    known: set[str] = set()
    begun = -1
    async with aclosing(merged(history, names, since_ms=since_ms, until_ms=until_ms)) as messages:
        async for _, delivery in messages:
            if not delivery.subject.endswith(".request"):
                continue
            try:
                message = decode(delivery.payload)
            except UndecodableError:
                continue
            if isinstance(message, m.RolloutSubmitted):
                if message.rollout in known:
                    continue
                known.add(message.rollout)
            elif not isinstance(message, Request) or message.rollout not in known:
                continue
            begun = delivery.time_ms if begun < 0 else begun
            found.append(Due(delivery.time_ms - begun, message))
    if not found:
        raise ArchiveError("no rollout was submitted in that time: there is nothing to ask again")
    return found


async def same_cluster(history: History, bus: Bus) -> bool:
    """Return whether a bus leads to the cluster that a history is of."""
    mine = (await history.values(streams.CLUSTER_BUCKET)).get(streams.ID_KEY)
    theirs = await bus.get(streams.CLUSTER_BUCKET, streams.ID_KEY)
    return mine is not None and theirs is not None and theirs.value == mine


class Loading:
    """Sends requests: each rollout `scale` times, under ids of its own. `speed` 2 is twice as fast as it was."""

    def __init__(self, bus: Bus, due: list[Due], run: str, *, speed: float = 1.0, scale: int = 1) -> None:
        """Raises BadValueError."""
        if not speed > 0:
            raise BadValueError("speed", f"{speed} cannot be used; give a number above 0, such as 10 for ten times")
        if scale < 1:
            raise BadValueError("scale", f"{scale} cannot be used; give how many times to ask for each rollout")
        self._bus = bus
        self._due = due
        self._speed = speed
        self._scale = scale
        self._names: dict[tuple[str, int], str] = {}
        self._tenants: dict[str, str] = {}
        self.loaded = Loaded(subjects.token(run, "run"))

    async def run(self, tell: Callable[[Loaded, int], None] = lambda loaded, of: None) -> Loaded:
        """Send all of it; returns when the broker has it. `tell` hears how far that is. Raises BusError."""
        cells = await cells_of_bus(self._bus)
        if cells is None:
            raise ArchiveError("no cluster was ever set up there: start one with `shoal up`")
        loop = asyncio.get_running_loop()
        began, stored, told = loop.time(), list[asyncio.Future[Stored]](), 0.0
        for number, due in enumerate(self._due):
            at = began + due.at_ms / 1000 / self._speed
            if (left := at - loop.time()) > _AHEAD_S:
                await asyncio.sleep(left)
            self.loaded.late_s = max(self.loaded.late_s, loop.time() - at)
            for copy in range(self._scale):
                stored.append(self._send(due.message, copy, cells))
            if len(stored) > 1024:
                await asyncio.gather(*stored)
                stored.clear()
            if loop.time() - told > 0.5:
                told = loop.time()
                tell(self.loaded, len(self._due) - number)
        await asyncio.gather(*stored)
        tell(self.loaded, 0)
        return self.loaded

    def _send(self, message: Request, copy: int, cells: int) -> "asyncio.Future[Stored]":
        name = self._names.setdefault((message.rollout, copy), new_id())
        fresh = _renamed(message, name, self.loaded.run)
        if isinstance(message, m.RolloutSubmitted):
            self._tenants[message.rollout] = message.tenant
            self.loaded.rollouts += 1
            self.loaded.sandboxes += message.spec.n
        self.loaded.requests += 1
        tenant = self._tenants[message.rollout]
        subject = subjects.rollout_request(subjects.cell_of(name, cells), tenant, self.loaded.run)
        return self._bus.publish(subject, encode(fresh), f"{name}:{self.loaded.requests}")


def _renamed(message: Request, name: str, run: str) -> Request:
    match message:
        case m.RolloutSubmitted():
            return m.RolloutSubmitted(name, message.tenant, run, message.spec)
        case m.RolloutReleased():
            return m.RolloutReleased(name, message.indices)
        case m.RolloutCancelled():
            return m.RolloutCancelled(name, message.by)
        case m.SandboxesWanted():
            return m.SandboxesWanted(name, message.indices)
