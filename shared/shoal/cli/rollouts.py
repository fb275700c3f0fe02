"""`shoal ls` and `shoal cancel`."""

import dataclasses
from typing import TYPE_CHECKING

import click

from shoal.cli.interrupts import run_interruptibly
from shoal.cli.options import json_option, tenant_option, url_option
from shoal.cli.output import emit, moment, say, table

if TYPE_CHECKING:
    from shoal.client.results import RolloutInfo


@click.command(short_help="List rollouts.")
@click.option("--run", "run_name", help="Only those of this run.")
@click.option("--since", default="24h", show_default=True, metavar="DURATION", help="Submitted how long ago at most.")
@tenant_option
@url_option
@json_option
def ls(run_name: str | None, since: str, tenant: str, url: str | None, as_json: bool) -> int:
    """List the tenant's rollouts, oldest first.

    \b
    shoal ls --run grpo-7 --since 1h
    """

    async def work() -> int:
        from shoal.cli.connecting import connect

        async with connect(url, tenant=tenant) as cluster:
            found = await cluster.rollouts(since, run=run_name)
        if as_json:
            for info in found:
                emit(dataclasses.asdict(info) | {"counts": {str(k): v for k, v in info.counts.items()}})
            return 0
        rows = [
            (
                info.rollout, info.run, info.template, info.n, info.state, info.ready, info.ended,
                ", ".join(f"{count} {str(reason).replace('_', ' ')}" for reason, count in info.counts.items()),
                info.waiting_reason, _position(info), moment(info.submitted_ms),
            )
            for info in found
        ]  # fmt: skip
        columns = (
            "rollout",
            "run",
            "template",
            "n",
            "state",
            "ready",
            "ended",
            "how",
            "waits because",
            "position",
            "submitted",
        )
        table(columns, rows, empty=f"tenant {tenant} has submitted no rollout in the last {since}")
        return 0

    return run_interruptibly(work())


def _position(info: "RolloutInfo") -> str:
    """Return where a rollout is in the queue, for people."""
    if not info.waiting:
        return ""
    when = f", about {moment(info.start_ms)}" if info.start_ms else ""
    return f"behind {info.ahead} sandboxes{when}"


@click.command(short_help="Stop a rollout.")
@click.argument("rollout")
@tenant_option
@url_option
@json_option
def cancel(rollout: str, tenant: str, url: str | None, as_json: bool) -> int:
    """Stop ROLLOUT, whatever it is doing; its sandboxes end as cancelled."""

    async def work() -> int:
        from shoal.cli.connecting import connect

        async with connect(url, tenant=tenant) as cluster:
            await cluster.cancel(rollout)
        if as_json:
            emit({"rollout": rollout, "cancelled": True})
        else:
            say(f"asked rollout {rollout} to stop")
        return 0

    return run_interruptibly(work())
