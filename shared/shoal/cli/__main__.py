"""The entry point: every error becomes one sentence and an exit status."""

import os
import sys
import traceback
from collections.abc import Sequence

try:
    import click
except ModuleNotFoundError:  # a trainer's installation, which is the client only
    sys.exit("shoal: the command line is not installed; install it with: pip install 'shoal[cli]'")

from shoal.cli.app import shoal
from shoal.cli.exits import Exit, OutputClosed, OutputRefused, explain
from shoal.cli.output import told_apart


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; the process's own by default); returns the exit status."""
    try:
        with told_apart():
            result = shoal.main(
                args=None if arguments is None else list(arguments), prog_name="shoal", standalone_mode=False
            )
            sys.stdout.flush()
        return int(result) if isinstance(result, int) else Exit.OK
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return Exit.USAGE
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        print(f"shoal: {error.format_message().rstrip('.')}{hint}", file=sys.stderr)
        return Exit.USAGE
    except (BrokenPipeError, OutputClosed):
        _leave_output()
        return Exit.BROKEN_PIPE
    except Exception as error:
        if isinstance(error, OutputRefused):
            _leave_output()
        if os.environ.get("SHOAL_TRACEBACK"):
            traceback.print_exc()
        status, sentence = explain(error)
        print(f"shoal: {sentence}", file=sys.stderr)
        return status


def _leave_output() -> None:
    """Let go of what nobody takes: Python flushes standard output at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run())


if __name__ == "__main__":
    main()
