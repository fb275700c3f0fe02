"""`shoal export`: a part of the log, or all of it, as one file."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.exits import Exit, Failure
from shoal.cli.histories import Source, history_options
from shoal.cli.interrupts import run_interruptibly
from shoal.cli.moments import window_ms
from shoal.cli.options import json_option
from shoal.cli.output import emit, say
from shoal.cli.progress import Progress

if TYPE_CHECKING:
    from shoal.archive.exporting import Exported


@click.command(short_help="Write the log into a file.")
@click.option("-o", "--output", "path", required=True, metavar="FILE.shoal", type=click.Path(path_type=Path),
              help="The file. What an interrupted run has written of it stays, and is gone on with.")  # fmt: skip
@click.option("--since", metavar="TIME", help="From when on: how long ago, such as 2h, or a time. [default: all]")
@click.option("--until", metavar="TIME", help="Until when. [default: now]")
@click.option("--run", "run_name", metavar="NAME", help="Only what is about this run.")
@click.option("--tenant", metavar="NAME", help="Only what is about this tenant.")
@click.option("--cell", type=click.IntRange(0), metavar="NUMBER", help="Only this cell, and what all cells share.")
@history_options
@json_option
def export(
    path: Path, since: str | None, until: str | None, run_name: str | None, tenant: str | None, cell: int | None,
    source: Source, as_json: bool,
) -> int:  # fmt: skip
    """Write what the cluster's streams keep into an archive: compressed, with checksums, readable without a broker.

    Of a run or a tenant the archive is partial, and says so: it tells what happened, and cannot be replayed.

    \b
    shoal export -o today.shoal --since 24h
    shoal export -o grpo-7.shoal --run grpo-7
    """

    async def work() -> int:
        from shoal.archive.exporting import export as export_
        from shoal.archive.records import Request
        from shoal.client.requests import token

        request = Request(
            since=since or "", until=until or "", run=token(run_name, "run") if run_name is not None else "",
            tenant=token(tenant, "tenant") if tenant is not None else "", cell=cell, origin=" ".join(source.archives),
        )  # fmt: skip
        if str(path) == "-":
            raise Failure(
                Exit.USAGE, "--output: an archive is a file that can be gone on with; name one, such as today.shoal"
            )
        since_ms, until_ms = window_ms(since, until)
        try:
            async with source.open() as history:
                with Progress() as progress:
                    done = await export_(
                        history, path, request, since_ms=since_ms, until_ms=until_ms,
                        tell=lambda at: progress.update(at.done, at.of, "messages", at.stream),
                    )  # fmt: skip
        except asyncio.CancelledError:
            say(f"interrupted; the same command goes on with {path}")
            raise
        if not done.messages and not done.resumed and (request.run or request.tenant):
            await asyncio.to_thread(path.unlink, missing_ok=True)
            whose = " of ".join(
                f"{what} {name!r}" for what, name in (("run", request.run), ("tenant", request.tenant)) if name
            )
            raise Failure(Exit.UNKNOWN_ROLLOUT, f"there is nothing of {whose} in that time; no file is made")
        if as_json:
            emit(as_object(path, done))
        else:
            for text in lines(path, done):
                say(text)
        return source.status

    return run_interruptibly(work())


def as_object(path: Path, done: "Exported") -> dict[str, Any]:
    """Return what was exported as `--json` has it."""
    return {
        "path": str(path),
        "messages": done.messages,
        "bytes": done.size,
        "digest": done.digest.hex(),
        "missing": [{"stream": gap.stream, "first": gap.first, "last": gap.last} for gap in done.missing],
        "resumed": done.resumed,
        "complete_before": done.complete,
    }


def lines(path: Path, done: "Exported") -> list[str]:
    """Return what was exported for people."""
    from shoal.wire.quantities import format_bytes

    gaps = [f"messages {gap.first} to {gap.last} of {gap.stream} were not kept any more" for gap in done.missing]
    how = (
        "was complete already, and is as it was" if done.complete else "was gone on with" if done.resumed else "is made"
    )
    return [*gaps, f"{path} {how}: {done.messages:,} messages, {format_bytes(done.size)}, digest {done.digest.hex()}"]
