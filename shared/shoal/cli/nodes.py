"""`shoal nodes`, and `shoal node`."""

import asyncio
import dataclasses

import click

from shoal.cli.exits import Exit, Failure
from shoal.cli.interrupts import checkpoint, run_interruptibly
from shoal.cli.options import json_option, url_option
from shoal.cli.output import emit, moment, say, table


@click.command(short_help="List nodes.")
@url_option
@json_option
def nodes(url: str | None, as_json: bool) -> int:
    """List the nodes heard of lately, what they hold, and which limits they cannot enforce."""

    async def work() -> int:
        from shoal.cli.connecting import connect
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
                node.starting, _limits(node.unenforced), moment(node.last_seen_ms),
            )
            for node in found
        ]  # fmt: skip
        columns = ("node", "executor", "isolation", "state", "slots", "memory", "live", "starting", "not enforced",
                   "last heard")  # fmt: skip
        table(columns, rows, empty="no node has been heard of lately; start an executor, or everything with `shoal up`")
        return 0

    return run_interruptibly(work())


def _limits(unenforced: tuple[str, ...]) -> str:
    """Return which limits these are; why is in `--json` and in `shoal status`."""
    return ", ".join(limit.partition(" (")[0] for limit in unenforced) or "-"


@click.group(short_help="Take nodes out of use, and back.")
def node() -> None:
    """Take a node out of use for a while: to update it, or to switch it off."""


@node.command(short_help="Place nothing more on a node.")
@click.argument("name")
@click.option("--hibernate", is_flag=True, help="Put what can sleep to sleep; it wakes on another node.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until nothing runs there any more.")
@url_option
@json_option
def drain(name: str, hibernate: bool, wait: bool, url: str | None, as_json: bool) -> int:
    """Place nothing more on node NAME. What runs there goes on until it ends, unless it can be put to sleep."""

    async def work() -> int:
        from shoal.cli.connecting import connect

        async with connect(url) as cluster:
            found = [each for each in await cluster.nodes() if each.node == name]
            if not found:
                raise Failure(Exit.USAGE, f"there is no node {name!r}; `shoal nodes` lists them")
            await cluster.drain(name, hibernate=hibernate)
            told = -1
            while wait:
                checkpoint()
                known = [each for each in await cluster.nodes() if each.node == name] or found
                # Two rows: it went over to another executor, or cell, and the earlier one is not forgotten yet.
                left = sum(each.live + each.starting for each in known if each.state not in ("left", "silent"))
                if not left:
                    break
                if left != told and not as_json:
                    say(f"{name}: {left} sandboxes still run there")
                told = left
                await asyncio.sleep(1)
        if as_json:
            emit({"node": name, "drained": True, "empty": wait})
        else:
            say(f"{name} takes no more sandboxes{', and none is left there' if wait else ''}")
        return 0

    return run_interruptibly(work())


@node.command(short_help="Let a node take sandboxes again.")
@click.argument("name")
@url_option
@json_option
def undrain(name: str, url: str | None, as_json: bool) -> int:
    """Let node NAME take sandboxes again."""

    async def work() -> int:
        from shoal.cli.connecting import connect

        async with connect(url) as cluster:
            if all(each.node != name for each in await cluster.nodes()) and name not in await _drained(url):
                raise Failure(Exit.USAGE, f"there is no node {name!r}, and none of that name was drained")
            await cluster.undrain(name)
        if as_json:
            emit({"node": name, "drained": False})
        else:
            say(f"{name} takes sandboxes again")
        return 0

    return run_interruptibly(work())


async def _drained(url: str | None) -> set[str]:
    """Return the nodes that are drained; one that left since then is among them, and comes back when it is not."""
    from shoal.cli.histories import broker
    from shoal.client.nodes import drained

    async with broker(url) as bus:
        return await drained(bus)
