"""`shoal archive`: what is in archives, whether they are as they were written, and archiving without end."""

import asyncio
import fnmatch
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from shoal.cli.exits import Exit, Failure
from shoal.cli.histories import broker
from shoal.cli.interrupts import LONG_CLEANUP_S, run_interruptibly
from shoal.cli.moments import window_ms
from shoal.cli.options import json_option, url_option
from shoal.cli.output import emit, moment, say, table
from shoal.cli.progress import Progress

if TYPE_CHECKING:
    from shoal.archive.shelves import Shelf
    from shoal.archive.verifying import Verdict

_MOST_FOR_A_BUCKET: Final = "256MiB"


@click.group(short_help="Look into archives, and make them without end.")
def archive() -> None:
    """Archives of the log: files of `shoal export`, and directories or buckets of `shoal archive follow`.

    ARCHIVE is a file, a directory, or s3://bucket/prefix (with ?endpoint=URL where it needs one).
    """


@archive.command(short_help="Say what is in an archive.")
@click.argument("path", metavar="ARCHIVE")
@json_option
def info(path: str, as_json: bool) -> int:
    """Say what ARCHIVE is of, from when to when, and how much of each stream is in it."""

    async def work() -> int:
        from shoal.cli.archive_info import described, show

        found = await described(path)
        if as_json:
            emit(found)
        else:
            show(found)
        return Exit.DAMAGED if found["trouble"] else Exit.OK

    return run_interruptibly(work())


@archive.command(short_help="Print an archive's messages.")
@click.argument("path", metavar="ARCHIVE")
@click.option("--stream", "patterns", multiple=True, metavar="NAME",
              help="Only this stream, or those of a pattern such as 'SHOAL_EX*'; as often as you like.")  # fmt: skip
