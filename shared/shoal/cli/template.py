"""`shoal template`: what sandboxes start from, made once and used by many."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import click

from shoal.cli.catalogue import listed, remove, row, show_one
from shoal.cli.interrupts import run_interruptibly
from shoal.cli.options import absolute, json_option, tenant_option, url_option, variables
from shoal.cli.output import emit, say, table


@click.group(short_help="Make and list what sandboxes start from.")
def template() -> None:
    """Templates: a source and what is set up in it, as read-only disks that all sandboxes of a node share."""


@template.command(short_help="Make a template.")
@click.argument("name")
@click.option("--from", "source", required=True, metavar="SOURCE", help="What it is made of; see above.")
@click.option("--setup", multiple=True, metavar="LINE", help="A line for a shell, run in it; as often as you like.")
@click.option("--warm", default="", metavar="PYTHON", help="Code its interpreter has run when a sandbox starts.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable for every command; as often as you like.")
@click.option("--memory", default="2GiB", show_default=True, metavar="SIZE", help="Of the sandbox for the set-up.")
@click.option(
    "--cpu", type=float, default=1.0, show_default=True, metavar="CORES", help="Of the sandbox for the set-up."
)
@click.option("--disk", default="1GiB", show_default=True, metavar="SIZE", help="What the set-up may write.")
@click.option("--timeout", default="30m", show_default=True, metavar="DURATION", help="For each line of the set-up.")
@click.option("--isolation", default="", metavar="NAME", help="gvisor: keep what runs after the set-up, too.")
@tenant_option
@url_option
@json_option
def build(
    name: str, source: str, setup: tuple[str, ...], warm: str, env: tuple[str, ...], memory: str, cpu: float, disk: str,
    timeout: str, isolation: str, tenant: str, url: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Make a template called NAME.

    SOURCE is `host` (the nodes' own /usr), `dir:PATH`, `tar:PATH`, `docker-archive:PATH` (of `docker save`),
    `oci:PATH[:TAG]` (a layout directory), `docker://NAME` (a registry, by way of skopeo) or `template:NAME`. Paths are
    on the machine of the snapshot service. Lines of the set-up run in a sandbox, which has no network, and what they
    write becomes part of it. It is made once however many ask, and again only when its source or recipe is another.

    With --isolation gvisor the whole sandbox is kept as the set-up left it: a server that a line has started, or what
    the interpreter has loaded, runs on in every sandbox of the template.

    \b
    shoal template build tools --from tar:rootfs.tar --setup 'mkdir -p /work && tar xf /opt/data.tar -C /work'
    shoal template build science --from template:tools --warm 'import numpy, pandas'
    shoal template build served --from host --isolation gvisor --setup 'python3 -m http.server >/dev/null 2>&1 &'
    """

    async def work() -> int:
        from shoal.cli.connecting import connect
        from shoal.client.requests import Resources

        resources = Resources(memory=memory, cpu=cpu, disk=disk, pids=1024)
        async with connect(url, tenant=tenant) as cluster:
            with _progress(as_json) as told:
                made = await cluster.build_template(
                    name, absolute(source), setup=setup, warm=warm, env=variables(env), resources=resources,
                    timeout=timeout, isolation=isolation, on_progress=told,
                )  # fmt: skip
        if as_json:
            size = sum(blob.size for blob in made.wire.blobs)
            emit({"template": name, "digest": made.digest, "bytes": size, "disks": len(made.wire.disks)})
        else:
            say(f"template {name} is {made.digest[:12]}; start from it: shoal run {name} -- COMMAND")
        return 0

    return run_interruptibly(work())


@contextlib.contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[str, str], None]]:
    """Show what a build does: one line that changes where somebody looks on, else a line for each step."""
    import sys

    if as_json:
        yield lambda step, line: emit({"step": step, "line": line})
        return
    if not sys.stderr.isatty():
        last: list[str] = [""]

        def told(step: str, _line: str) -> None:
            if step != last[0]:
                last[0] = step
                say(step)

        yield told
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False)
    with console.status("asking the snapshot service") as status:
        yield lambda step, line: status.update(f"{escape(step)}  [dim]{escape(line)}[/dim]")


@template.command(short_help="List templates.")
@tenant_option
@url_option
@json_option
def ls(tenant: str, url: str | None, as_json: bool) -> int:
    """List the templates that were made; `host`, `dir:` and `tar:` are there without being made."""

    async def work() -> int:
        found = [info for info in await listed(url, tenant) if info.template and info.names]
        if as_json:
            for info in found:
                emit(row(info))
        else:
            rows: list[tuple[Any, ...]] = []
            for info in found:
                shown = row(info)
                rows.append((", ".join(info.names), info.digest[:12], shown["size"], shown["added"], info.held))
            columns = ("template", "digest", "size", "made", "rollouts")
            table(columns, rows, empty="no template was made yet; `shoal template build` makes one")
        return 0

    return run_interruptibly(work())


@template.command(short_help="Show a template.")
@click.argument("name")
@tenant_option
@url_option
@json_option
def show(name: str, tenant: str, url: str | None, as_json: bool) -> int:
    """Show what the template called NAME is."""
    return run_interruptibly(show_one(name, url, tenant, as_json))


@template.command(short_help="Remove templates.")
@click.argument("names", nargs=-1, required=True)
@tenant_option
@url_option
@json_option
def rm(names: tuple[str, ...], tenant: str, url: str | None, as_json: bool) -> int:
    """Take the NAMES from what they stand for; its bytes go when nothing needs them."""
    return run_interruptibly(remove(names, url, tenant, as_json))
