"""The arrivals of an archived history: when its rollouts were asked for, and how many sandboxes each was for."""

import importlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from shoal.wire.messages import RolloutSubmitted
from shoal.wire.quantities import BadValueError
from shoal_loadtest.load.arrivals import Split
from shoal_loadtest.scenario.model import Trace

_READER = "shoal.archive.source"


def traced(trace: Trace, split: Split) -> tuple[Iterator[float], "deque[int]"]:
    """Return the moments and the sizes of what this generator is to ask for again. Raises BadValueError."""
    found = list(_requests(trace))[split.part :: split.of]
    return (at for at, _ in found), deque(size for _, size in found)


def check(trace: Trace) -> int:
    """Return how many rollouts an archive has. Raises BadValueError where it cannot be read here."""
    return len(list(_requests(trace)))


def _requests(trace: Trace) -> Iterator[tuple[float, int]]:
    begin: int | None = None
    for time_ms, message in _history(trace.archive):
        if isinstance(message, RolloutSubmitted):
            begin = time_ms if begin is None else begin
            yield (time_ms - begin) / 1000 / trace.speed, message.spec.n


def _history(path: str) -> Iterator[tuple[int, Any]]:
    try:
        importlib.import_module(_READER)
    except ModuleNotFoundError:
        pass
    raise BadValueError("phase.arrival.archive", f"{path} cannot be read: archives are not available in this version")
