"""Starts the placement: `python -m shoal_placement`."""

import click

from shoal.runtime.options import Settings, service_options, state_option
from shoal.runtime.process import serve
from shoal_placement.core.policies import POLICIES
from shoal_placement.service import run


@click.command()
@service_options
@state_option
@click.option("--policy", envvar="SHOAL_POLICY", default="soonest", show_default=True, show_envvar=True,
              type=click.Choice(list(POLICIES)), help="How nodes are chosen; the same in every process.")  # fmt: skip
def main(settings: Settings, policy: str, what_is_left: bool) -> None:
    """Serve until SIGTERM. Any number may run: they share the cells, and stand by for each other."""
    serve("placement", settings, lambda context: run(context, policy, what_is_left))


if __name__ == "__main__":
    main()
