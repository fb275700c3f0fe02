"""Options that several commands share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from shoal.cli.exits import Exit, Failure

_PATHS = ("dir", "tar", "docker-archive", "oci")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")(command)


def url_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--url`."""
    return click.option(
        "--url", envvar="SHOAL_URL", show_envvar=True, metavar="URL",
        help="The broker's address. [default: nats://127.0.0.1:4222]",
    )(command)  # fmt: skip


def tenant_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--tenant`."""
    return click.option(
        "--tenant", envvar="SHOAL_TENANT", default="default", show_default=True, show_envvar=True,
        help="On whose account.",
    )(command)  # fmt: skip


def state_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--state`."""
    return click.option(
        "--state", envvar="SHOAL_STATE", show_envvar=True, metavar="DIRECTORY", type=click.Path(path_type=Path),
        help="Where the system keeps what it knows. [default: ~/.local/state/shoal]",
    )(command)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What one rollout is asked for, as it was written."""

    template: str
    n: int
    run: str
    timeout: str | None
    memory: str
    cpu: float
    pids: int
    disk: str
    env: tuple[str, ...]
    inputs: tuple[Path, ...]
    stdin: bool
    isolation: str
    priority: int
    scheduling: dict[str, Any]
    command: tuple[str, ...]

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `Cluster.rollout` and `Cluster.submit`. Raises BadRequest, Failure."""
        from shoal.client.requests import Resources, command

        resources = Resources(memory=self.memory, cpu=self.cpu, pids=self.pids, disk=self.disk)
        return {
            "template": absolute(self.template),
            "n": self.n,
            "run": self.run,
            "timeout": self.timeout,
            "resources": resources,
            "command": command(self.command, stdin=_standard_input() if self.stdin else None),
            "files": input_files(self.inputs),
            "env": variables(self.env),
            "isolation": self.isolation,
            "priority": self.priority,
            **self.scheduling,
        }

    def check(self) -> dict[str, Any]:
        """Return `arguments()`, having checked all of it that can be known to be wrong without a cluster."""
        from shoal.client.requests import rollout_spec, token

        found = self.arguments()
        token(self.run, "run")
        rollout_spec(**{name: value for name, value in found.items() if name != "run"})
        return found


def rollout_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what `run` and `submit` share; the command gets it as `request: Request`."""
    from functools import wraps

    @click.argument("template")
    @click.argument("command", nargs=-1, required=True, metavar="-- COMMAND...", type=click.UNPROCESSED)
    @click.option("-n", "n", type=int, default=1, show_default=True, help="How many sandboxes.")
    @click.option("--run", "run_name", default="default", show_default=True, help="The run it belongs to.")
    @click.option(
        "--timeout", metavar="DURATION", help="For the whole rollout and its waiting, such as 10m. [default: 1h]"
    )
    @click.option("--memory", default="256MiB", show_default=True, metavar="SIZE", help="Of each sandbox.")
    @click.option("--cpu", type=float, default=1.0, show_default=True, metavar="CORES", help="Of each sandbox.")
    @click.option("--pids", type=int, default=256, show_default=True, help="Processes in each sandbox.")
    @click.option("--disk", default="128MiB", show_default=True, metavar="SIZE", help="What each sandbox may write.")
    @click.option(
        "--env", multiple=True, metavar="NAME=VALUE", help="A variable for the command; as often as you like."
    )
    @click.option("--input", "inputs", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
                  help="A file to put into each sandbox's working directory; as often as you like.")  # fmt: skip
    @click.option("--stdin", is_flag=True, help="Read standard input to its end and give it to every command.")
    @click.option("--isolation", default="", metavar="NAME", help="A driver: zygote, gvisor, simulated. [default: any]")
    @click.option("--priority", type=int, default=0, show_default=True, help="Before the tenant's others with less.")
    @click.option("--gang", is_flag=True, help="All sandboxes start together, or none.")
    @click.option("--min-ready", type=int, metavar="K", help="The first K start together, the others follow.")
    @click.option("--start-within", metavar="DURATION", help="What has no room by then is not started.")
    @click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Of the nodes to run on.")
    @click.option("--spread-over", metavar="NAME", help="A label: as many on the nodes of each of its values.")
    @wraps(command)
    def with_request(
        *args: Any, template: str, command_: tuple[str, ...] = (), n: int, run_name: str, timeout: str | None,
        memory: str, cpu: float, pids: int, disk: str, env: tuple[str, ...], inputs: tuple[Path, ...], stdin: bool,
        isolation: str, priority: int, gang: bool, min_ready: int | None, start_within: str | None,
        labels: tuple[str, ...], spread_over: str | None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        argv = kwargs.pop("command", command_)
        scheduling = {
            "gang": gang or None, "min_ready": min_ready, "start_within": start_within, "spread_over": spread_over,
            "labels": variables(labels, "--label", "label") or None,
        }  # fmt: skip
        request = Request(
            template, n, run_name, timeout, memory, cpu, pids, disk, env, inputs, stdin, isolation, priority,
            {name: value for name, value in scheduling.items() if value is not None}, argv,
        )  # fmt: skip
        return command(*args, request=request, **kwargs)

    return with_request


def absolute(template: str) -> str:
    """Return a template with its path made absolute: services do not share this directory."""
    kind, colon, path = template.partition(":")
    return f"{kind}:{Path(path).expanduser().absolute()}" if colon and path and kind in _PATHS else template


def variables(given: tuple[str, ...], option: str = "--env", what: str = "variable") -> dict[str, str]:
    """Return NAME=VALUE pairs as a mapping. Raises Failure."""
    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise Failure(Exit.USAGE, f"{option}: {pair!r} is no {what}; write NAME=VALUE")
        found[name] = value
    return found


def input_files(paths: tuple[Path, ...]) -> dict[str, Path]:
    """Return files by the name they get in a sandbox. Raises Failure for what cannot be read or collides."""
    found: dict[str, Path] = {}
    for path in paths:
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise Failure(
                Exit.INPUT, f"--input: cannot read {path}: {error.strerror}; name a file you can read"
            ) from error
        if path.name in found:
            raise Failure(
                Exit.USAGE, f"--input: {found[path.name]} and {path} would both become {path.name}; rename one"
            )
        found[path.name] = path
    return found


def _standard_input() -> bytes:
    import sys

    return sys.stdin.buffer.read()
