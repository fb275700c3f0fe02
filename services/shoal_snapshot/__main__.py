"""Starts the snapshot service: `python -m shoal_snapshot`."""

import click

from shoal.runtime.options import Settings, service_options
from shoal.runtime.process import serve
from shoal_snapshot.service import run


@click.command()
@service_options
def main(settings: Settings) -> None:
    """Resolve templates until SIGTERM. Any number may run: one does the work, the others stand by."""
    serve("snapshot", settings, run)


if __name__ == "__main__":
    main()
