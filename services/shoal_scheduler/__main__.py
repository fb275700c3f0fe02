"""Starts the scheduler: `python -m shoal_scheduler`."""

import click

from shoal.runtime.options import Settings, service_options, state_option
from shoal.runtime.process import serve
from shoal_scheduler.core.order import ORDERS
from shoal_scheduler.service import run


@click.command()
@service_options
@state_option
@click.option("--quota", envvar="SHOAL_QUOTA", default=100_000, show_default=True, show_envvar=True,
              type=click.IntRange(1, 100_000), help="The most sandboxes one rollout may ask for.")  # fmt: skip
@click.option("--order", envvar="SHOAL_ORDER", default="fair", show_default=True, show_envvar=True,
              type=click.Choice(list(ORDERS)), help="Whose turn it is.")  # fmt: skip
def main(settings: Settings, quota: int, order: str, what_is_left: bool) -> None:
    """Serve until SIGTERM. Any number may run: they share the cells, and stand by for each other."""
    serve("scheduler", settings, lambda context: run(context, quota, order, what_is_left))


if __name__ == "__main__":
    main()
