"""`shoal snapshot`: what was kept of live sandboxes, and where it came from."""

from typing import TYPE_CHECKING, Any

import click

from shoal.cli.catalogue import listed, pick, remove, row, show_one, size
from shoal.cli.interrupts import run_interruptibly
from shoal.cli.options import json_option, tenant_option, url_option
from shoal.cli.output import emit, say, table

if TYPE_CHECKING:
    from shoal.client.catalogue import SnapshotInfo


@click.group(short_help="List and keep snapshots of sandboxes.")
def snapshot() -> None:
    """Snapshots of live sandboxes, and the templates they grew from.

    What has no name, no pin and no rollout that needs it goes an hour after its last use.
    """


@snapshot.command(short_help="List snapshots.")
@tenant_option
@url_option
@json_option
def ls(tenant: str, url: str | None, as_json: bool) -> int:
    """List all snapshots and templates, the oldest first."""

    async def work() -> int:
        found = await listed(url, tenant)
        if as_json:
            for info in found:
                emit(row(info))
            return 0
        rows: list[tuple[Any, ...]] = []
        for info in found:
            shown = row(info)
            kept = "pinned" if info.pinned else "named" if info.names else f"{info.held} rollouts" if info.held else ""
            names = ", ".join(info.names)
            rows.append((info.digest[:12], names, info.parent[:12], shown["size"], info.origin, shown["added"], kept))
        columns = ("digest", "names", "parent", "size", "of sandbox", "taken", "kept")
        table(columns, rows, empty="there is no snapshot yet; sandbox.snapshot() takes one")
        return 0

    return run_interruptibly(work())


@snapshot.command(short_help="Show what grew from what.")
@tenant_option
@url_option
@json_option
def tree(tenant: str, url: str | None, as_json: bool) -> int:
    """Show the lineage of all snapshots: each under what its sandbox had started from."""

    async def work() -> int:
        found = await listed(url, tenant)
        if as_json:
            for info in found:
                emit({"digest": info.digest, "parent": info.parent, "names": list(info.names)})
            return 0
        if not found:
            say("there is no snapshot yet; sandbox.snapshot() takes one")
            return 0
        from rich.console import Console
        from rich.tree import Tree

        top = Tree("templates and snapshots")
        nodes: dict[str, Tree] = {}

        def branch(digest: str) -> Tree:
            if digest not in nodes:
                info = known.get(digest)
                parent = branch(info.parent) if info is not None and info.parent else top
                nodes[digest] = parent.add(_label(digest, info))
            return nodes[digest]

        known = {info.digest: info for info in found}
        for info in found:
            branch(info.digest)
        Console(highlight=False).print(top)
        return 0

    return run_interruptibly(work())


def _label(digest: str, info: "SnapshotInfo | None") -> str:
    if info is None:
        return digest if len(digest) < 13 else f"{digest[:12]} (no longer kept by itself)"
    names = f" {', '.join(info.names)}" if info.names else ""
    pinned = " pinned" if info.pinned else ""
    return f"{digest[:12]}{names} {size(info.size)}{f' of {info.origin}' if info.origin else ''}{pinned}"


@snapshot.command(short_help="Show a snapshot.")
@click.argument("reference")
@tenant_option
@url_option
@json_option
def show(reference: str, tenant: str, url: str | None, as_json: bool) -> int:
    """Show what the snapshot with this name, or digest, is."""
    return run_interruptibly(show_one(reference, url, tenant, as_json))


@snapshot.command(short_help="Keep a snapshot for good.")
@click.argument("references", nargs=-1, required=True)
@click.option("--off", is_flag=True, help="No longer.")
@tenant_option
@url_option
@json_option
def pin(references: tuple[str, ...], off: bool, tenant: str, url: str | None, as_json: bool) -> int:
    """Keep the snapshots with these names, or digests, whether something needs them or not."""

    async def work() -> int:
        from shoal.cli.connecting import connect

        async with connect(url, tenant=tenant) as cluster:
            found = await cluster.snapshots()
            for reference in references:
                info = pick(found, reference)
                await cluster.pin_snapshot(info.snapshot, pinned=not off)
                if as_json:
                    emit({"digest": info.digest, "pinned": not off})
                else:
                    say(f"{info.digest[:12]} is {'no longer ' if off else ''}pinned")
        return 0

    return run_interruptibly(work())


@snapshot.command(short_help="Have all nodes fetch snapshots.")
@click.argument("references", nargs=-1, required=True)
@tenant_option
@url_option
@json_option
def prefetch(references: tuple[str, ...], tenant: str, url: str | None, as_json: bool) -> int:
    """Have all nodes fetch these templates or snapshots, mount them and warm their interpreters, ahead of the first."""

    async def work() -> int:
        from shoal.cli.connecting import connect

        async with connect(url, tenant=tenant) as cluster:
            found = await cluster.snapshots()
            for reference in references:
                info = pick(found, reference)
                await cluster.prefetch(info.snapshot)
                if as_json:
                    emit({"digest": info.digest, "bytes": info.size})
                else:
                    say(f"{info.digest[:12]} ({size(info.size)}) is being fetched by every node")
        return 0

    return run_interruptibly(work())


@snapshot.command(short_help="Remove snapshots.")
@click.argument("references", nargs=-1, required=True)
@tenant_option
@url_option
@json_option
def rm(references: tuple[str, ...], tenant: str, url: str | None, as_json: bool) -> int:
    """Take names and pins from these snapshots; the bytes go when nothing needs them."""
    return run_interruptibly(remove(references, url, tenant, as_json))
