"""Processes, once a second: cpu and memory of each part of the system, whoever starts it again meanwhile."""

from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from shoal_loadtest.measure.roles import role_of


@dataclass(slots=True)
class _Known:
    process: psutil.Process
    cpu_s: float


class Processes:
    """Sums by name. The cpu of a process that dies between two looks is lost for the last moment of it."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self.cpu_s: dict[str, float] = {}
        self.memory: dict[str, int] = {}

    def look(self, pids: Mapping[str, int]) -> None:
        """Take note of what these have used."""
        self.memory = {}
        for name, pid in pids.items():
            self.cpu_s.setdefault(name, 0.0)
            try:
                known = self._known.get(name)
                if known is None:  # what it did before we looked is not ours
                    process = psutil.Process(pid)
                    known = self._known[name] = _Known(process, _cpu(process))
                elif known.process.pid != pid:
                    known = self._known[name] = _Known(psutil.Process(pid), 0.0)
                now = _cpu(known.process)
                self.cpu_s[name] += now - known.cpu_s
                known.cpu_s = now
                self.memory[name] = pss(known.process)
            except psutil.Error:
                continue

    def cpu_of(self, *roles: str) -> float:
        """Return the cpu of these roles together, in seconds."""
        return sum(cpu for name, cpu in self.cpu_s.items() if role_of(name) in roles)

    def memory_of(self, *roles: str) -> int:
        """Return the memory of these roles together, in bytes."""
        return sum(memory for name, memory in self.memory.items() if role_of(name) in roles)


def pss(process: psutil.Process) -> int:
    """Return its memory, in bytes: what several processes share, such as libraries, counts once among them.

    Raises psutil.Error.
    """
    return int(process.memory_full_info().pss)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
