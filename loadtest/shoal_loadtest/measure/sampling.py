"""One value a second of everything that changes: the series of a run."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from shoal_loadtest.load.words import Pulse
from shoal_loadtest.measure.latency import PASSING, Latencies
from shoal_loadtest.measure.logs import Logs
from shoal_loadtest.measure.processes import Processes
from shoal_loadtest.measure.roles import ROLES, SERVICES

EVERY_S: Final = 1.0
_SUMS: Final = ("asked", "ready", "through", "commands", "failed", "live", "in_flight", "waiting", "gpu_seconds")
Row = dict[str, float | None]


class Sampling:
    """Gathers what generators, processes and logs tell. `told` gets each row."""

    def __init__(self, pids: Callable[[], Mapping[str, int]], logs: Logs, told: Callable[[Row], None]) -> None:
        self._pids = pids
        self._logs = logs
        self._told = told
        self._pulses: dict[int, Pulse] = {}
        self._recent = Latencies(PASSING)
        self._began = time.monotonic()
        self._last = self._began
        self._cpu_before: dict[str, float] = {}
        self.processes = Processes()
        self.rows: list[Row] = []
        self.gpus = 1
        self.phase = -1

    @property
    def since_s(self) -> float:
        """How long it is since the beginning."""
        return time.monotonic() - self._began

    async def begin(self) -> None:
        """Take this moment as the beginning, and a first row."""
        self._began = self._last = time.monotonic()
        self.look()
        self._cpu_before = {role: self.processes.cpu_of(role) for role in ROLES}
        await self.row()

    def hear(self, number: int, pulse: Pulse) -> None:
        """Take a generator's words."""
        self._pulses[number] = pulse
        self._recent.merge(pulse.latencies)

    def look(self) -> None:
        """Look at the processes, now."""
        self.processes.look(self._pids())

    async def run(self) -> None:
        """Take a row every second, until cancelled."""
        due = time.monotonic()
        while True:
            due = max(due + EVERY_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            await self.row()

    async def row(self) -> None:
        """Take one row."""
        self.look()
        await self._logs.look()
        now = time.monotonic()
        elapsed, self._last = max(now - self._last, 1e-3), now
        row: Row = {"t": round(now - self._began, 3), "phase": self.phase}
        for name in _SUMS:
            row[name] = sum(getattr(pulse, name) for pulse in self._pulses.values())
        row["gpu_seconds"] = round((row["gpu_seconds"] or 0) * self.gpus, 3)
        for role in ROLES:
            cpu = self.processes.cpu_of(role)
            row[f"cpu_{role}"] = round((cpu - self._cpu_before.get(role, 0.0)) / elapsed, 4)
            self._cpu_before[role] = cpu
            row[f"memory_{role}"] = self.processes.memory_of(role)
        row["memory_services"] = self.processes.memory_of(*SERVICES)
        for service, behind in self._logs.backlog.items():
            row[f"backlog_{service}"] = behind
        for name in ("ready", "group_ready", "command"):
            found = self._recent.quantiles_ms(name, (50.0, 99.0))
            row[f"{name}_p50_ms"], row[f"{name}_p99_ms"] = found.get(50.0), found.get(99.0)
        self._recent.clear()
        self.rows.append(row)
        self._told(row)

    def series(self) -> dict[str, list[float | None]]:
        """Return the rows as columns of equal length."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name) for row in self.rows] for name in names}
