"""What an export takes: of which streams the messages from where to where."""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Final

from shoal.archive.live import LiveHistory
from shoal.archive.records import Request
from shoal.archive.source import Bounds, History
from shoal.bus.protocol import Delivery
from shoal.wire import streams, subjects
from shoal.wire.codec import UndecodableError, decode
from shoal.wire.messages import ExecutorBeat, ExecutorJoined
from shoal.wire.quantities import BadValueError

_KINDS: Final = ("ROLLOUT", "PLACEMENT", "EXECUTOR", "TRAJECTORY", "SNAPSHOT", "DEAD")
Plan = dict[str, tuple[int, int]]
"""For each stream the sequence after which it begins, and the last."""


def in_order(names: Sequence[str]) -> list[str]:
    """Return streams in the order of archives: a reader meets a rollout before what happened to it."""

    def rank(name: str) -> tuple[int, int, str]:
        kind, _, rest = name.removeprefix("SHOAL_").partition("_")
        number = int(rest) if rest.isdecimal() else 0
        return (_KINDS.index(kind) if kind in _KINDS else len(_KINDS), number, name)

    return sorted(names, key=rank)


async def plan_of(history: History, request: Request, since_ms: int | None, until_ms: int | None) -> Plan:
    """Return what `request` asks for of what there is now. Raises BadValueError, ArchiveError, BusError."""
    there: Mapping[str, Bounds]
    if isinstance(history, LiveHistory):
        there = await history.all_bounds()
    else:
        there = {name: await history.bounds(name) for name in await history.streams()}
    if request.cell is not None:
        names = await _streams_of(history, request.cell)
        there = {name: bounds for name, bounds in there.items() if name in names}
    plan: Plan = {}
    for name in in_order(list(there)):
        first, last = there[name]
        after = first - 1
        if since_ms is not None and after < last:
            found = await _first_since(history, name, since_ms)
            after = last if found is None else found.sequence - 1
        if until_ms is not None and after < last:
            found = await _first_since(history, name, until_ms + 1)
            last = last if found is None else found.sequence - 1
        plan[name] = (after, max(last, after))
    return plan


async def _first_since(history: History, stream: str, since_ms: int) -> Delivery | None:
    async with aclosing(history.read(stream, since_ms=since_ms)) as found:
        async for delivery in found:
            return delivery
    return None


async def _streams_of(history: History, cell: int) -> set[str]:
    """Return a cell's streams, those of its executors, and those of the whole cluster."""
    cells = await cells_of(history)
    if not 0 <= cell < cells:
        raise BadValueError("cell", f"{cell} is none of the {cells} cells, which are counted from 0")
    names = {streams.rollout(cell).name, streams.placement(cell).name, streams.trajectory(cell).name}
    names |= {streams.snapshot().name, streams.dead().name}
    node = subjects.placement_node(cell)
    async with aclosing(history.read(streams.placement(cell).name)) as found:
        async for delivery in found:
            if delivery.subject == node:
                try:
                    message = decode(delivery.payload)
                except UndecodableError:
                    continue
                if isinstance(message, ExecutorJoined | ExecutorBeat):
                    names.add(streams.executor(message.executor).name)
    return names


async def cells_of(history: History) -> int:
    """Return how many cells the cluster has. Raises BadValueError where nobody set one up."""
    found = (await history.values(streams.CLUSTER_BUCKET)).get(streams.CELLS_KEY)
    if found is None:
        raise BadValueError("cluster", "no cluster was ever set up there")
    return int(found)


async def partitions_of(history: History) -> list[str]:
    """Return the partitions whose states are kept."""
    return partitions(await cells_of(history))


def partitions(cells: int) -> list[str]:
    """Return the partitions of so many cells: their schedulers and placements, and the catalogue."""
    return [f"{role}.{cell}" for cell in range(cells) for role in ("scheduler", "placement")] + ["snapshot"]
