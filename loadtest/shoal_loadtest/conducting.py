"""A load test from its order to its report: read, check, bring up, run, write, judge."""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from shoal.cli import statefile
from shoal.cli.exits import Exit, Failure
from shoal.cli.output import emit, say, table
from shoal.wire.quantities import BadValueError
from shoal_loadtest import fleet
from shoal_loadtest.load import trace
from shoal_loadtest.machine import machine, versions
from shoal_loadtest.objectives import parse
from shoal_loadtest.progress import Progress
from shoal_loadtest.report import page, record
from shoal_loadtest.report.record import FORMAT, Report, RunRecord, VerdictRecord
from shoal_loadtest.running import Run
from shoal_loadtest.scenario import reading
from shoal_loadtest.scenario.model import Scenario, Trace

_SHOWN = (
    "throughput", "sustained", "ready_p50_ms", "ready_p99_ms", "group_ready_p99_ms", "first_command_p50_ms",
    "first_command_p99_ms", "commands_per_s", "command_p50_ms", "command_p99_ms", "live_max", "service_bytes_per_live",
    "cpu_us_per_sandbox", "cpu_us_per_command", "gpu_seconds", "gpu_cost", "failed", "rejected", "refused",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for on the command line."""

    scenario: str
    settings: tuple[str, ...]
    scale: float
    url: str | None
    state: Path | None
    out: Path | None
    objectives: tuple[str, ...]
    runs: int
    faults: bool
    as_json: bool


async def conduct(order: Order) -> int:
    """Do it; returns the exit status. Raises BadValueError, Failure, a ShoalError."""
    document = reading.document(order.scenario, order.settings)
    if order.faults:
        document["fault"] = reading.document("chaos")["fault"]
    document["objectives"] = [*document.get("objectives", []), *order.objectives]
    scenario = reading.scenario(document, order.scale)
    await _check(order, scenario)
    name = Path(order.scenario).stem
    out = _out(order.out, name)
    runs: list[RunRecord] = []
    began = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
    about, known = machine(), await versions(order.url is None)
    with Progress(scenario, name) as progress:
        async with contextlib.AsyncExitStack() as stack:
            there: fleet.Target | None = None
            if order.url:
                there = await stack.enter_async_context(_target(order, scenario, progress))
            for number in range(order.runs):
                if order.runs > 1:
                    progress.tell(f"run {number + 1} of {order.runs}")
                async with contextlib.AsyncExitStack() as own:
                    here = (
                        there
                        if there is not None
                        else await own.enter_async_context(_target(order, scenario, progress))
                    )
                    await fleet.prepare(here.url, scenario, progress.tell)
                    run = Run(scenario, document, order.scale, here, told=progress.row, tell=progress.tell)
                    runs.append(await run.go())
                if runs[-1].interrupted:
                    break
    report = Report(
        format=FORMAT, scenario=name, document=document, text=_text(order, document), scale=order.scale,
        seed=scenario.seed, began=began, own=order.url is None, machine=about, versions=known,
        gpus=scenario.trainer.gpus, price_per_gpu_hour=scenario.trainer.price_per_gpu_hour, runs=runs,
        objectives=judged(scenario, runs),
    )  # fmt: skip
    _write(report, out)
    _tell(order, report, out)
    if report.interrupted:
        return Exit.INTERRUPTED
    return Exit.OK if report.right and report.met else Exit.OBJECTIVE


def judged(scenario: Scenario, runs: list[RunRecord]) -> list[VerdictRecord]:
    """Return what became of the objectives: by the medians over the runs."""
    names = [phase.name for phase in scenario.phases]
    found = page.medians(runs)
    verdicts = [parse(text, names).judge(found) for text in scenario.objectives]
    return [VerdictRecord(objective=v.objective, met=v.met, found=v.found, bound=v.bound) for v in verdicts]


async def _check(order: Order, scenario: Scenario) -> None:
    for phase in scenario.phases:
        if isinstance(phase.arrival, Trace):
            await trace.requests(phase.arrival)
    if order.state is not None and order.url is None:
        raise BadValueError("state", "it goes with --url; a cluster that is brought up has one of its own")
    if order.state is not None and statefile.read(statefile.resolve(order.state)) is None:
        raise BadValueError(
            "state", f"no system runs on {order.state}; leave it out, or say which `shoal up` was given"
        )
    if scenario.faults and order.url is not None and order.state is None:
        raise BadValueError("state", "faults need to know the processes; say with --state where the system keeps them")


def _out(out: Path | None, name: str) -> Path:
    path = out or Path("loadtest-out") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "report.json").touch()
    except OSError as error:
        raise Failure(
            Exit.STATE_DIRECTORY, f"{path} cannot be written ({error.strerror}); choose with --out"
        ) from error
    return path


@contextlib.asynccontextmanager
async def _target(order: Order, scenario: Scenario, progress: Progress) -> AsyncIterator[fleet.Target]:
    if order.url:
        async with fleet.there_already(order.url, order.state) as target:
            yield target
    else:
        async with fleet.brought_up(scenario.fleet, scenario.seed, progress.tell) as target:
            yield target


def _text(order: Order, document: dict[str, Any]) -> str:
    """Return the scenario as it was written, and what was changed on the command line."""
    text = reading.text_of(order.scenario).rstrip()
    changed = [f"--set {each}" for each in order.settings] + (["--faults"] if order.faults else [])
    base = document.get("base") or ""
    return "\n".join([text, *(f"# {each}" for each in changed), *([f"# base: {base}"] if base else [])])


def _write(report: Report, out: Path) -> None:
    try:
        record.write(report, out / "report.json")
        page.write(report, out / "report.html")
    except OSError as error:
        raise Failure(Exit.STATE_DIRECTORY, f"the report cannot be written to {out}: {error.strerror}") from error


def _tell(order: Order, report: Report, out: Path) -> None:
    if order.as_json:
        for number, run in enumerate(report.runs, 1):
            emit({"run": number, "metrics": run.metrics, "audit": run.audit, "interrupted": run.interrupted})
        emit(
            {
                "scenario": report.scenario, "scale": report.scale, "right": report.right, "met": report.met,
                "objectives": msgspec.to_builtins(report.objectives), "metrics": page.medians(report.runs),
                "machine": report.machine, "report": str(out.absolute()),
            }
        )  # fmt: skip
        return
    found = page.medians(report.runs)
    phases = page.typical(report.runs).phases
    columns = ("", *(phase.name for phase in phases), "judged together")
    rows = []
    for name in _SHOWN:
        values = [found.get(f"{phase.name}.{name}") for phase in phases]
        if any(value is not None for value in values):
            rows.append((name, *(_figure(value) for value in values), _figure(found.get(name))))
    table(columns, rows, empty="nothing was measured")
    for verdict in report.objectives:
        print(f"{'met   ' if verdict.met else 'MISSED'} {verdict.objective}   found {_figure(verdict.found)}")
    audit = page.typical(report.runs).audit
    words = ", ".join(
        f"{audit.get(each, 0):,} {each}" for each in ("asked", "concluded", "lost", "doubled", "disagreed")
    )
    print(f"sandboxes: {words}")
    say(f"report: {out / 'report.html'}, {out / 'report.json'}")


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.3g}"
