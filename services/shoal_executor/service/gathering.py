"""What a driver tells, gathered: what comes in one turn of the event loop happened at once.

A driver tells of one sandbox after the other. Each of them written down, folded and reported by itself would cost many
times what all of them cost together.
"""

import asyncio
from collections.abc import Callable, Sequence

from shoal.machine import ranges
from shoal.wire.messages import EndReason, Ranges, SandboxResult
from shoal_executor.core import Key
from shoal_executor.service.clock import now_ms
from shoal_executor.service.journal import AnyRecord, Failed, JobsDone, Up


class Gathering:
    """Keeps what a driver tells until the turn's end, or until something else happens: then it goes first."""

    def __init__(self, happened: Callable[[AnyRecord], None]) -> None:
        self._happened = happened
        self._up: dict[Key, Ranges] = {}
        self._failed: dict[tuple[Key, str, EndReason], Ranges] = {}
        self._done: dict[Key, list[SandboxResult]] = {}
        self._due = False

    def up(self, key: Key, indices: Ranges) -> None:
        """These sandboxes take commands."""
        self._up[key] = ranges.union(self._up.get(key, ()), indices)
        self._later()

    def failed(self, key: Key, indices: Ranges, detail: str, why: EndReason) -> None:
        """These sandboxes could not be started."""
        self._failed[key, detail, why] = ranges.union(self._failed.get((key, detail, why), ()), indices)
        self._later()

    def done(self, key: Key, results: Sequence[SandboxResult]) -> None:
        """The one command of each of these is done."""
        if results:
            self._done.setdefault(key, []).extend(results)
            self._later()

    def _later(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Have it happen now."""
        if not self._due:
            return
        self._due = False
        up, self._up = self._up, {}
        failed, self._failed = self._failed, {}
        done, self._done = self._done, {}
        since_ms = now_ms()
        for key, indices in up.items():
            self._happened(Up(key, indices, since_ms))
        for (key, detail, why), those in failed.items():
            self._happened(Failed(key, those, detail, why))
        for key, results in done.items():
            self._happened(JobsDone(key, tuple(results)))
