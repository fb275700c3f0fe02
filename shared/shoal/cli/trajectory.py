"""`shoal trajectory`: what was done in sandboxes, as training data and for people."""

import dataclasses
import json
import sys
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import click

from shoal.cli.interrupts import run_interruptibly
from shoal.cli.options import json_option, tenant_option, url_option
from shoal.cli.output import emit, moment, say, table

if TYPE_CHECKING:
    from shoal.client.rows import TrajectoryStep

_SAY_EVERY_S: Final = 1.0
_SHOWN: Final = 60


@click.group(short_help="What was done in sandboxes: as training data, and for people.")
def trajectory() -> None:
    """Every command, file, snapshot and sleep of every sandbox, with what came of it, from the log."""


@trajectory.command(short_help="Write a run's trajectories as training data.")
@click.argument("run")
@click.option("-o", "--output", required=True, metavar="FILE", help="A .jsonl or .parquet file; - for standard output.")
@click.option("--whole", is_flag=True, help="Fetch what is large, too: inputs over 64 KiB, outputs over 256 KiB.")
@tenant_option
@url_option
@json_option
def export(run: str, output: str, whole: bool, tenant: str, url: str | None, as_json: bool) -> int:
    """Write all that was done in the sandboxes of RUN, one row a step, in the order in which steps ended.

    \b
    shoal trajectory export grpo-7 -o data.parquet
    shoal trajectory export grpo-7 -o - | jq -r 'select(.undone | not) | .command'
    """
    from shoal.cli.writing import writer

    async def work() -> int:
        from shoal.cli.connecting import connect

        shown = _Shown()
        with writer(output) as file:  # first: what cannot be written is known before anything is asked
            async with connect(url, tenant=tenant) as cluster:
                async with aclosing(cluster.trajectory(run, whole=whole, progress=shown.read)) as rows:
                    async for row in rows:
                        file.add(row)
                        shown.add(row)
        if as_json:
            told = {"run": run, "file": output, "steps": shown.steps, "sandboxes": shown.ended, "cut": shown.cut}
            (say_json if output == "-" else emit)(told)
        else:
            shown.end(output)
        return 0

    return run_interruptibly(work())


class _Shown:
    """How far it is, on standard error."""

    def __init__(self) -> None:
        self.steps = 0
        self.ended = 0
        self.cut = 0
        self._said = time.monotonic()

    def read(self, read: int, total: int) -> None:
        """Take note of how much of the log was read."""
        if time.monotonic() - self._said >= _SAY_EVERY_S:
            self._said = time.monotonic()
            say(f"{100 * read // max(total, 1)} % of the log read, {self.steps} steps written")

    def add(self, row: "TrajectoryStep") -> None:
        """Take note of a row."""
        self.steps += 1
        self.ended += row.end is not None
        self.cut += bool(row.stdout_blob or row.stderr_blob)

    def end(self, output: str) -> None:
        """Say what it came to."""
        cut = f"; {self.cut} have only the beginning of their output: --whole fetches the rest" if self.cut else ""
        where = "" if output == "-" else f" in {output}"
        say(f"{self.steps} steps{where}, {self.ended} of them the last of a sandbox that has ended{cut}")


def say_json(value: dict[str, object]) -> None:
    """Tell a program something on standard error: standard output is taken."""
    import orjson

    say(orjson.dumps(value).decode())


@trajectory.command(short_help="Show one sandbox's story.")
@click.argument("sandbox")
@tenant_option
@url_option
@json_option
def show(sandbox: str, tenant: str, url: str | None, as_json: bool) -> int:
    """Show all that was done in SANDBOX (ROLLOUT-INDEX), and what it was in between.

    \b
    shoal trajectory show r7k2m4n6p8q2s4t6-0
    """

    async def work() -> int:
        from shoal.cli.connecting import connect

        async with connect(url, tenant=tenant) as cluster:
            found = [row async for row in cluster.story(sandbox)]
        if as_json:
            for row in found:
                emit(dataclasses.asdict(row))
            return 0
        rows = [
            (
                moment(row.ended_ms or 0), f"{row.attempt}.{row.step}" if row.step else f"{row.attempt}", row.kind,
                _what(row), _came(row), f"{row.duration_ms:.0f}" if row.duration_ms is not None else "",
            )
            for row in found
        ]  # fmt: skip
        columns = ("ended", "step", "kind", "what", "what came of it", "ms")
        table(columns, rows, empty=f"nothing was done in sandbox {sandbox}")
        return 0

    return run_interruptibly(work())


def _what(row: "TrajectoryStep") -> str:
    text = row.command or (f"{row.path} to {row.to}" if row.to else row.path) or row.snapshot[:12]
    return _short(text)


def _came(row: "TrajectoryStep") -> str:
    parts = [row.error, row.detail] if row.error or not row.step or row.kind == "snapshot" else []
    if row.exit_code is not None:
        ended = "given up" if row.given_up else "timed out" if row.timed_out else ""
        parts = [f"exit {row.exit_code}" if row.exit_code else "", ended]
        parts.append(_short((row.stdout or "").strip() or (row.stderr or "").strip()))
    elif row.kind in ("list", "stat") and row.data is not None:
        names = [str(entry["name"]) for entry in json.loads(row.data)]
        parts.append(_short(", ".join([*names, *([row.detail] if row.detail else [])]) or "nothing"))
    elif row.input_size is not None:
        parts.append(f"{row.input_size} bytes")
    if row.undone:
        parts.insert(0, "UNDONE")
    if row.end is not None:
        parts.append(f"; the sandbox ended: {row.end.replace('_', ' ')}")
    return " ".join(part for part in parts if part)


def _short(text: str) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= _SHOWN or not sys.stdout.isatty() else line[: _SHOWN - 1] + "…"
