"""`shoal events`: the log itself."""

from typing import TYPE_CHECKING, Any

import click

from shoal.cli.interrupts import run_interruptibly
from shoal.cli.options import json_option, tenant_option, url_option
from shoal.cli.output import emit, moment

if TYPE_CHECKING:
    from shoal.client.results import Event

_LONGEST = 160


@click.command(short_help="Show the log, and follow it.")
@click.option("--run", "run_name", help="Only what is said of this run of the tenant's.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@click.option("--since", metavar="DURATION", help="How far back, such as 10m. [default: all; with --follow: from now]")
@tenant_option
@url_option
@json_option
def events(run_name: str | None, follow: bool, since: str | None, tenant: str, url: str | None, as_json: bool) -> int:
    """Show the messages of the log by time: all, or those of one run.

    \b
    shoal events --run grpo-7 --follow
    shoal events --since 10m --json | jq -r .type | sort | uniq -c
    """

    async def work() -> int:
        from shoal.cli.connecting import connect

        async with connect(url, tenant=tenant) as cluster:
            async for event in cluster.events(run_name, follow=follow, since=since):
                if as_json:
                    emit(as_object(event))
                else:
                    print(line(event), flush=follow)
        return 0

    return run_interruptibly(work())


def as_object(event: "Event") -> dict[str, Any]:
    """Return an event as `--json` has it; bytes are text, with undecodable ones replaced."""
    import msgspec

    message = event.message
    return {
        "stream": event.stream,
        "sequence": event.sequence,
        "time_ms": event.time_ms,
        "subject": event.subject,
        "id": event.id,
        "type": None if message is None else type(message).__name__,
        "message": None
        if message is None
        else {name: plain(getattr(message, name)) for name in msgspec.structs.asdict(message)},
    }


def plain(value: Any) -> Any:
    """Return a message, or a part of one, as JSON has it."""
    import msgspec

    match value:
        case bytes():
            return value.decode(errors="replace")
        case msgspec.Struct():
            return {name: plain(part) for name, part in msgspec.structs.asdict(value).items()}
        case tuple() | list():
            return [plain(part) for part in value]
    return value


def line(event: "Event") -> str:
    """Return an event as one line for people."""
    found = as_object(event)
    said = ", ".join(f"{name} {_short(value)}" for name, value in (found["message"] or {}).items())
    text = f"{moment(event.time_ms)} {event.stream}:{event.sequence} {found['type'] or 'undecodable'} {said}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _short(value: Any) -> str:
    return str(value) if not isinstance(value, dict) else "{" + ", ".join(f"{k} {v}" for k, v in value.items()) + "}"
