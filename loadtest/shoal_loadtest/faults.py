"""Faults on purpose: processes of the system under load are killed in turn."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping

from shoal_loadtest.scenario.model import Fault


class Killing:
    """Kills, as long as `run` is not cancelled. `events`: when what was killed, in seconds of the monotonic clock."""

    def __init__(self, fault: Fault, processes: Callable[[], Mapping[str, int]], tell: Callable[[str], None]) -> None:
        self._fault = fault
        self._processes = processes
        self._tell = tell
        self._turn = 0
        self.killed: Counter[str] = Counter()
        self.events: list[tuple[float, str]] = []

    async def run(self) -> None:
        """Kill one every so often: each kind in turn, and each process of a kind in turn."""
        due = time.monotonic()
        while True:
            due += self._fault.every
            await asyncio.sleep(max(due - time.monotonic(), 0))
            self.kill_next()

    def kill_next(self) -> None:
        """Kill whose turn it is."""
        known = self._processes()
        kinds = self._fault.kill
        kind = kinds[self._turn % len(kinds)]
        victims = sorted(name for name in known if name.split("-")[0] == kind)
        if victims:
            name = victims[self._turn // len(kinds) % len(victims)]
            try:
                os.kill(known[name], signal.SIGKILL)
                self.killed[name] += 1
                self.events.append((time.monotonic(), name))
            except ProcessLookupError:
                self._tell(f"{name} was just away")
        self._turn += 1
