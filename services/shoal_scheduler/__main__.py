"""Starts the scheduler: `python -m shoal_scheduler`."""

import click

from shoal.runtime.options import Settings, cell_option, service_options
from shoal.runtime.process import serve
from shoal_scheduler.service import run


@click.command()
@service_options
@cell_option
@click.option("--quota", envvar="SHOAL_QUOTA", default=100_000, show_default=True, show_envvar=True,
              type=click.IntRange(1, 100_000), help="The most sandboxes one rollout may ask for.")  # fmt: skip
def main(settings: Settings, cell: int, quota: int) -> None:
    """Serve one cell until SIGTERM."""
    serve("scheduler", settings, lambda context: run(context, cell, quota))


if __name__ == "__main__":
    main()