@click.option("--run", "run_name", metavar="NAME", help="Only what is about this run.")
@click.option("--tenant", metavar="NAME", help="Only what is about this tenant.")
@click.option("--since", metavar="TIME", help="From when on: how long ago, such as 2h, or a time.")
@click.option("--until", metavar="TIME", help="Until when.")
@json_option
def cat(
    path: str, patterns: tuple[str, ...], run_name: str | None, tenant: str | None, since: str | None,
    until: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Print the messages of ARCHIVE by time, as `shoal events` does.

    \b
    shoal archive cat today.shoal --run grpo-7 --since 2026-03-01T12:00
    shoal archive cat s3://logs/june --stream SHOAL_DEAD --json | jq -r .message.reason
    """

    async def work() -> int:
        from contextlib import aclosing

        from shoal.archive.planning import in_order
        from shoal.archive.selecting import Selection
        from shoal.archive.source import merged
        from shoal.cli.events import as_object, line
        from shoal.cli.histories import Source
        from shoal.client.listing import event_of

        since_ms, until_ms = window_ms(since, until)
        selection = Selection(tenant or "", run_name or "")
        source = Source((path,), False, None)
        async with source.open() as history:
            names = in_order(await history.streams())
            if patterns:
                wanted = [name for name in names if any(fnmatch.fnmatchcase(name, each) for each in patterns)]
                if not wanted:
                    raise Failure(Exit.USAGE, f"no stream of {path} is called so; it has {', '.join(names)}")
                names = wanted
            async with aclosing(merged(history, names, since_ms=since_ms, until_ms=until_ms)) as found:
                async for stream, delivery in found:
                    if selection.wants(delivery):
                        event = event_of(stream, delivery)
                        if as_json:
                            emit(as_object(event))
                        else:
                            print(line(event))
        return source.status

    return run_interruptibly(work())


@archive.command(short_help="See whether an archive is as it was written.")
@click.argument("path", metavar="ARCHIVE")
@click.option("--digest", metavar="HEX", help="A digest it had before: fail unless it goes on from there.")
@json_option
def verify(path: str, digest: str | None, as_json: bool) -> int:
    """Look at every byte of ARCHIVE. If something is wrong, say how far it is good, and exit with status 20.

    Each block vouches for all before it, and each file for the one before it, so a change of any part shows. Against
    somebody who makes all of it anew, note the digest elsewhere and name it the next time.
    """

    async def work() -> int:
        from shoal.archive.archived import series_of
        from shoal.archive.verifying import anchor_of, verify as verify_

        anchor = anchor_of(digest) if digest is not None else None
        with Progress(quiet=as_json) as progress:
            verdict = await verify_(
                series_of(path), anchor, tell=lambda name, at, of: progress.update(at, of, "bytes", name)
            )  # fmt: skip
        if as_json:
            emit(as_verdict(path, verdict))
        else:
            _show(path, verdict)
        if verdict.whole:
            return Exit.OK
        if as_json:
            return Exit.DAMAGED
        raise Failure(Exit.DAMAGED, _sentence(verdict))

    return run_interruptibly(work())


def as_verdict(path: str, verdict: "Verdict") -> dict[str, Any]:
    """Return what `verify` found as `--json` has it."""
    return {
        "path": path,
        "whole": verdict.whole,
        "trouble": verdict.trouble or None,
        "unfinished": verdict.unfinished,
        "open_end": verdict.open_end,
        "files": verdict.files,
        "first_file": verdict.first_segment or None,
        "bytes": verdict.size,
        "messages": verdict.messages,
        "states": verdict.states,
        "good_file": verdict.good_in,
        "good_bytes": verdict.good_to,
        "good_time_ms": verdict.newest_ms,
        "digest": verdict.digest.hex(),
        "digest_known": verdict.known,
        "streams": {
            name: {"first": part.first, "last": part.last, "messages": part.count, "last_ms": part.last_ms}
            for name, part in sorted(verdict.totals.items())
        },
        "missing": [{"stream": gap.stream, "first": gap.first, "last": gap.last} for gap in verdict.missing],
    }


def _show(path: str, verdict: "Verdict") -> None:
    from shoal.archive.planning import in_order

    parts = [verdict.totals[name] for name in in_order(list(verdict.totals))]
    rows = [(part.stream, part.first, part.last, part.count, moment(part.last_ms)) for part in parts]
    what = "messages" if verdict.whole else "good messages"
    if rows:
        table(("stream", "from", "to", what, "last stored"), rows, empty="")
    for gap in verdict.missing:
        say(f"messages {gap.first} to {gap.last} of {gap.stream} were not kept any more when it was their turn")
    if verdict.first_segment > 1:
        say(f"it begins with file {verdict.first_segment} of its series; those before it are not there")
    if verdict.whole:
        end = "; its last file is still being written" if verdict.open_end else ""
        print(f"{path} is whole{end}: {verdict.messages:,} messages, {verdict.size:,} bytes")
        print(f"digest {verdict.digest.hex()}")


def _sentence(verdict: "Verdict") -> str:
    if not verdict.good_in:
        return f"{verdict.trouble}; nothing of it is good"
    until = f", the last stored {moment(verdict.newest_ms)}" if verdict.newest_ms else ""
    good = f"it is good up to byte {verdict.good_to:,} of {verdict.good_in}: {verdict.messages:,} messages{until}"
    how = "; an interrupted export is gone on with by the same command" if verdict.unfinished else ""
    return f"{verdict.trouble}; {good}, digest {verdict.digest.hex()}{how}"


@archive.command(short_help="Archive without end.")
@click.option("--to", "target", required=True, metavar="DIRECTORY|s3://BUCKET/PREFIX", help="Where the files go.")
@click.option(
    "--roll",
    multiple=True,
    metavar="SIZE|DURATION",
    help="When a file ends and the next begins, such as 64MiB or 1h; both may be given.  [default: 64MiB, 1h]",
)
@click.option("--every", default="5s", show_default=True, metavar="DURATION", help="How often to look for what came.")
@click.option(
    "--spool",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path),
    help="Where files for a bucket are until they are sent. [default: in ~/.local/state/shoal/archive]",
)
@url_option
def follow(target: str, roll: tuple[str, ...], every: str, spool: Path | None, url: str | None) -> int:  # fmt: skip
    """Archive what the cluster's streams keep, and what comes, until told to stop: Ctrl-C.

    Started again, it goes on where it was, without a gap and without a copy. What the streams do not keep any more is
    read from there as if they still did (`--from`, on the commands that read history).

    \b
    shoal archive follow --to /srv/shoal/log
    shoal archive follow --to s3://logs/shoal --roll 64MiB --roll 10m
    """

    async def work() -> int:
        from shoal.archive.following import Follower
        from shoal.wire.quantities import parse_seconds

        roll_bytes, roll_s = rolls(roll, target.startswith("s3://"))
        every_s = parse_seconds(every, "every")
        shelf = shelf_at(target, spool)
        async with broker(url) as bus:
            follower = Follower(bus, shelf, roll_bytes=roll_bytes, roll_s=roll_s, every_s=every_s, tell=say)
            stop = asyncio.Event()
            running = asyncio.create_task(follower.run(stop))
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                stop.set()
                say("stopping: what came is written first, unless the broker does not answer")
                await running
                say(f"{follower.messages:,} messages were archived; the same command goes on from there")
                raise
        return Exit.OK

    return run_interruptibly(work(), cleanup_s=LONG_CLEANUP_S)


def rolls(given: tuple[str, ...], bucket: bool) -> tuple[int, float]:
    """Return the bytes and the seconds after which a file ends. Raises BadValueError."""
    from shoal.wire.quantities import BadValueError, parse_bytes, parse_seconds

    size, seconds, said = 64 * 1024**2, 3600.0, ""
    for text in given:
        if text.strip().lower().endswith("b"):
            size, said = parse_bytes(text, "roll"), text
        else:
            seconds = parse_seconds(text, "roll")
    if size < 64 * 1024 or (bucket and size > parse_bytes(_MOST_FOR_A_BUCKET)):
        most = f" to {_MOST_FOR_A_BUCKET}" if bucket else ""
        raise BadValueError("roll", f"{said} is not a size from 64KiB{most}")
    return size, seconds


def shelf_at(target: str, spool: Path | None) -> "Shelf":
    """Return where files go. Raises BadValueError, Failure."""
    from shoal.archive.shelves import BucketShelf, DirectoryShelf
    from shoal.cli.statefile import default_state

    if target.startswith("s3://"):
        from shoal.archive.archived import bucket_at

        own = default_state() / "archive" / hashlib.sha256(target.encode()).hexdigest()[:16]
        return BucketShelf(bucket_at(target), spool or own)
    if spool is not None:
        raise Failure(Exit.USAGE, "--spool is for a bucket; files for a directory are written where they stay")
    return DirectoryShelf(Path(target).expanduser().absolute())
