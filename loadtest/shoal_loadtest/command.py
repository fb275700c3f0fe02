"""`shoal loadtest`: the group of its commands. What each needs is imported when it runs."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Final

import click

from shoal.cli.exits import Exit, Failure
from shoal.cli.options import json_option
from shoal.cli.output import emit, say, table
from shoal.runtime.numbers import FiniteRange

_SLOTS: Final = {
    "floor": "shoal_loadtest.floor.command:floor",
    "peers": "shoal_loadtest.peers.command:peers",
}
"""Commands that packages of their own bring, shown where they are."""
_NEEDED: Final = {"hdrh": "hdrhistogram", "psutil": "psutil", "matplotlib": "matplotlib"}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *(name for name, home in _SLOTS.items() if _is_there(home))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = _SLOTS.get(cmd_name)
        if home is None or not _is_there(home):
            return super().get_command(ctx, cmd_name)
        module, _, name = home.partition(":")
        found = getattr(importlib.import_module(module), name)
        assert isinstance(found, click.Command)
        return found


def _is_there(home: str) -> bool:
    try:
        return importlib.util.find_spec(home.partition(":")[0]) is not None
    except ModuleNotFoundError:
        return False


def needed() -> None:
    """Raise Failure where something that load tests need is not installed."""
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise Failure(
            Exit.START_FAILED,
            f"load tests need {', '.join(missing)}; install them with: pip install 'shoal[loadtest]'",
        )


@click.group(cls=_Group, short_help="Put Shoal under load, and say how it fared.")
def loadtest() -> None:
    """Put Shoal under load, and say how it fared.

    A scenario is a file: a fleet, and phases of load. Some come with Shoal (`list`), others are yours.

    \b
    shoal loadtest run million --scale 0.1
    shoal loadtest run steady --objective 'at50.ready_p99_ms<200'
    shoal loadtest run ./mine.toml --url nats://127.0.0.1:4222
    shoal loadtest compare before/ after/
    """


@loadtest.command(name="list")
@json_option
def list_(as_json: bool) -> int:
    """List the scenarios that come with Shoal."""
    needed()
    from shoal_loadtest.scenario import reading

    rows = [(name, str(reading.document(name).get("description", ""))) for name in reading.shipped()]
    if as_json:
        for name, description in rows:
            emit({"name": name, "description": description})
    else:
        table(("scenario", "what it does"), rows, empty="none")
    return Exit.OK


@loadtest.command()
@click.argument("scenario", required=False)
@json_option
def show(scenario: str | None, as_json: bool) -> int:
    """Show SCENARIO's file, or, without one, every key a file may have; and what objectives may be about."""
    needed()
    from shoal_loadtest.describing import described, keys, metrics

    if as_json:
        emit({"scenario": described(scenario) if scenario else None, "keys": keys(), "metrics": metrics()})
        return Exit.OK
    if scenario:
        print(described(scenario)["text"])
    else:
        for name, (about, fields) in keys().items():
            print(f"\n[{name}]  {about}")
            for field, what in fields.items():
                print(f"  {field} = {what}")
        print()
    rows = list(metrics().items())
    table(("metric, for --objective", "unit and meaning"), rows, empty="none")
    return Exit.OK


@loadtest.command(short_help="Run a scenario and report.")
@click.argument("scenario")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Another value than the file's: fleet.nodes=100, phase.hold.seconds=30.")  # fmt: skip
@click.option("--scale", type=FiniteRange(0, min_open=True), default=1.0, show_default=True,
              help="So much of the sandboxes, the commands and the time.")  # fmt: skip
@click.option("--url", metavar="URL", help="A cluster that is up. [default: one is brought up for this]")
@click.option("--state", type=click.Path(path_type=Path), metavar="DIRECTORY",
              help="With --url: the state directory of a system here, for cpu, memory and faults.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="DIRECTORY",
              help="For report.html and report.json. [default: loadtest-out/SCENARIO-TIME]")  # fmt: skip
@click.option("--objective", "objectives", multiple=True, metavar="OBJECTIVE",
              help="What must hold, such as ready_p99_ms<200; else the exit status is 21.")  # fmt: skip
@click.option("--runs", type=click.IntRange(1, 100), default=1, show_default=True,
              help="How often, so that `compare` can tell differences from chance.")  # fmt: skip
@click.option("--faults", is_flag=True, help="Kill every process in turn meanwhile, as scenario chaos does.")
@click.option("--gpus", type=click.IntRange(1), help="GPUs that wait, of each tenant. [default: the scenario's, 8]")
@click.option("--gpu-price", type=FiniteRange(0), metavar="USD",
              help="For a GPU-hour. [default: the scenario's, 2.5]")  # fmt: skip
@json_option
def run(
    scenario: str, settings: tuple[str, ...], scale: float, url: str | None, state: Path | None, out: Path | None,
    objectives: tuple[str, ...], runs: int, faults: bool, gpus: int | None, gpu_price: float | None, as_json: bool,
) -> int:  # fmt: skip
    """Run SCENARIO, one that comes with Shoal or a file, and write a report.

    Exit status 0: every sandbox concluded, once, and all objectives are met. 21: not so. Ctrl-C gives everything back
    and writes the report of what there was.
    """
    needed()
    from shoal.cli.interrupts import LONG_CLEANUP_S, run_interruptibly
    from shoal_loadtest.conducting import Order, conduct

    chosen: list[str] = list(settings)
    chosen += [f"trainer.gpus={gpus}"] if gpus is not None else []
    chosen += [f"trainer.price_per_gpu_hour={gpu_price}"] if gpu_price is not None else []
    order = Order(scenario, tuple(chosen), scale, url, state, out, objectives, runs, faults, as_json)
    return run_interruptibly(conduct(order), cleanup_s=LONG_CLEANUP_S)


@loadtest.command(short_help="Put two reports side by side.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--all", "all_metrics", is_flag=True, help="Every metric, not only the main ones.")
@json_option
def compare(a: Path, b: Path, all_metrics: bool, as_json: bool) -> int:
    """Put the reports A and B side by side: a report.json, or the directory it is in.

    Ratios are of medians over the runs of each. With three or more runs of each it also says how often chance alone
    makes so large a difference.
    """
    needed()
    from shoal_loadtest import comparing
    from shoal_loadtest.report import record

    left, right = record.read(a), record.read(b)
    for sentence in comparing.differences(left, right):
        say(f"take care: {sentence}")
    rows = comparing.compare(left, right, all_metrics=all_metrics)
    if as_json:
        for row in rows:
            emit(
                {
                    "metric": row.metric, "a": row.a, "b": row.b, "ratio": row.ratio, "runs": list(row.runs),
                    "chance": row.chance, "better": row.better,
                }
            )  # fmt: skip
        return Exit.OK
    table(("metric", "A", "B", "B/A", "runs", "chance", ""), [_shown(row) for row in rows], empty="nothing in common")
    return Exit.OK


def _shown(row: Any) -> tuple[str, ...]:
    ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
    chance = "-" if row.chance is None else f"{row.chance:.3f}"
    runs = f"{row.runs[0]}, {row.runs[1]}"
    return row.metric, f"{row.a:,.4g}", f"{row.b:,.4g}", ratio, runs, chance, row.cue
