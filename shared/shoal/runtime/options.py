"""Settings every service has, as flags and environment variables."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from shoal.wire.quantities import BadValueError, parse_seconds

DEFAULT_URL = "nats://127.0.0.1:4222"
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """What every service is told. `patience_s`: how long to wait for a broker that is not there yet. `cells` and

    `stream_replicas` are what a cluster gets that does not exist yet.
    """

    url: str = DEFAULT_URL
    cells: int = 1
    log_level: str = "info"
    patience_s: float = 60.0
    stream_replicas: int = 1


class Seconds(click.ParamType[float]):
    """A duration such as 30s or 10m, as a float of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds, or fail with what would be right."""
        try:
            return parse_seconds(value, param.name if param and param.name else "duration")
        except BadValueError as error:
            self.fail(str(error), param, ctx)


def service_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options all services share; the command gets them as `settings: Settings`."""

    @click.option("--url", envvar="SHOAL_URL", default=DEFAULT_URL, show_default=True, show_envvar=True,
                  help="The broker's address; several are separated by commas.")  # fmt: skip
    @click.option("--cells", envvar="SHOAL_CELLS", default=1, show_default=True, show_envvar=True,
                  type=click.IntRange(1, 10_000), help="How many cells a new cluster gets.")  # fmt: skip
    @click.option("--log-level", envvar="SHOAL_LOG_LEVEL", default="info", show_default=True, show_envvar=True,
                  type=click.Choice(LOG_LEVELS), help="The least important lines to log.")  # fmt: skip
    @click.option("--patience", envvar="SHOAL_PATIENCE", default="60s", show_default=True, show_envvar=True,
                  type=Seconds(), help="How long to wait for a broker that does not answer yet.")  # fmt: skip
    @click.option("--stream-replicas", envvar="SHOAL_STREAM_REPLICAS", default=1, show_default=True,
                  show_envvar=True, type=click.IntRange(1, 5),
                  help="On how many brokers a new cluster keeps each stream and value.")  # fmt: skip
    @wraps(command)
    def with_settings(
        *args: Any, url: str, cells: int, log_level: str, patience: float, stream_replicas: int, **kwargs: Any
    ) -> Any:
        return command(*args, settings=Settings(url, cells, log_level, patience, stream_replicas), **kwargs)

    return with_settings


def state_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--begin-with-what-is-left`; the command gets it as `what_is_left: bool`."""
    return click.option(
        "--begin-with-what-is-left", "what_is_left", envvar="SHOAL_BEGIN_WITH_WHAT_IS_LEFT", show_envvar=True,
        is_flag=True,
        help="Serve even where the beginning of a log is gone and no checkpoint can be loaded: what is lost stays so, "
        "such as tenants and limits. For one start, with no other process of this service.",
    )(command)  # fmt: skip


def cell_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--cell`: the number of the cell an executor's nodes belong to."""
    return click.option(
        "--cell", envvar="SHOAL_CELL", default=0, show_default=True, show_envvar=True, type=click.IntRange(0, 9999),
        help="The cell its nodes belong to.",
    )(command)  # fmt: skip


def _directories(_: click.Context, __: click.Parameter, value: str) -> tuple[Path, ...]:
    paths = tuple(Path(each) for each in value.split(":") if each)
    if not all(path.is_absolute() for path in paths):
        raise click.BadParameter("write whole paths, separated by colons, such as /srv/images:/data/roots")
    return paths


def template_roots_option(sources: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what adds `--template-roots`: below where `sources` may be. The command gets `template_roots`: paths."""
    return click.option(
        "--template-roots", envvar="SHOAL_TEMPLATE_ROOTS", show_envvar=True, default="/srv/shoal/templates",
        show_default=True, metavar="DIR[:DIR...]", callback=_directories,
        help=f"Below which directories {sources} of this machine may be, which whoever reaches the broker can name;"
        " /: anywhere; empty: nowhere.",
    )  # fmt: skip
