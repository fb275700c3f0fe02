"""Why something was said: the messages that led to it, back to one that nobody's effect was."""

from contextlib import aclosing
from typing import Final

from shoal.archive.source import History
from shoal.bus.protocol import Delivery
from shoal.machine.core import cause_of

_MOST: Final = 32


async def causes(history: History, stream: str, delivery: Delivery) -> list[tuple[str, Delivery]]:
    """Return a message and those it follows from, with their streams, the first cause last."""
    found = [(stream, delivery)]
    while len(found) < _MOST:
        cause = cause_of(found[-1][1].id)
        if cause is None:
            break
        stream, sequence, _ = cause
        one = await message(history, stream, sequence)
        if one is None:
            break
        found.append((stream, one))
    return found


async def message(history: History, stream: str, sequence: int) -> Delivery | None:
    """Return one message of a stream; None where it is not there."""
    async with aclosing(history.read(stream, after=sequence - 1, until=sequence)) as messages:
        async for delivery in messages:
            return delivery
    return None
