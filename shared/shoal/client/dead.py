"""Dead letters: messages that some reader could not use, for people to look at and to publish again."""

import secrets
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from shoal.bus.protocol import BusError, Delivery
from shoal.client.errors import BadRequest
from shoal.client.feed import history
from shoal.client.link import Link
from shoal.client.requests import whole_number
from shoal.wire import streams
from shoal.wire.codec import UndecodableError, decode
from shoal.wire.messages import AnyMessage, DeadLetter

_LETTERS: Final = streams.dead().name


@dataclass(frozen=True, slots=True)
class DeadLetterInfo:
    """A message nobody could use. Its `number`, the letter's sequence in SHOAL_DEAD, is what people call it by.

    `stream`, `sequence` and `subject`: where the message was found. `reader` gave it up because of `reason`. `message`
    is what it says; None where its bytes say nothing, and `problem` is what is wrong with them. `size`: bytes of its
    whole payload; where `whole` is false, `payload` is only the beginning. `time_ms`: when it was given up, in ms since
    the epoch, by the broker's clock.
    """

    number: int
    time_ms: int
    stream: str
    sequence: int
    subject: str
    reader: str
    reason: str
    payload: bytes
    size: int
    whole: bool
    message: AnyMessage | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetterRetry:
    """What became of a letter that was published again: where its message is now.

    `duplicate`: the broker had it from an earlier retry, a moment ago, and stored nothing new.
    """

    number: int
    stream: str
    sequence: int
    duplicate: bool


async def letters(
    link: Link, since_ms: int | None, stream: str | None, reader: str | None, limit: int | None
) -> AsyncGenerator[DeadLetterInfo, None]:
    """Yield the letters kept now, oldest first; with a limit the last so many. Raises a ShoalError."""
    last: deque[DeadLetterInfo] = deque(maxlen=None if limit is None else whole_number(limit, "limit", 1, 2**31))
    try:
        async with aclosing(history(link.bus, _LETTERS, since_ms=since_ms)) as found:
            async for delivery in found:
                one = _read(delivery)
                if not (_matches(one.stream, stream) and _matches(one.reader, reader)):
                    continue
                if limit is None:
                    yield one
                else:
                    last.append(one)
    except BusError as error:
        raise link.explained(error) from error
    for one in last:
        yield one


async def letter(link: Link, number: int) -> DeadLetterInfo:
    """Return one letter. Raises BadRequest where there is none of this number, and other ShoalErrors."""
    whole_number(number, "letter", 1, 2**63)
    try:
        if number <= await link.bus.last_sequence(_LETTERS):
            async with aclosing(history(link.bus, _LETTERS, after=number - 1, until=number)) as found:
                async for delivery in found:
                    if delivery.sequence == number:
                        return _read(delivery)
    except BusError as error:
        raise link.explained(error) from error
    raise BadRequest("letter", f"there is no dead letter {number}; `shoal dead ls` lists those that are kept")


async def retry(link: Link, which: int | DeadLetterInfo, *, anew: bool) -> DeadLetterRetry:
    """Publish a letter's message again, on its subject. Raises BadRequest for one that was cut; other ShoalErrors."""
    if not isinstance(which, DeadLetterInfo):
        which = await letter(link, which)
    if not which.whole:
        size = which.size or "more"
        raise BadRequest(
            "letter",
            f"of the {size} bytes of dead letter {which.number} only the first {len(which.payload)} were kept, so it"
            " cannot be published again; have whoever sent it send it again",
        )
    if which.stream == _LETTERS:
        raise BadRequest(
            "letter", f"number {which.number} of {_LETTERS} is no dead letter: there is no message to publish again"
        )
    # Its id follows from the letter, so a second retry changes nothing while the broker remembers the first.
    id = f"dead:{which.number}:retry" + (f":{secrets.token_hex(6)}" if anew else "")
    try:
        stored = await link.bus.publish(which.subject, which.payload, id)
    except BusError as error:
        raise link.explained(error) from error
    return DeadLetterRetry(which.number, stored.stream, stored.sequence, stored.duplicate)


def _matches(value: str, pattern: str | None) -> bool:
    return pattern is None or fnmatchcase(value, pattern)


def _read(delivery: Delivery) -> DeadLetterInfo:
    found: AnyMessage | None
    problem = ""
    try:
        found = decode(delivery.payload)
        if not isinstance(found, DeadLetter):
            problem = f"{type(found).__name__} is no dead letter"
    except UndecodableError as error:
        found, problem = None, str(error)
    if not isinstance(found, DeadLetter):  # somebody published on shoal.dead what does not belong there
        return DeadLetterInfo(
            delivery.sequence, delivery.time_ms, _LETTERS, delivery.sequence, delivery.subject, "",
            f"this is no dead letter: {problem}", delivery.payload, len(delivery.payload), True, found, problem,
        )  # fmt: skip
    message: AnyMessage | None
    try:
        message = decode(found.payload)
    except UndecodableError as error:
        message, problem = None, str(error)
    return DeadLetterInfo(
        delivery.sequence, delivery.time_ms, found.stream, found.sequence, found.subject, found.reader, found.reason,
        found.payload, found.size or (len(found.payload) if found.whole else 0), found.whole, message, problem,
    )  # fmt: skip
