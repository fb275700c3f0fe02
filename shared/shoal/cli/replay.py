"""`shoal replay`: every decision checked, other policies tried, recorded load sent once more."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from shoal.cli.exits import Exit, Failure
from shoal.cli.histories import Source, broker
from shoal.cli.interrupts import run_interruptibly
from shoal.cli.moments import window_ms
from shoal.cli.options import json_option
from shoal.cli.output import emit, moment, say, table
from shoal.cli.progress import Progress
from shoal.runtime.numbers import FiniteRange

if TYPE_CHECKING:
    from shoal.archive.source import History
    from shoal.replay.verifying import Divergence, Verified

_LIVE: Final = "live"


@click.group(short_help="Check every decision of a recording, try other policies on it, send its load once more.")
def replay() -> None:
    """What a recording is good for. ARCHIVE is a file, a directory or s3://bucket/prefix (see `shoal export`), or
    `live`: what the broker of SHOAL_URL keeps.
    """


def _source(archive: str) -> Source:
    return Source((), True, None) if archive == _LIVE else Source((archive,), False, None)


# --- verify


@replay.command(short_help="Fold a recording through this version, and compare every effect.")
@click.argument("archive")
@click.option("--set", "changes", multiple=True, metavar="SERVICE.NAME=VALUE",
              help="Go by this setting, not by what was recorded, to see where it would first matter.")  # fmt: skip
@json_option
def verify(archive: str, changes: tuple[str, ...], as_json: bool) -> int:
    """Fold the recorded inboxes of ARCHIVE through the services installed here; compare every effect with the recorded.

    Stops at the first that differs, and says what it follows from; the exit status is then 22. This is how an upgrade
    is tried before it is rolled out.

    \b
    shoal replay verify today.shoal
    shoal replay verify live --set scheduler.order=fifo
    """

    async def work() -> int:
        import time

        from shoal.replay.services import services
        from shoal.replay.verifying import verify as verify_

        overrides = settings(changes)
        source = _source(archive)
        async with source.open() as history:
            began = time.perf_counter()
            with Progress(quiet=as_json) as progress:
                found = await verify_(
                    history, services(), overrides=overrides, tell=lambda n, of: progress.update(n, of, "messages")
                )
            took = time.perf_counter() - began
            chain = await _chain(history, found.divergence) if found.divergence is not None else []
        if as_json:
            emit(_verdict(found, chain, took))
        else:
            _tell_verdict(found, chain, took)
        return Exit.DIVERGED if found.divergence is not None else source.status

    return run_interruptibly(work())


def settings(changes: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Return settings by service. Raises Failure."""
    found: dict[str, dict[str, str]] = {}
    for text in changes:
        name, equals, value = text.partition("=")
        service, dot, setting = name.partition(".")
        if not equals or not dot or service not in ("scheduler", "placement") or not setting:
            raise Failure(Exit.USAGE, f"--set: {text!r} is no setting; write such as scheduler.order=fifo")
        found.setdefault(service, {})[setting] = value
    return found


async def _chain(history: "History", divergence: "Divergence") -> list[dict[str, Any]]:
    from shoal.cli.events import as_object
    from shoal.client.listing import event_of
    from shoal.replay.explaining import causes
    from shoal.wire.streams import stream_of

    cause = divergence.cause
    if not cause.subject:
        return []
    found = await causes(history, stream_of(cause.subject), cause)
    return [as_object(event_of(stream, delivery)) for stream, delivery in found]


def _verdict(found: "Verified", chain: list[dict[str, Any]], took: float) -> dict[str, Any]:
    folded = sum(found.folded.values())
    verdict: dict[str, Any] = {
        "equal": found.divergence is None, "folded": found.folded, "compared": found.compared,
        "unfinished": found.unfinished, "seconds": round(took, 3), "folds_per_s": round(folded / max(took, 1e-9)),
    }  # fmt: skip
    if (divergence := found.divergence) is not None:
        verdict["divergence"] = {
            "what": divergence.what, "partition": divergence.partition, "sequence": divergence.sequence,
            "effect": divergence.number, "recorded": _plain(divergence.recorded),
            "computed": _plain(divergence.computed),
            "differs": [{"path": path, "recorded": was, "computed": now} for path, was, now in _differs(divergence)],
            "causes": chain,
        }  # fmt: skip
    return verdict


