"""A command of `shoal loadtest` as a program: its errors become a sentence and an exit status, as `shoal`'s do."""

import sys

import click

from shoal.cli.exits import Exit, explain


def alone(command: click.Command, name: str) -> None:
    """Run a command as this process's program."""
    try:
        result = command.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(result if isinstance(result, int) else Exit.OK)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(Exit.INTERRUPTED)
    except click.ClickException as error:
        print(f"{name}: {error.format_message().rstrip('.')}", file=sys.stderr)
        sys.exit(Exit.USAGE)
    except Exception as error:
        status, sentence = explain(error)
        print(f"{name}: {sentence}", file=sys.stderr)
        sys.exit(status)
