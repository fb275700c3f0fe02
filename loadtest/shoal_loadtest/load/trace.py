"""The arrivals of an archived history: when its rollouts were asked for, and how many sandboxes each was for."""

import importlib
from collections import deque
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, Final

from shoal.wire.codec import UndecodableError, decode
from shoal.wire.messages import RolloutSubmitted
from shoal.wire.quantities import BadValueError
from shoal_loadtest.load.arrivals import Split
from shoal_loadtest.scenario.model import Trace

_READER: Final = "shoal.archive"
_LOGS: Final = "SHOAL_ROLLOUT_"
_FIELD: Final = "phase.arrival.archive"
Request = tuple[float, int]
"""Seconds from the first one, and sandboxes."""


def replayed(requests: list[Request], speed: float, split: Split) -> tuple[Iterator[float], "deque[int]"]:
    """Return the moments and the sizes of what one generator is to ask for again."""
    mine = requests[split.part :: split.of]
    return (at / speed for at, _ in mine), deque(size for _, size in mine)


async def requests(trace: Trace) -> list[Request]:
    """Return what was asked for, by time. Raises BadValueError where the archive cannot be read, or has nothing."""
    archive = _reader(trace.archive)
    found: list[tuple[int, int]] = []
    try:
        async with archive.open(trace.archive) as history:
            for stream in await history.streams():
                if stream.startswith(_LOGS):
                    async with aclosing(history.read(stream)) as deliveries:
                        async for delivery in deliveries:
                            message = _decoded(delivery.payload)
                            if isinstance(message, RolloutSubmitted):
                                found.append((delivery.time_ms, message.spec.n))
    except (archive.ArchiveError, OSError) as error:
        raise BadValueError(_FIELD, f"{trace.archive} cannot be read: {error}") from error
    if not found:
        raise BadValueError(_FIELD, f"no rollout was asked for in {trace.archive}")
    found.sort()
    first = found[0][0]
    return [((time_ms - first) / 1000, size) for time_ms, size in found]


def _decoded(payload: bytes) -> Any:
    try:
        return decode(payload)
    except UndecodableError:  # its reader could not use it, either
        return None


def _reader(path: str) -> Any:
    try:
        return importlib.import_module(_READER)
    except ModuleNotFoundError as error:
        problem = f"{path} cannot be read: archives are not available in this version of Shoal, or not installed"
        raise BadValueError(_FIELD, problem) from error