def _plain(said: Any) -> Any:
    from shoal.cli.events import plain

    if said is None:
        return None
    return {"subject": said.subject, "type": type(said.message).__name__, "message": plain(said.message)}


def _differs(divergence: "Divergence") -> list[tuple[str, Any, Any]]:
    from shoal.replay.comparing import differences

    if divergence.recorded is None or divergence.computed is None:
        return []
    return differences(_plain(divergence.recorded), _plain(divergence.computed))


def _tell_verdict(found: "Verified", chain: list[dict[str, Any]], took: float) -> None:
    from shoal.cli.state import short

    rows = [(name, f"{found.folded[name]:,}", f"{found.compared[name]:,}") for name in found.folded]
    table(("partition", "messages folded", "effects compared"), rows, empty="there is nothing in it to fold")
    rate = sum(found.folded.values()) / max(took, 1e-9)
    say(f"{took:.1f} s, {rate:,.0f} folds a second")
    if found.unfinished:
        say(f"{found.unfinished} effects of the last messages were not stored yet when the recording ended")
    divergence = found.divergence
    if divergence is None:
        print("every effect is as it was recorded")
        return
    print(f"{divergence.what} ({moment(divergence.time_ms)})")
    for name, said in (("recorded", divergence.recorded), ("computed", divergence.computed)):
        message = said.message if said is not None else None
        print(f"  {name}: {short(message) if said is not None else 'nothing'}")
    for path, was, now in _differs(divergence)[:20]:
        print(f"    {path}: {short(was)} was recorded, {short(now)} follows now")
    for number, event in enumerate(chain):
        why = "because of" if not number else "which follows from"
        print(f"  {why} {event['stream']}:{event['sequence']} {event['type']} {short(event['message'])}")


# --- whatif


@replay.command(short_help="Run recorded demand through other policies or fleets, on simulated time.")
@click.argument("archive")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="A change; += -= *= as well. See below.")
@click.option("--since", metavar="TIME", help="Only what was asked from then on.")
@click.option("--until", metavar="TIME", help="Only what was asked until then.")
@click.option("--seed", type=int, default=0, show_default=True, help="For every draw of a start's time.")
@click.option("--gpu-price", type=FiniteRange(0), default=2.5, show_default=True, metavar="DOLLARS",
              help="An hour of the GPU that waits for a group; an assumption, give your own.")  # fmt: skip
