"""`shoal submit` and `shoal watch`: a rollout in two steps."""

import click

from shoal.cli.interrupts import run_interruptibly
from shoal.cli.options import Request, json_option, rollout_options, tenant_option, url_option
from shoal.cli.output import emit
from shoal.cli.results import follow


@click.command(short_help="Ask for a rollout and print its id at once.")
@rollout_options
@tenant_option
@url_option
@json_option
def submit(request: Request, tenant: str, url: str | None, as_json: bool) -> int:
    """Ask for COMMAND in sandboxes of TEMPLATE, and print the rollout's id as soon as the request is stored.

    \b
    id=$(shoal submit host -n 64 -- python3 -c 'print(6*7)')
    shoal watch $id
    """

    async def work() -> int:
        from shoal.cli.connecting import connect

        arguments = request.check()
        async with connect(url, tenant=tenant) as cluster:
            rollout = await cluster.submit(**arguments)
        if as_json:
            emit({"rollout": rollout})
        else:
            click.echo(rollout)
        return 0

    return run_interruptibly(work())


@click.command(short_help="Show a rollout's results, from the first to the last.")
@click.argument("rollout")
@tenant_option
@url_option
@json_option
def watch(rollout: str, tenant: str, url: str | None, as_json: bool) -> int:
    """Show the results of ROLLOUT from its first, wait for those to come, and sum up, as `shoal run` does.

    Ctrl-C ends the watching; the rollout goes on.
    """

    async def work() -> int:
        from shoal.cli.connecting import connect

        async with connect(url, tenant=tenant) as cluster:
            found = await cluster.attach(rollout)
            return int((await follow(found, as_json=as_json)).status)

    return run_interruptibly(work())
