"""Shows a rollout's outcomes as they come, with progress, and sums them up."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final

from shoal.cli.output import emit, say
from shoal.cli.summary import Summary

if TYPE_CHECKING:
    from shoal.client.results import SandboxOutcome
    from shoal.client.rollout import Rollout

_CANCEL_S: Final = 5.0
_LOOK_S: Final = 1.0


async def follow(rollout: "Rollout", *, as_json: bool) -> Summary:
    """Print every outcome and then the summary, which is returned. Raises what `Rollout.outcomes` raises."""
    summary = Summary(rollout.id)
    async with _waits_said(rollout):
        await _follow(rollout, summary, as_json=as_json)
    if as_json:
        emit(summary.as_json())
    else:
        print("\n".join(summary.lines()), file=sys.stderr, flush=True)
    if summary.not_found:
        print(f"shoal: {summary.not_found}", file=sys.stderr, flush=True)
    return summary


async def _follow(rollout: "Rollout", summary: Summary, *, as_json: bool) -> None:
    with _progress(rollout) as advance:
        async for outcome in rollout.outcomes():
            summary.add(outcome)
            note = "" if outcome.result is None else not_found(outcome.result.exit_code, outcome.result.stderr)
            summary.not_found = summary.not_found or note
            if as_json:
                emit(as_object(outcome))
            else:
                _print(outcome, alone=rollout.n == 1)
            advance(summary)


@contextlib.asynccontextmanager
async def _waits_said(rollout: "Rollout") -> AsyncIterator[None]:
    """Say why the rollout waits for room, whenever that is something else than before; what is short is not said."""

    async def look() -> None:
        known = ""
        while True:
            await asyncio.sleep(_LOOK_S)
            status = rollout.status()
            reason = status.waiting_reason if status.waiting else ""
            if reason not in ("", known):
                behind = f", behind {status.ahead} sandboxes" if status.ahead else ""
                say(f"rollout {rollout.id} waits{behind}: {reason}")
            known = reason

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()


@contextlib.asynccontextmanager
async def cancelled_on_interrupt(rollout: "Rollout") -> AsyncIterator[None]:
    """Cancel the rollout when what runs here is interrupted or fails."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CANCEL_S):
                await rollout.cancel()
                if isinstance(error, asyncio.CancelledError):  # anything else is told by itself
                    say(f"rollout {rollout.id} is cancelled")
        raise


def as_object(outcome: "SandboxOutcome") -> dict[str, Any]:
    """Return an outcome as `--json` has it; what there is no result for is null."""
    result = outcome.result
    found: dict[str, Any] = {
        "sandbox": outcome.sandbox,
        "node": outcome.node,
        "exit_code": None if result is None else result.exit_code,
        "stdout": None if result is None else result.stdout,
        "stderr": None if result is None else result.stderr,
        "ready_ms": _rounded(outcome.ready_ms),
        "first_command_ms": _rounded(outcome.first_command_ms),
        "reason": str(outcome.reason),
        "isolation": outcome.isolation,
    }
    if result is not None and result.truncated:
        for name in ("stdout_dropped", "stdout_tail", "stderr_dropped", "stderr_tail"):
            found[name] = getattr(result, name)
    return found | {"detail": outcome.detail} if outcome.detail else found


def not_found(exit_code: int, stderr: str) -> str:
    """Return a sentence when a command did not exist in its sandbox, and nothing otherwise."""
    if exit_code != 127:
        return ""
    last = (stderr.strip().splitlines() or ["exit status 127"])[-1]
    known = "command not found in the sandbox: "
    what = last if last.startswith(known) else known + last
    return f"{what}; name a program the template has, and write shell lines as sh -c '...'"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _print(outcome: "SandboxOutcome", *, alone: bool) -> None:
    result = outcome.result
    mark = "" if alone else f"{outcome.index} | "
    if result is not None:
        for text, stream in ((result.stdout, sys.stdout), (result.stderr, sys.stderr)):
            for line in text.splitlines():
                print(f"{mark}{line}", file=stream)
            stream.flush()
        for name, dropped in (("stdout", result.stdout_dropped), ("stderr", result.stderr_dropped)):
            if dropped:
                what = f"{dropped} bytes in the middle of its {name} are left out"
                print(f"sandbox {outcome.sandbox}: {what}", file=sys.stderr)
    if outcome.reason != "succeeded":
        what = "" if result is None else f", exit status {result.exit_code}"
        detail = f": {outcome.detail}" if outcome.detail else ""
        kind = "simulated sandbox" if outcome.isolation == "simulated" else "sandbox"
        print(f"{kind} {outcome.sandbox}: {str(outcome.reason).replace('_', ' ')}{what}{detail}", file=sys.stderr)


@contextlib.contextmanager
def _progress(rollout: "Rollout") -> Iterator[Any]:
    if not sys.stderr.isatty() or rollout.n == 1:
        yield lambda summary: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Lines printed meanwhile go above the bar; what is no terminal stays as it is.
    with Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()
    ) as progress:
        bar = progress.add_task(rollout.id, total=rollout.n)

        def advance(summary: Summary) -> None:
            failed = f", {summary.failed} failed" if summary.failed else ""
            lost = f", {summary.lost} lost" if summary.lost else ""
            kind = " simulated" if summary.simulated else ""
            progress.update(bar, completed=summary.sandboxes, description=f"{rollout.id}{kind}{failed}{lost}")

        yield advance