@click.option("--node-price", type=FiniteRange(0), default=0.0, show_default=True, metavar="DOLLARS",
              help="An hour of a node.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="DIRECTORY", help="Draw pictures there.")
@json_option
def whatif(
    archive: str, changes: tuple[str, ...], since: str | None, until: str | None, seed: int, gpu_price: float,
    node_price: float, out: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Run what ARCHIVE says was asked through the real schedulers and placements, with changes, in simulated time.

    Three columns: what was recorded, what the simulation makes of the same (how far it can be trusted), and what it
    makes of the changes.

    \b
    scheduler.order=fifo  placement.policy=random    policies, by name
    nodes+=50  slots*=2  start_ms*=0.5  cells=4      the fleet
    arrivals*=2  rollouts*=3  busy*=0.5              the demand
    tenant.acme.weight=2  tenant.acme.sandboxes=500  what a tenant may have

    \b
    shoal replay whatif today.shoal --set placement.policy=random --set nodes+=50 --out report
    """

    async def work() -> int:
        from shoal.cli.whatif import Prices, draw, report, show
        from shoal.replay.changes import changed
        from shoal.replay.recorded import read
        from shoal.replay.services import services
        from shoal.replay.simulating import Simulation

        since_ms, until_ms = window_ms(since, until)
        source = _source(archive)
        async with source.open() as history:
            with Progress(quiet=as_json) as progress:
                recording = await read(
                    history, since_ms=since_ms, until_ms=until_ms, tell=lambda n: progress.update(n, 0, "messages read")
                )
        other = changed(recording.demand, changes)
        courses = {"recorded": (recording.demand, recording.course)}
        for name, demand in (("simulated", recording.demand), ("changed", other)):
            if name == "changed" and not changes:
                continue
            with Progress(quiet=as_json) as progress:
                simulation = Simulation(
                    demand, services(), seed,
                    lambda n, of, what=name: progress.update(n, of, "sandboxes", what),  # type: ignore[misc]  # its default is this turn's
                )  # fmt: skip
                for _ in iter(simulation.advance, False):
                    await asyncio.sleep(0)  # or nobody would hear a Ctrl-C
                courses[name] = (demand, simulation.course)
        found = report(courses, changes, Prices(gpu_price, node_price))
        pictures = draw(courses, out) if out is not None else []
        if as_json:
            emit({**found, "pictures": [str(path) for path in pictures]})
        else:
            show(found)
            for path in pictures:
                print(f"picture: {path}")
        return source.status

    return run_interruptibly(work())


# --- load


@replay.command(short_help="Send recorded requests once more, into another cluster.")
@click.argument("archive")
@click.option("--onto", required=True, metavar="URL", help="The broker of the cluster that gets them.")
@click.option("--speed", default="1x", show_default=True, metavar="N", help="10x: ten times as fast as it was.")
@click.option("--scale", type=click.IntRange(1), default=1, show_default=True, help="How often each rollout is asked.")
@click.option("--run", "run_name", metavar="NAME", help="The run it all belongs to. [default: shadow-<time>]")
@click.option("--since", metavar="TIME", help="Only what was asked from then on.")
@click.option("--until", metavar="TIME", help="Only what was asked until then.")
@click.option("--force", is_flag=True, help="Also onto the cluster that it was recorded of.")
@json_option
def load(
    archive: str, onto: str, speed: str, scale: int, run_name: str | None, since: str | None, until: str | None,
    force: bool, as_json: bool,
) -> int:  # fmt: skip
    """Send the requests of ARCHIVE with their timing: submissions, releases, cancellations, under ids of their own.

    \b
    shoal up --driver simulated --nodes 1000 --detach --state /tmp/shadow --port 4333
    shoal replay load today.shoal --speed 10x --scale 2 --onto nats://127.0.0.1:4333
    """

    async def work() -> int:
        import dataclasses
        import time

        from shoal.replay.loading import Loaded, Loading, requests, same_cluster

        since_ms, until_ms = window_ms(since, until)
        source = _source(archive)
        async with source.open() as history, broker(onto) as bus:
            if not force and await same_cluster(history, bus):
                raise Failure(
                    Exit.USAGE, f"--onto: {onto} is the cluster that this was recorded of; name another, or use --force"
                )
            due = await requests(history, since_ms=since_ms, until_ms=until_ms)
            name = run_name or f"shadow-{time.strftime('%Y%m%d-%H%M%S')}"
            loading = Loading(bus, due, name, speed=factor(speed), scale=scale)
            with Progress(quiet=as_json) as progress:

                def tell(loaded: Loaded, left: int) -> None:
                    progress.update(len(due) - left, len(due), "requests", f"{loaded.sandboxes:,} sandboxes")

                loaded = await loading.run(tell)
        if as_json:
            emit(dataclasses.asdict(loaded))
        else:
            print(
                f"{loaded.rollouts:,} rollouts of {loaded.sandboxes:,} sandboxes were asked for as run {loaded.run};"
                f" the latest request went out {loaded.late_s * 1000:.0f} ms late"
            )
        return source.status

    return run_interruptibly(work())


def factor(text: str) -> float:
    """Return how many times as fast. Raises Failure."""
    try:
        return float(text.removesuffix("x"))
    except ValueError:
        raise Failure(Exit.USAGE, f"--speed: {text!r} is no factor; write such as 10x or 0.5x") from None
