"""`shoal history`: the whole story of a rollout, a sandbox or a node, with what caused what."""

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
    from shoal.archive.happenings import Happening
    from shoal.archive.source import History
    from shoal.archive.stories import Story, Tell


@click.command(short_help="Tell the story of a rollout, a sandbox or a node.")
@click.argument("name", metavar="ROLLOUT|SANDBOX|NODE")
@click.option("--since", metavar="TIME", help="Of a node: from when on, such as 2h ago, or a time. [default: all]")
@click.option("--until", metavar="TIME", help="Of a node: until when.")
@click.option("--all", "everything", is_flag=True, help="A line for each message, also where many say the same.")
@click.option("--trace", metavar="FILE.json", type=click.Path(path_type=Path),
              help="Write a trace for ui.perfetto.dev or chrome://tracing, too.")  # fmt: skip
@history_options
@json_option
def history(
    name: str, since: str | None, until: str | None, everything: bool, trace: Path | None, source: Source, as_json: bool
) -> int:
    """Tell all that the log has of NAME, in order: what happened, how long after what caused it, and what followed.

    NAME is a rollout's id, a sandbox's (`<rollout>-<index>`), or a node's.

    \b
    shoal history r7frdskplikue6zo
    shoal history r7frdskplikue6zo-12 --from june.shoal --trace sandbox.json
    shoal history node-3 --since 2h --json | jq -r .said
    """

    async def work() -> int:
        since_ms, until_ms = window_ms(since, until)
        async with source.open() as history:
            with Progress() as progress:

                def tell(stream: str, sequence: int) -> None:
                    progress.update(sequence, 0, "messages", stream)

                story = await story_of(history, name, since_ms, until_ms, tell)
        if trace is not None:
            await _write_trace(story, trace)
        if as_json:
            known = story.by_ref
            for each in story.told:
                cause = known.get(each.cause) if each.cause is not None else None
                emit(as_object(each, cause))
        else:
            from shoal.cli.story_text import lines

            for line in lines(story, everything=everything):
                print(line)
        return source.status

    return run_interruptibly(work())


async def story_of(history: "History", name: str, since_ms: int | None, until_ms: int | None, tell: "Tell") -> "Story":
    """Return the story of what is called so. Raises Failure."""
    from shoal.archive.nodes import tell_node
    from shoal.archive.stories import NoSuchNameError, tell_rollout

    try:
        story = await tell_rollout(history, name, tell=tell)
    except NoSuchNameError as error:
        raise Failure(Exit.UNKNOWN_ROLLOUT, str(error)) from error
    story = story or await tell_node(history, name, since_ms=since_ms, until_ms=until_ms, tell=tell)
    if story is None and (since_ms, until_ms) != (None, None):
        whole = await tell_node(history, name, tell=tell)
        if whole is not None:
            raise Failure(
                Exit.UNKNOWN_ROLLOUT,
                f"nothing was heard of node {name!r} in that time, but at others: give another --since or --until",
            )
    if story is None:
        raise Failure(
            Exit.UNKNOWN_ROLLOUT,
            f"there is no rollout, sandbox or node {name!r} in this history; `shoal ls` and `shoal nodes` list what is"
            " there, and --from reads an archive of what was",
        )
    return story


def as_object(each: "Happening", cause: "Happening | None") -> dict[str, Any]:
    """Return what happened as `--json` has it."""
    from shoal.archive.words import said
    from shoal.cli.events import plain

    return {
        "time_ms": each.time_ms,
        "stream": each.stream,
        "sequence": each.sequence,
        "id": each.id,
        "type": each.kind,
        "said": said(each.message),
        "cause": None if each.cause is None else {"stream": each.cause.stream, "sequence": each.cause.sequence},
        "after_ms": None if cause is None else max(each.time_ms - cause.time_ms, 0),
        "context": each.context,
        "message": plain(each.message),
    }


async def _write_trace(story: "Story", path: Path) -> None:
    import asyncio

    import orjson

    from shoal.archive.trace import trace_of

    events = trace_of(story)
    data = orjson.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, option=orjson.OPT_APPEND_NEWLINE)
    try:
        await asyncio.to_thread(path.write_bytes, data)
    except OSError as error:
        raise Failure(Exit.INPUT, f"--trace: {path} cannot be written: {error.strerror}") from error
    say(f"{path}: {len(events):,} events; open it at ui.perfetto.dev")
