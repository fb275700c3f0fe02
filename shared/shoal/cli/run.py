"""`shoal run`: one rollout from request to summary."""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import click

from shoal.cli.interrupts import CLEANUP_S, LONG_CLEANUP_S, checkpoint, run_interruptibly
from shoal.cli.options import Request, json_option, rollout_options, tenant_option, url_option
from shoal.cli.results import cancelled_on_interrupt, follow


@click.command(short_help="Run a command in sandboxes and show what came of it.")
@rollout_options
@tenant_option
@url_option
@click.option("--local", is_flag=True, help="Bring a system up for just this run, and take it down.")
@click.option("--driver", default="zygote", show_default=True, type=click.Choice(["zygote", "gvisor", "simulated"]),
              help="With --local: how sandboxes are kept apart.")  # fmt: skip
@json_option
def run(request: Request, tenant: str, url: str | None, local: bool, driver: str, as_json: bool) -> int:
    """Run COMMAND in sandboxes of TEMPLATE and show what came of it.

    TEMPLATE is `host` (this machine's /usr and an otherwise empty root), `dir:PATH` or `tar:PATH` (a root filesystem),
    the name of what `shoal template build` made, or a snapshot: its name, or `snapshot:DIGEST`.
    The exit status is 0 only if every sandbox succeeded: 1 when a command failed, 3 when the platform lost a sandbox,
    127 when there is no such command. Ctrl-C cancels the rollout.

    \b
    shoal run host -n 256 -- python3 -c 'print(6*7)'
    shoal run host --input solve.py --memory 1GiB --timeout 5m -- python3 solve.py
    shoal run --local host --json -- sh -c 'id; ls -la /' | jq .stdout
    """
    work = _run(request, tenant, url, local, driver, as_json)
    return run_interruptibly(work, cleanup_s=LONG_CLEANUP_S if local else CLEANUP_S)


async def _run(request: Request, tenant: str, url: str | None, local: bool, driver: str, as_json: bool) -> int:
    from shoal.cli.connecting import connect

    arguments = request.check()
    async with contextlib.AsyncExitStack() as stack:
        if local:
            url = await stack.enter_async_context(_system(driver))
        cluster = await stack.enter_async_context(connect(url, tenant=tenant))
        checkpoint()
        rollout = await cluster.rollout(**arguments)
        async with cancelled_on_interrupt(rollout):
            checkpoint()
            return int((await follow(rollout, as_json=as_json)).status)


@contextlib.asynccontextmanager
async def _system(driver: str) -> AsyncIterator[str]:
    from shoal.cli.system import LocalSystem

    with tempfile.TemporaryDirectory(prefix="shoal-run-") as state:
        async with LocalSystem(Path(state), port=0, driver=driver) as system:
            yield system.url
