"""`shoal loadtest floor`: what the parts do alone, and what all of it does together, in one run."""

import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from shoal.cli.interrupts import LONG_CLEANUP_S, run_interruptibly
from shoal.cli.options import json_option
from shoal.cli.output import emit, say, table
from shoal_loadtest.floor.fabric import Brokers
from shoal_loadtest.floor.figures import Row, as_object, compared, ranged, written
from shoal_loadtest.floor.work import Lifecycle, Work
from shoal_loadtest.machine import machine

PARTS: Final = ("broker", "runtime", "latency", "commands")
BROKERS: Final = {
    "one": Brokers(1, "10s"),
    "always": Brokers(1, "always"),
    "three": Brokers(3, "10s"),
}
"""By the names under which they are asked for."""
_COLUMNS: Final = ("figure", "side", "median", "range", "ratio", "note")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is measured, and how often."""

    parts: tuple[str, ...]
    work: Work
    nodes: int
    brokers: tuple[str, ...]
    starts: int
    samples: int
    rounds: int
    vs: bool


@click.command(short_help="Measure the floors: what the parts do alone, beside Shoal.")
@click.option("--only", "parts", multiple=True, type=click.Choice(PARTS), help="Only this part; may be given again.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of everything.")
@click.option("--sandboxes", default=102_400, show_default=True, type=click.IntRange(1),
              help="broker: how many go through in a turn.")  # fmt: skip
@click.option("--group", default=256, show_default=True, type=click.IntRange(1, 10_000), help="broker: in one rollout.")
@click.option("--under-way", default=64, show_default=True, type=click.IntRange(1), help="broker: rollouts at a time.")
@click.option("--lifecycle", default=Lifecycle.JOB.value, show_default=True,
              type=click.Choice([each.value for each in Lifecycle]),
              help="broker: sandboxes whose command travels along, or that are ready and released.")  # fmt: skip
@click.option(
    "--nodes", default=1000, show_default=True, type=click.IntRange(1), help="broker: Shoal's simulated nodes."
)
@click.option("--brokers", multiple=True, type=click.Choice(list(BROKERS)), default=list(BROKERS), show_default=True,
              help="broker: one server, one that syncs every message, three that keep all thrice.")  # fmt: skip
@click.option("--starts", default=256, show_default=True, type=click.IntRange(1),
              help="runtime: real sandboxes in a turn; an eighth of it with gvisor.")  # fmt: skip
@click.option("--samples", default=200, show_default=True, type=click.IntRange(10),
              help="latency and commands: how often each is timed in a turn.")  # fmt: skip
@click.option("--vs/--no-vs", default=True, show_default=True, help="broker: Shoal itself on the same work, in turn.")
@json_option
def floor(
    parts: tuple[str, ...], rounds: int, sandboxes: int, group: int, under_way: int, lifecycle: str, nodes: int,
    brokers: tuple[str, ...], starts: int, samples: int, vs: bool, as_json: bool,
) -> int:  # fmt: skip
    """Measure what the parts of Shoal do alone, and beside it what Shoal does, on this machine, turn by turn.

    broker: a chain of bare processes that pull, encode and publish as many and as large messages as Shoal does for the
    same sandboxes, with no logic at all. runtime: real sandboxes by a bare loop over the driver, and by programs such
    as bwrap and runc. latency: one message on an idle broker, four times, and one sandbox of Shoal's. commands: a
    trivial command in a live sandbox, by the driver, by a bare process that is asked through the broker, and by Shoal.

    \b
    shoal loadtest floor --only broker --sandboxes 1000000
    shoal loadtest floor --only runtime --rounds 5 --json | jq 'select(.side == "Shoal")'
    """
    if sandboxes < group:
        raise click.UsageError(
            f"--sandboxes: {sandboxes} are less than one group of {group}; ask for more, or say --group"
        )
    work = Work(sandboxes, group, under_way=under_way, lifecycle=Lifecycle(lifecycle))
    asked = Asked(parts or PARTS, work, nodes, brokers, starts, samples, rounds, vs)
    import uvloop

    from shoal_loadtest.floor.quiet import quiet

    quiet()
    return run_interruptibly(_floor(asked, as_json), uvloop.new_event_loop, cleanup_s=LONG_CLEANUP_S)


async def _floor(asked: Asked, as_json: bool) -> int:
    here = machine()
    emit({"machine": here}) if as_json else say(shown(here))
    for part in asked.parts:
        async for rows in measured(part, asked):
            show(compared(rows), as_json)
    return 0


async def measured(part: str, asked: Asked) -> AsyncIterator[list[Row]]:
    """Yield the rows of a part, case by case."""
    with tempfile.TemporaryDirectory(prefix="shoal-floor-") as scratch, _patience():
        place = Path(scratch)
        match part:
            case "broker":
                from shoal_loadtest.floor import brokers

                for name in asked.brokers:
                    yield await brokers.measure(
                        BROKERS[name], asked.work, asked.nodes, asked.rounds, vs=asked.vs, say=progress
                    )
            case "runtime":
                from shoal_loadtest.floor.runtime import KINDS, Runtime

                for kind in KINDS:
                    yield await Runtime(kind, asked.starts, progress).run(place, asked.rounds)
            case "latency":
                from shoal_loadtest.floor.latency import Latency

                latency = Latency(asked.samples)
                for number in range(asked.rounds):
                    progress(f"latency, round {number + 1} of {asked.rounds}")
                    await latency.round()
                yield latency.rows()
            case _:
                from shoal_loadtest.floor.commands import ISOLATIONS, Commands

                for isolation in ISOLATIONS:
                    commands = Commands(isolation, asked.samples)
                    for number in range(asked.rounds):
                        progress(f"commands, {isolation}, round {number + 1} of {asked.rounds}")
                        await commands.round(place / f"commands-{isolation}-{number}")
                    yield commands.rows()


@contextlib.contextmanager
def _patience() -> Any:
    try:
        yield
    finally:
        progress("")


def progress(text: str) -> None:
    """Tell a person what is done now: in one line where that can be written over."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
    elif text:
        say(text)


def shown(here: dict[str, Any]) -> str:
    """Return the machine as a line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in here.items())


def show(rows: Sequence[Row], as_json: bool) -> None:
    """Print rows: as JSON lines, or as a table."""
    if as_json:
        for row in rows:
            emit(as_object(row))
        return
    progress("")
    for case in dict.fromkeys(row.case for row in rows):
        chosen = sorted((row for row in rows if row.case == case), key=lambda row: row.figure)
        against = {row.figure: row.against for row in chosen if row.against}
        print(f"{chosen[0].part}: {case}")
        table(_COLUMNS, [_cells(row, against.get(row.figure) == row.side) for row in chosen], empty="")
    sys.stdout.flush()


def _cells(row: Row, reference: bool) -> tuple[str, ...]:
    measured = f"{written(row.median)} {row.unit}" if row.values else "not measured"
    ratio = "1, by definition" if reference else written(row.ratio)
    return row.figure, row.side, measured, ranged(row), ratio, row.note
