"""`shoal tenant`: who may submit rollouts to the cluster."""

import click

from shoal.cli.interrupts import run_interruptibly
from shoal.cli.options import json_option, url_option
from shoal.cli.output import emit, say, table


@click.group(short_help="Say who may submit rollouts.")
def tenant() -> None:
    """Tenants of the cluster. Before the first is added, whoever comes is welcome."""


@tenant.command(short_help="Make tenants.")
@click.argument("names", nargs=-1, required=True)
@url_option
@json_option
def add(names: tuple[str, ...], url: str | None, as_json: bool) -> int:
    """Make each of NAMES a tenant. From the first one on, what others submit is rejected and put aside."""
    return _change(names, url, as_json, added=True)


@tenant.command(short_help="Unmake tenants.")
@click.argument("names", nargs=-1, required=True)
@url_option
@json_option
def rm(names: tuple[str, ...], url: str | None, as_json: bool) -> int:
    """Unmake each of NAMES: their rollouts go on, and no new one is admitted. After the last, all are welcome again."""
    return _change(names, url, as_json, added=False)


def _change(names: tuple[str, ...], url: str | None, as_json: bool, *, added: bool) -> int:
    async def work() -> int:
        from shoal.client.cluster import connect

        async with connect(url) as cluster:
            for name in names:
                await (cluster.add_tenant(name) if added else cluster.remove_tenant(name))
                if as_json:
                    emit({"tenant": name, "added": added})
                else:
                    say(f"{name} {'is a tenant now' if added else 'is no tenant any more'}")
        return 0

    return run_interruptibly(work())


@tenant.command(short_help="List tenants.")
@url_option
@json_option
def ls(url: str | None, as_json: bool) -> int:
    """List the cluster's tenants."""

    async def work() -> int:
        from shoal.client.cluster import connect

        async with connect(url) as cluster:
            found = await cluster.tenants()
        if as_json:
            for name in found:
                emit({"tenant": name})
        else:
            table(("tenant",), [(name,) for name in found], empty="no tenant was named: whoever comes is welcome")
        return 0

    return run_interruptibly(work())
