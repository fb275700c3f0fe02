"""`shoal dead`: messages nobody could use, and another try for them."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from shoal.cli.events import plain
from shoal.cli.exits import Exit, Failure, explain
from shoal.cli.interrupts import run_interruptibly
from shoal.cli.options import json_option, url_option
from shoal.cli.output import emit, moment, say, table

if TYPE_CHECKING:
    from shoal.client.cluster import Cluster
    from shoal.client.dead import DeadLetterInfo

_LONGEST_REASON: Final = 80
_DUMPED: Final = 1024  # bytes shown of what cannot be decoded
_A_LINE: Final = 16


@dataclass(frozen=True, slots=True)
class _Filter:
    stream: str | None
    reader: str | None
    since: str | None
    last: int | None

    @property
    def any(self) -> bool:
        return (self.stream, self.reader, self.since, self.last) != (None, None, None, None)

    def letters(self, cluster: "Cluster") -> "AsyncGenerator[DeadLetterInfo, None]":
        return cluster.dead_letters(self.since, stream=self.stream, reader=self.reader, limit=self.last)


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    from functools import wraps

    @click.option("--stream", metavar="NAME", help="Only those found in this stream; a pattern such as 'SHOAL_EX*'.")
    @click.option("--reader", metavar="NAME", help="Only those this reader gave up; a pattern such as 'executor.*'.")
    @click.option("--since", metavar="DURATION", help="Given up how long ago at most, such as 1h. [default: any time]")
    @click.option("-n", "last", type=click.IntRange(1), metavar="COUNT", help="Only the last so many of them.")
    @wraps(command)
    def with_filter(
        *args: Any, stream: str | None, reader: str | None, since: str | None, last: int | None, **kwargs: Any
    ) -> Any:
        return command(*args, filter=_Filter(stream, reader, since, last), **kwargs)

    return with_filter


@click.group(short_help="Look at messages nobody could use.")
def dead() -> None:
    """Messages that some reader could not use. Each is kept for 30 days, as a letter with a number of its own."""


@dead.command(short_help="List dead letters.")
@_filters
@url_option
@json_option
def ls(filter: _Filter, url: str | None, as_json: bool) -> int:
    """List the messages that readers gave up, oldest first.

    \b
    shoal dead ls --since 1h
    shoal dead ls --reader 'executor.*' -n 20 --json | jq -r .reason
    """

    async def work() -> int:
        from shoal.cli.connecting import connect

        rows: list[tuple[object, ...]] = []
        async with connect(url) as cluster, aclosing(filter.letters(cluster)) as found:
            async for letter in found:
                if as_json:
                    emit(as_object(letter))
                else:
                    reason = letter.reason
                    short = reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 1] + "…"
                    what = type(letter.message).__name__ if letter.message is not None else "undecodable"
                    rows.append(
                        (letter.number, f"{letter.stream}:{letter.sequence}", letter.reader, what, short,
                         moment(letter.time_ms))
                    )  # fmt: skip
        if not as_json:
            columns = ("letter", "found at", "reader", "message", "reason", "given up")
            table(columns, rows, empty=f"there is no dead letter{' of this kind' if filter.any else ''}")
        return 0

    return run_interruptibly(work())


@dead.command(short_help="Show a dead letter.")
@click.argument("number", type=click.IntRange(1))
@url_option
@json_option
def show(number: int, url: str | None, as_json: bool) -> int:
    """Show all of letter NUMBER: where it was found, who gave it up and why, and what it says."""

    async def work() -> int:
        from shoal.cli.connecting import connect

        async with connect(url) as cluster:
            letter = await cluster.dead_letter(number)
        if as_json:
            emit(as_object(letter) | {"payload": letter.payload.hex()})
        else:
            print("\n".join(lines(letter)))
        return 0

    return run_interruptibly(work())


@dead.command(short_help="Publish dead letters again.")
@click.argument("numbers", nargs=-1, type=click.IntRange(1))
@click.option("--all", "every", is_flag=True, help="All letters, or all that the options below name.")
@_filters
@click.option("--anew", is_flag=True, help="Also where it was retried less than two minutes ago.")
@url_option
@json_option
def retry(
    numbers: tuple[int, ...], every: bool, filter: _Filter, anew: bool, url: str | None, as_json: bool
) -> int:  # fmt: skip
    """Publish the messages of letters NUMBERS again, where they were found, when something has changed for the better.

    A retry has an id that follows from its letter, so within two minutes of the first the broker drops it: asking
    twice does no harm. Later it is published again. The letters stay; what cannot be used this time becomes a new
    letter.

    \b
    shoal dead retry 17 18
    shoal dead retry --all --stream SHOAL_PLACEMENT_0 --since 1h
    """
    if every == bool(numbers):
        raise Failure(Exit.USAGE, "name the letters to publish again, or say --all; `shoal dead ls` lists them")
    if filter.any and not every:
        raise Failure(Exit.USAGE, "--stream, --reader, --since and -n are for --all; leave them out")

    async def work() -> int:
        from shoal.cli.connecting import connect

        status = Exit.OK
        async with connect(url) as cluster:
            if not every:
                for number in numbers:
                    status = max(status, await _retry(cluster, number, anew, as_json))
                return status
            count = 0
            async with aclosing(filter.letters(cluster)) as found:
                async for letter in found:
                    count += 1
                    status = max(status, await _retry(cluster, letter, anew, as_json))
        if not count:
            say(f"there is no dead letter{' of this kind' if filter.any else ''}")
        return status

    return run_interruptibly(work())


async def _retry(cluster: "Cluster", which: "int | DeadLetterInfo", anew: bool, as_json: bool) -> Exit:
    from shoal.client.errors import BadRequest

    try:
        done = await cluster.retry_dead(which, anew=anew)
    except BadRequest as error:  # of this letter; the others may be better
        status, sentence = explain(error)
        if as_json:
            number = which if isinstance(which, int) else which.number
            emit({"letter": number, "retried": False, "problem": sentence})
        say(f"shoal: {sentence}")
        return status
    if as_json:
        emit(
            {"letter": done.number, "retried": not done.duplicate, "stream": done.stream, "sequence": done.sequence,
             "duplicate": done.duplicate}
        )  # fmt: skip
    elif done.duplicate:
        say(
            f"letter {done.number} was published again a moment ago, as {done.stream}:{done.sequence}, so not now;"
            " wait two minutes, or say --anew"
        )
    else:
        say(f"letter {done.number} was published again: {done.stream}:{done.sequence}")
    return Exit.OK


def as_object(letter: "DeadLetterInfo") -> dict[str, Any]:
    """Return a letter as `--json` has it."""
    message = letter.message
    return {
        "letter": letter.number,
        "time_ms": letter.time_ms,
        "stream": letter.stream,
        "sequence": letter.sequence,
        "subject": letter.subject,
        "reader": letter.reader,
        "reason": letter.reason,
        "size": letter.size,
        "whole": letter.whole,
        "type": None if message is None else type(message).__name__,
        "message": None if message is None else plain(message),
        "problem": letter.problem or None,
    }


def lines(letter: "DeadLetterInfo") -> list[str]:
    """Return a letter as lines for people."""
    size = f"{letter.size} bytes" if letter.size or letter.whole else "an unknown number of bytes"
    size += "" if letter.whole else f", of which {len(letter.payload)} were kept"
    head = [
        ("letter", letter.number),
        ("given up", moment(letter.time_ms)),
        ("by", letter.reader),
        ("because", letter.reason),
        ("stream", letter.stream),
        ("sequence", letter.sequence),
        ("subject", letter.subject),
        ("payload", size),
    ]
    found = [f"{name:<10}{value}" for name, value in head]
    if letter.message is None:
        what = letter.problem if letter.whole else "it was cut"
        return [*found, f"{'message':<10}undecodable: {what}", "", *dump(letter.payload)]
    fields = plain(letter.message)
    width = max(map(len, fields), default=0) + 2
    shown = [f"  {name:<{width}}{value}" for name, value in fields.items()]
    return [*found, f"{'message':<10}{type(letter.message).__name__}", *shown]


def dump(payload: bytes) -> list[str]:
    """Return bytes as lines of hexadecimal digits and characters, at most the first 1024 of them."""
    found = []
    for start in range(0, min(len(payload), _DUMPED), _A_LINE):
        part = payload[start : start + _A_LINE]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        found.append(f"  {start:06x}  {part.hex(' '):<{3 * _A_LINE}} {text}")
    rest = len(payload) - _DUMPED
    return [*found, f"  and {rest} bytes more; --json has them all"] if rest > 0 else found
