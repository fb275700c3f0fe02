"""`shoal audit`: who did what, when, to which sandbox."""

from typing import TYPE_CHECKING, Any

import click

from shoal.cli.histories import Source, history_options
from shoal.cli.interrupts import run_interruptibly
from shoal.cli.moments import window_ms
from shoal.cli.options import json_option
from shoal.cli.output import emit, moment, say
from shoal.cli.progress import Progress

if TYPE_CHECKING:
    from shoal.archive.auditing import Deed


@click.command(short_help="Say who did what, when, to which sandbox.")
@click.option("--tenant", metavar="NAME", help="Only what this tenant did. [default: all tenants, and operators]")
@click.option("--since", metavar="TIME", help="From when on: how long ago, such as 2h, or a time. [default: all]")
@click.option("--until", metavar="TIME", help="Until when.")
@history_options
@json_option
def audit(tenant: str | None, since: str | None, until: str | None, source: Source, as_json: bool) -> int:
    """Say who submitted, cancelled and released what, which commands ran where and how they ended, which files were
    written and read, which snapshots, templates, tenants and nodes were changed.

    It is read from the log. That an archive of it is as it was written, `shoal archive verify` shows.

    \b
    shoal audit --tenant research --since 24h
    shoal audit --from s3://logs/june --json | jq -r 'select(.what == "command") | .detail'
    """

    async def work() -> int:
        from contextlib import aclosing

        from shoal.archive.auditing import audit as audit_
        from shoal.client.requests import token

        who = token(tenant, "tenant") if tenant is not None else ""
        since_ms, until_ms = window_ms(since, until)
        found = 0
        async with source.open() as history:
            with Progress() as progress:

                def tell(stream: str, sequence: int) -> None:
                    progress.update(sequence, 0, "messages", stream)

                deeds = audit_(history, tenant=who, since_ms=since_ms, until_ms=until_ms, tell=tell)
                async with aclosing(deeds):
                    async for deed in deeds:
                        found += 1
                        if as_json:
                            emit(as_object(deed))
                        else:
                            print(line(deed))
        if not found:
            say("nothing was done" + (f" by {who}" if who else "") + " in that time")
        return source.status

    return run_interruptibly(work())


def as_object(deed: "Deed") -> dict[str, Any]:
    """Return what was done as `--json` has it."""
    return {
        "time_ms": deed.time_ms,
        "ended_ms": deed.ended_ms,
        "who": deed.who,
        "run": deed.run or None,
        "what": deed.what,
        "of": deed.subject,
        "detail": deed.detail,
        "outcome": deed.outcome or None,
        "exit_code": deed.exit_code,
        "stream": deed.stream,
        "sequence": deed.sequence,
        "id": deed.id,
        **deed.values,
    }


def line(deed: "Deed") -> str:
    """Return what was done as a line for people."""
    from shoal.archive.words import short

    who = f"{deed.who}/{deed.run}" if deed.run else deed.who
    outcome = f": {deed.outcome}" if deed.outcome else ""
    text = f"{moment(deed.time_ms)} {who} {deed.what.replace('_', ' ')} {deed.subject}"
    return f"{text} {short(deed.detail)}".rstrip() + outcome
