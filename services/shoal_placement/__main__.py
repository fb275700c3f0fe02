"""Starts the placement: `python -m shoal_placement`."""

import click

from shoal.runtime.options import Settings, service_options
from shoal.runtime.process import serve
from shoal_placement.service import run


@click.command()
@service_options
def main(settings: Settings) -> None:
    """Serve until SIGTERM. Any number may run: they share the cells, and stand by for each other."""
    serve("placement", settings, run)


if __name__ == "__main__":
    main()
