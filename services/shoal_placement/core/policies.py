"""Policies: which executors take the next sandboxes. Each is a small pure function; `POLICIES` names them.

A policy says how many of `count` sandboxes one executor takes next; it is asked again for the rest. `aside` are
executors that turned out to have no node for this group.
"""

import math
import zlib
from collections.abc import Callable
from typing import Final

from shoal.wire import messages as m
from shoal_placement.core.fleet import Fleet
from shoal_placement.core.nodes import Demand, Executor

THROTTLE_MS: Final = 10_000
"""No executor is given what it could start only later than this; it waits, and whoever is free first takes it.

What has to start together is the exception: of a large group on few or slow nodes, the last ones start later.
"""

GRAIN_MS: Final = 5.0
"""An executor gets as many at least as it starts within this, even where others are as soon.

Executors that are equally fast would take turns, and each sandbox be an order, a readiness and an end of its own. On
two executors with 1,000 simulated nodes each a group of 256 was 76 orders and six times the work for placement; it is
10 now.
"""

_DRAWS: Final = 64
"""Lots that `random` draws before it takes whoever has room."""

Share = tuple[Executor, int]
Policy = Callable[[Fleet, Demand, m.Snapshot, int, int, float, dict[int, None], str], Share | int | None]
"""fleet, demand, snapshot, count, now, throttle (ms), aside, group: a share; when to ask again (ms); None: no room."""


def soonest(
    fleet: Fleet, demand: Demand, snapshot: m.Snapshot, count: int, now: int, throttle_ms: float,
    aside: dict[int, None], group: str,
) -> Share | int | None:  # fmt: skip
    """Where they are started soonest: water-filling over what each has to start already and how fast it is.

    An executor gets as many as it starts before the next best would start one, or within `GRAIN_MS`. Who lacks bytes of
    the snapshot can begin only when they are fetched, which holds up nobody else there.
    """
    choices = fleet.choices(demand, snapshot, now, aside)
    if not choices:
        return None
    best = choices[0]
    executor = best.executor
    if best.done_ms - best.fetch_ms > now + throttle_ms + executor.start_ms:
        return int(best.done_ms - best.fetch_ms - throttle_ms)
    part = min(count, executor.room(demand))
    others = [other for other in choices[1:] if other.executor is not executor]
    others += [other for other in fleet.choices(demand, snapshot, now, {**aside, executor.order: None}) if part > 1]
    if others and part > 1:
        level = min(other.done_ms for other in others)
        sooner = max(int((level - best.done_ms) / executor.start_ms), 0) + 1
        part = min(part, max(sooner, int(GRAIN_MS / executor.start_ms)))
    begins = max(executor.busy_until_ms, now)
    if throttle_ms < math.inf:
        part = min(part, max(int((now + throttle_ms - begins) / executor.start_ms), 0) + 1)
    return executor, part


def at_random(
    fleet: Fleet, demand: Demand, snapshot: m.Snapshot, count: int, now: int, throttle_ms: float,
    aside: dict[int, None], group: str,
) -> Share | int | None:  # fmt: skip
    """Anywhere there is room, by lot: a baseline to compare with. It looks at all executors when most are full."""
    executors = list(fleet.executors.values())
    for draw in range(_DRAWS + len(executors) if executors else 0):
        lot = zlib.crc32(f"{group}:{count}:{now}:{draw}".encode())
        number = lot % len(executors) if draw < _DRAWS else draw - _DRAWS
        each = executors[number]
        if each.alive and each.order not in aside and demand.isolation in ("", each.isolation) and each.room(demand):
            return each, 1
    return None


POLICIES: Final[dict[str, Policy]] = {"soonest": soonest, "random": at_random}
