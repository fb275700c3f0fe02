"""Starts the placement: `python -m shoal_placement`."""

import click

from shoal.runtime.options import Settings, cell_option, service_options
from shoal.runtime.process import serve
from shoal_placement.service import run


@click.command()
@service_options
@cell_option
def main(settings: Settings, cell: int) -> None:
    """Serve one cell until SIGTERM."""
    serve("placement", settings, lambda context: run(context, cell))


if __name__ == "__main__":
    main()
