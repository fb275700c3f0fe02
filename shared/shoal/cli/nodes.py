"""`shoal nodes`."""

import dataclasses

import click

from shoal.cli.interrupts import run_interruptibly
from shoal.cli.options import json_option, url_option
from shoal.cli.output import emit, moment, table


@click.command(short_help="List nodes.")
@url_option
@json_option
def nodes(url: str | None, as_json: bool) -> int:
    """List the nodes heard of lately, what they hold, and which limits they cannot enforce."""

    async def work() -> int:
        from shoal.client.cluster import connect
        from shoal.wire.quantities import format_bytes

        async with connect(url) as cluster:
            found = await cluster.nodes()
        if as_json:
            for node in found:
                emit(dataclasses.asdict(node) | {"labels": dict(node.labels)})
            return 0
        rows = [
            (
                node.node, node.executor, node.isolation, node.state, node.slots, format_bytes(node.memory), node.live,
                node.starting, ", ".join(node.unenforced) or "-", moment(node.last_seen_ms),
            )
            for node in found
        ]  # fmt: skip
        columns = ("node", "executor", "isolation", "state", "slots", "memory", "live", "starting", "not enforced",
                   "last heard")  # fmt: skip
        table(columns, rows, empty="no node has been heard of lately; start an executor, or everything with `shoal up`")
        return 0

    return run_interruptibly(work())
