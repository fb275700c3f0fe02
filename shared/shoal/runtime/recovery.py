"""Where a core begins: with a checkpoint, with its log's beginning or, where told to, with what is left of that."""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

import structlog

from shoal.bus.protocol import Bus
from shoal.machine.checkpoint import Checkpoint
from shoal.machine.core import Core
from shoal.runtime.checkpoints import Checkpoints, StateGoneError
from shoal.runtime.lease import Lease

_LOOKS: Final = 10
_PAUSE_S: Final = 0.3

log = structlog.get_logger()


class Begin(NamedTuple):
    """The core has folded the log up to this message, which the broker stored at that moment.

    Effects of messages up to `silent_to` are stored.
    """

    position: int
    time_ms: int
    silent_to: int


async def recover(
    bus: Bus, core: Core, checkpoints: Checkpoints, lease: Lease, *, name: str, stream: str, what_is_left: bool
) -> Begin:
    """Load the newest checkpoint that can be used; without one, the log is to be folded from where it begins.

    A leader that saves meanwhile replaces what is being loaded: then what it saved is loaded. Raises StateGoneError.
    """
    while True:
        _, revision = await checkpoints.manifest()
        stored = await checkpoints.load(core=name, version=core.state_version, stream=stream, upgrades=core.upgrades)
        # Looked at now, or a leader that just saved one and removed what it covers would seem to have lost it all.
        read = max([lease.record.position, *(found.sequence for found in stored)])
        last, first = await _end_of(bus, stream, read), await bus.first_sequence(stream)
        known = [(found.sequence, found.time_ms) for found in stored]
        last = await _same_up_to(bus, stream, [*known, (lease.record.position, lease.record.time_ms)], first, last)
        for found in stored:
            if _fits(found, name, first, last) and _loaded(core, found, name):
                if not await checkpoints.cut(last):
                    break
                return Begin(found.sequence, found.time_ms, _stored(lease, stream, found.sequence, last))
        else:
            may_begin = first == 1 or what_is_left
            if (await checkpoints.manifest())[1] == revision and (not may_begin or await checkpoints.cut(last)):
                break
        log.info("other checkpoints were saved meanwhile: loading those", partition=name)
    if first > 1 and not what_is_left:
        raise StateGoneError(name, stream, first)
    if first > 1:
        log.warning("beginning with what is left: older state is lost", stream=stream, first=first)
    return Begin(first - 1, 0, _stored(lease, stream, first - 1, last))


async def _end_of(bus: Bus, stream: str, read: int) -> int:
    """Return where a log ends that was read up to there.

    A server that was just elected to lead a stream may not have all of it for a moment: one that seems too short is
    looked at again, before anything is thrown away for it.
    """
    for _ in range(_LOOKS):
        last = await bus.last_sequence(stream)
        if last >= read:
            return last
        await asyncio.sleep(_PAUSE_S)
    return last


async def _same_up_to(bus: Bus, stream: str, known: Sequence[tuple[int, int]], first: int, last: int) -> int:
    """Return up to where a log may be the one that is known: messages, and when (ms) each was stored.

    One that has lost its end may be as long again, or longer, by other messages.
    """
    for sequence, time_ms in sorted(set(known)):
        if time_ms and first <= sequence <= last and await bus.stored_ms(stream, sequence) not in (None, time_ms):
            log.error("a message of the log is not the one that was read", stream=stream, sequence=sequence)
            return sequence - 1
    return last


def _stored(lease: Lease, stream: str, position: int, last: int) -> int:
    """Return up to where effects are stored.

    A log that is shorter than what was done with has lost its end, and so may the logs that its effects went to. Which
    of its messages were stored then is not known: those after the checkpoint have their effects stored once more.
    """
    if lease.record.position <= last:
        return lease.record.position
    log.error(
        "the log is shorter than what was done with: its broker has lost the end of it, or it is another one;"
        " storing again what follows from its messages",
        stream=stream, last=last, done=lease.record.position, after=position,
    )  # fmt: skip
    lease.limit = position
    return position


def _fits(found: Checkpoint, name: str, first: int, last: int) -> bool:
    if first - 1 <= found.sequence <= last:
        return True
    log.error("a checkpoint does not fit its log", partition=name, sequence=found.sequence)
    return False


def _loaded(core: Core, found: Checkpoint, name: str) -> bool:
    try:
        core.load(found.state)
    except ValueError as error:
        log.error("a checkpoint cannot be loaded", partition=name, error=str(error))
        return False
    log.info("checkpoint loaded", partition=name, sequence=found.sequence, bytes=len(found.state))
    return True
