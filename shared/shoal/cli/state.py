"""`shoal state`: what a service knew at any moment."""

from typing import TYPE_CHECKING, Any, Final

import click

from shoal.cli.exits import Exit, Failure
from shoal.cli.histories import Source, history_options
from shoal.cli.interrupts import run_interruptibly
from shoal.cli.moments import moment_ms
from shoal.cli.options import json_option
from shoal.cli.output import emit, moment, say, table
from shoal.cli.progress import Progress

if TYPE_CHECKING:
    from shoal.archive.source import History
    from shoal.machine.service import Service
    from shoal.replay.rebuilding import Rebuilt

_SERVICES: Final = ("scheduler", "placement", "snapshot")
_SHOWN: Final = 100


@click.command(short_help="Show what a service knew at any moment.")
@click.argument("service", type=click.Choice(_SERVICES), default="scheduler")
@click.option("--at", metavar="TIME", help="When: how long ago, such as 2h, or a time. [default: now]")
@click.option("--diff", nargs=2, metavar="TIME TIME", help="What changed between two moments, instead.")
@click.option("--cell", type=click.IntRange(0), default=0, show_default=True, help="Which partition of it.")
@click.option("--checkpoints/--no-checkpoints", default=True, show_default=True,
              help="Begin with the newest checkpoint before, or fold the whole log.")  # fmt: skip
@history_options
@json_option
def state(
    service: str, at: str | None, diff: tuple[str, str] | None, cell: int, checkpoints: bool, source: Source,
    as_json: bool,
) -> int:  # fmt: skip
    """Rebuild the state of SERVICE (scheduler, placement or snapshot) as it was at a moment, from checkpoint and log.

    \b
    shoal state scheduler --at 10m
    shoal state placement --at 2026-03-01T12:00 --from /srv/shoal/log --live
    shoal state --diff 10m 5m --json
    """

    async def work() -> int:
        from shoal.replay.services import service as service_

        if diff and at is not None:
            raise Failure(Exit.USAGE, "--at is for one moment, --diff for two; leave one of them out")
        chosen = service_(service)
        if cell and not chosen.celled:
            raise Failure(Exit.USAGE, f"--cell: the {service} service has one partition for all cells; leave it out")
        moments = [moment_ms(text, "diff") for text in diff] if diff else [moment_ms(at, "at") if at else None]
        async with source.open() as history:
            found = []
            for when_ms in moments:
                with Progress(quiet=as_json) as progress:
                    tell = _Telling(progress, (await history.bounds(chosen.stream(cell))).last)
                    found.append(await _rebuild(history, chosen, cell, when_ms, checkpoints, tell))
        if diff:
            _differences(chosen, found, as_json)
        else:
            _show(chosen, cell, found[0], as_json)
        return source.status

    return run_interruptibly(work())


class _Telling:
    def __init__(self, progress: Progress, of: int) -> None:
        self._progress = progress
        self._of = of

    def __call__(self, at: int) -> None:
        self._progress.update(at, self._of, "messages")


async def _rebuild(
    history: "History", service: "Service", cell: int, when_ms: int | None, checkpoints: bool, tell: _Telling
) -> "Rebuilt":
    from shoal.replay.rebuilding import rebuild

    return await rebuild(history, service, cell, at_ms=when_ms, checkpoints=checkpoints, tell=tell)


def _show(service: "Service", cell: int, rebuilt: "Rebuilt", as_json: bool) -> None:
    from shoal.cli.events import plain

    decoded = service.decoded(rebuilt.core.dump())
    if as_json:
        emit(
            {
                "partition": service.partition(cell), "sequence": rebuilt.sequence, "time_ms": rebuilt.time_ms,
                "folded": rebuilt.folded, "checkpoint": rebuilt.begun, "version": rebuilt.version,
                "state": plain(decoded),
            }
        )  # fmt: skip
        return
    when = moment(rebuilt.time_ms) if rebuilt.time_ms else "the beginning"
    earlier = f", of version {rebuilt.version}," if rebuilt.version != rebuilt.core.state_version else ""
    begun = f"checkpoint of message {rebuilt.begun}{earlier} and " if rebuilt.begun else ""
    say(f"{service.partition(cell)} after message {rebuilt.sequence} of {when} ({begun}{rebuilt.folded:,} messages)")
    for part in service.summary(decoded):
        print(f"{part.title}: {len(part.rows)}")
        if part.rows:
            table(part.columns, part.rows[:_SHOWN], empty="")
        if len(part.rows) > _SHOWN:
            say(f"{len(part.rows) - _SHOWN} more; --json has them all")


def _differences(service: "Service", found: "list[Rebuilt]", as_json: bool) -> None:
    from shoal.cli.events import plain
    from shoal.replay.comparing import differences

    before, after = (plain(service.decoded(each.core.dump())) for each in found)
    changed = differences(before, after)
    if as_json:
        for path, was, now in changed:
            emit({"path": path, "before": was, "after": now})
        return
    first, last = found
    say(f"from message {first.sequence} ({moment(first.time_ms)}) to message {last.sequence} ({moment(last.time_ms)})")
    rows = [(path, short(was), short(now)) for path, was, now in changed[:_SHOWN]]
    table(("what", "before", "after"), rows, empty="nothing changed between these moments")
    if len(changed) > _SHOWN:
        say(f"{len(changed) - _SHOWN} more; --json has them all")


def short(value: Any) -> str:
    """Return a value in one line."""
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
