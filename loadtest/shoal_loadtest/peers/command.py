"""`shoal loadtest peers`: other ways to fan work out, beside Shoal, on this machine."""

from pathlib import Path

import click

from shoal.cli.exits import Exit, Failure
from shoal.cli.options import json_option
from shoal.cli.output import emit, say, table
from shoal.runtime.numbers import FiniteRange
from shoal_loadtest.floor.command import progress, shown as machine_line
from shoal_loadtest.machine import machine
from shoal_loadtest.peers import report
from shoal_loadtest.peers.catalogue import PEERS, chosen
from shoal_loadtest.peers.environments import NotInstalled, default_place, python_of
from shoal_loadtest.peers.measuring import Found, Measuring

_PICTURES = (".png", ".svg")


@click.command(short_help="Measure other ways to fan work out, beside Shoal.")
@click.option("--only", "words", multiple=True, metavar="WORD",
              help="Only peers with this in their name, and the Shoal beside them; may be given again.")  # fmt: skip
@click.option("-n", "n", default=10_000, show_default=True, type=click.IntRange(1), help="No-op units in a turn.")
@click.option("--sandboxes", default=128, show_default=True, type=click.IntRange(1), help="Real sandboxes in a turn.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("--envs", metavar="DIRECTORY", type=click.Path(path_type=Path),
              help="Where the peers' environments are kept. [default: shoal/peers in the user's cache]")  # fmt: skip
@click.option("--patience", default=300.0, show_default=True, type=FiniteRange(1), help="Seconds for one answer.")
@click.option("--picture", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="Draw the figures, too: a .png or .svg file.")  # fmt: skip
@json_option
def peers(
    words: tuple[str, ...], n: int, sandboxes: int, rounds: int, envs: Path | None, patience: float,
    picture: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Fan units of work out over this machine with Shoal and with others, turn by turn, each set up as its makers say.

    Units are no-ops: a function that returns its argument, or, for Shoal, a simulated sandbox; and real sandboxes, or
    what comes nearest, with one `true` in each. Every peer runs in a virtual environment of its own, made once from
    exact versions; its configuration is printed. Work that would take too long is done with a part of the units.

    \b
    shoal loadtest peers --only ray --only dask
    shoal loadtest peers --rounds 5 --picture peers.svg --json > peers.jsonl
    """
    entries = chosen(words)
    if not entries:
        known = ", ".join(entry.name for entry in PEERS)
        raise click.UsageError(f"--only: no peer is called like {', '.join(words)}; there are {known}")
    if picture is not None and picture.suffix not in _PICTURES:
        raise click.UsageError(f"--picture: {picture} is neither .png nor .svg; name such a file")
    place = (envs or default_place()).expanduser().absolute()
    here = machine()
    if not as_json:
        say(machine_line(here))
    found = Measuring(entries, n, sandboxes, place, patience, progress).run(rounds)
    progress("")
    by_name = {each.name: each for each in found}
    rows = [report.as_object(each, by_name) for each in found]
    if as_json:
        for row in ({"machine": here}, *rows):
            emit(row)
    else:
        _show(found, by_name)
    if picture is not None:
        try:
            trouble = report.draw(str(python_of(place, "plot", progress)), rows, machine_line(here), picture)
        except NotInstalled as error:
            trouble = str(error)
        if trouble:
            raise Failure(Exit.INFRASTRUCTURE, f"--picture: {trouble}")
    return 0


def _show(found: list[Found], by_name: dict[str, Found]) -> None:
    for kind in dict.fromkeys(each.kind for each in found):
        print(kind)
        shown = [each for each in found if each.kind == kind]
        table(report.COLUMNS, [report.cells(each, by_name) for each in shown], empty="")
        for each in shown:
            if said := report.words(each, by_name):
                print(f"{each.name}: {said}")
        print()
    for each in found:
        if each.settings:
            print(f"{each.name}: " + "; ".join(f"{name} {value}" for name, value in each.settings.items()))
