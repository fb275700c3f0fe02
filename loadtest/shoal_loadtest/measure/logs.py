"""The logs, once a second: how many messages and bytes each stream has, and how far behind its reader is."""

import contextlib
from collections import Counter
from dataclasses import dataclass, field

from shoal.bus.api import Api
from shoal.bus.connection import Connection
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import BusError
from shoal.bus.tls import tls_from_environment
from shoal.runtime.lease import position_of
from shoal.wire import streams


@dataclass(slots=True)
class Logs:
    """See the module. `messages` and `stored` since `open`, by kind of stream; `backlog` in messages, by service."""

    url: str
    cells: int
    messages: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    backlog: dict[str, int] = field(default_factory=dict)
    _connection: Connection | None = None
    _bus: JetStreamBus | None = None
    _begin: dict[str, tuple[int, int]] = field(default_factory=dict)

    async def open(self) -> None:
        """Connect, and take what is there as the beginning. Raises BusError."""
        self._connection = Connection(self.url, "shoal-loadtest-logs", None, 5.0, tls_from_environment())
        await self._connection.dial()
        self._bus = await JetStreamBus.connect(self.url, name="shoal-loadtest-monitor")
        self._begin = await self._states()

    async def look(self) -> None:
        """Take note of how much there is; what cannot be had now, a broker being away, stays as it was."""
        assert self._bus is not None
        with contextlib.suppress(BusError):
            states = await self._states()
            messages: Counter[str] = Counter()
            stored: Counter[str] = Counter()
            for name, (last, size) in states.items():
                first, before = self._begin.get(name, (0, 0))
                kind = name.split("_")[1].lower()
                messages[kind] += last - first
                stored[kind] += size - before
            self.messages, self.stored = dict(messages), dict(stored)
            for service, log in (("scheduler", streams.rollout), ("placement", streams.placement)):
                behind = 0
                for cell in range(self.cells):
                    last = states.get(log(cell).name, (0, 0))[0]
                    behind += max(last - await position_of(self._bus, f"{service}.{cell}"), 0)
                self.backlog[service] = behind

    async def _states(self) -> dict[str, tuple[int, int]]:
        """Return the last sequence and the bytes of each of Shoal's streams."""
        assert self._connection is not None
        api = Api(self._connection, 2.0)
        names = (await api.ask("STREAM.NAMES")).get("streams") or []
        found = {}
        for name in names:
            if name.startswith("SHOAL_"):
                state = (await api.ask(f"STREAM.INFO.{name}"))["state"]
                found[name] = (int(state["last_seq"]), int(state["bytes"]))
        return found

    async def close(self) -> None:
        """Disconnect."""
        if self._bus is not None:
            with contextlib.suppress(BusError):
                await self._bus.close()
        if self._connection is not None:
            await self._connection.close()
