"""The state of a partition at any moment: the newest checkpoint before it, and the log from there on."""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from shoal.archive.source import ArchiveError, History
from shoal.machine.checkpoint import Checkpoint
from shoal.machine.core import Cause, Core
from shoal.machine.service import Service
from shoal.machine.versions import readable, upgraded
from shoal.replay.folding import fold, passed_over
from shoal.wire import streams


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A core as it was after the message `sequence`. `folded`: how many were folded after the checkpoint `begun`.

    `version`: of the state that the checkpoint has; one that is not the core's was brought to it, and what that version
    did not know is made up.
    """

    core: Core
    sequence: int
    time_ms: int
    folded: int
    begun: int
    version: int


async def cells_of(history: History) -> int:
    """Return how many cells the cluster has that a history is of. Raises ArchiveError."""
    values = await history.values(streams.CLUSTER_BUCKET)
    try:
        return int(values[streams.CELLS_KEY])
    except KeyError:
        raise ArchiveError("it does not say how many cells its cluster has: was one ever set up there?") from None


async def rebuild(
    history: History,
    service: Service,
    cell: int,
    *,
    at_ms: int | None = None,
    sequence: int | None = None,
    checkpoints: bool = True,
    tell: Callable[[int], None] = lambda _: None,
) -> Rebuilt:
    """Return a partition's core as it was at a moment (ms of the broker's clock), or after a message; else the newest.

    `checkpoints`: begin with one where there is one. `tell` hears of the sequence now and then. Raises ArchiveError
    where the log's beginning is gone and no checkpoint of before that moment can be loaded; DamagedError, BusError.
    """
    cells, stream = await cells_of(history), service.stream(cell)
    if not 0 <= cell < cells:
        raise ArchiveError(f"there is no cell {cell}: the cluster has {cells}, from 0 to {cells - 1}")
    core = service.make(cell, cells)
    begin = Checkpoint(service.name, core.state_version, stream, 0, 0, b"")
    if checkpoints:
        versions = readable(core.state_version, core.upgrades)
        known = await _newest(history, service.partition(cell), versions, at_ms, sequence)
        if known is not None and known.stream == stream:
            begin = known
            try:
                core.load(upgraded(begin.state, begin.version, core.state_version, core.upgrades))
            except ValueError as error:
                raise ArchiveError(f"the checkpoint of message {begin.sequence} cannot be read: {error}") from error
    first = (await history.bounds(stream)).first
    if first > begin.sequence + 1:
        when = "at that moment" if at_ms is not None or sequence is not None else "now"
        raise ArchiveError(
            f"the state of {service.partition(cell)} {when} cannot be told: {stream} begins with message {first}, and"
            " no checkpoint of before it is at hand; read an archive that goes further back"
        )
    at, time_ms, folded = begin.sequence, begin.time_ms, 0
    partition = service.partition(cell)
    passed = await passed_over(history, partition)
    async with aclosing(history.read(stream, after=begin.sequence, until=sequence)) as messages:
        async for delivery in messages:
            if at_ms is not None and delivery.time_ms > at_ms:
                break
            cause = Cause(stream, delivery.sequence, delivery.time_ms)
            fold(core, partition, passed, delivery, cause)
            at, time_ms, folded = delivery.sequence, delivery.time_ms, folded + 1
            if not folded % 4096:
                tell(at)
    return Rebuilt(core, at, time_ms, folded, begin.sequence, begin.version)


async def _newest(
    history: History, partition: str, versions: range, at_ms: int | None, sequence: int | None
) -> Checkpoint | None:
    """Return the newest state until a moment and a message; not all that an archive has are in memory at once."""
    newest: Checkpoint | None = None
    if sequence is None:
        for version in reversed(versions):
            for each in await history.checkpoints(partition, version=version, until_ms=at_ms, last=1):
                if newest is None or each.sequence > newest.sequence:
                    newest = each
        return newest
    async with aclosing(history.states(partition)) as states:
        async for each in states:
            if each.version in versions and each.sequence <= sequence and (at_ms is None or each.time_ms <= at_ms):
                newest = each
    return newest
