"""The group of all commands; a command's module is imported when it is used or described.

Other packages add commands by entry points of the group `shoal.commands`; this one knows none of them by name.
"""

import importlib
import sys
from importlib.metadata import EntryPoints, entry_points
from typing import Any, Final

import click

from shoal.cli.exits import OutputClosed

_HOMES: Final = {
    "up": "system_commands",
    "down": "system_commands",
    "status": "system_commands",
    "run": "run",
    "submit": "submit",
    "watch": "submit",
    "ls": "rollouts",
    "cancel": "rollouts",
    "nodes": "nodes",
    "node": "nodes",
    "template": "template",
    "snapshot": "snapshot",
    "tenant": "tenant",
    "trajectory": "trajectory",
    "events": "events",
    "history": "history",
    "audit": "audit",
    "export": "export",
    "archive": "archive",
    "state": "state",
    "replay": "replay",
    "dead": "dead",
}


class _Lazy(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            found = super().invoke(ctx)
            sys.stdout.flush()
            return found
        except BrokenPipeError as error:
            raise OutputClosed from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_HOMES, *sorted(_others().names - _HOMES.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _HOMES:
            for other in _others().select(name=cmd_name):
                command = other.load()
                assert isinstance(command, click.Command)
                return command
            return None
        module = importlib.import_module(f"shoal.cli.{_HOMES[cmd_name]}")
        found = getattr(module, cmd_name)
        assert isinstance(found, click.Command)
        return found


def _others() -> EntryPoints:
    return entry_points(group="shoal.commands")


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        click.echo(f"shoal {version('shoal')}")
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Say which it is.")
def shoal() -> None:
    """Sandboxes for agents, by the hundred.

    \b
    shoal up                                       bring a system up on this machine
    shoal run host -n 64 -- python3 -c 'print(6*7)'  run a command in 64 sandboxes of it
    shoal run --local host -- uname -a               the same without a system: one just for this run
    """
