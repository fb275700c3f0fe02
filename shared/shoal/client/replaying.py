"""A sandbox that is gone, brought back: from its last snapshot, by doing again what was done in it after that."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from shoal.client.catalogue import sealed
from shoal.client.diverging import ReplayDiverged, ReplayStopped
from shoal.client.errors import BadRequest, Rejected
from shoal.client.files import TIMEOUT_S as FILE_S
from shoal.client.inputs import filled, request
from shoal.client.record import Record
from shoal.client.requests import milliseconds
from shoal.client.results import CommandResult
from shoal.client.snapshots import TIMEOUT_S, Snapshot
from shoal.client.steps import described, step_of
from shoal.client.story import Told, in_snapshot
from shoal.client.unclaimed import released_unless_given
from shoal.machine import ranges
from shoal.wire.asked import Answer, Asked, blob_of
from shoal.wire.messages import (
    CommandFinished,
    CommandRefused,
    FileEntry,
    FileManaged,
    FileOp,
    FileRead,
    FileWritten,
    ManageFile,
    ReadFile,
    RollBack,
    RolloutSpec,
    RunCommand,
    WriteFile,
)

if TYPE_CHECKING:
    from shoal.client.sandbox import Head, Sandbox

Outcome = CommandResult | bytes | int | str
"""What came of a step: of a command its result, of reading a file its bytes, of writing one its size, else words."""

_DONE_AGAIN: Final = ("run", "write", "read", "rollback", *FileOp)
"""What changes a sandbox, or tells how it is; a snapshot that was taken changed nothing."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A step that gave something else when it was done again. Durations do not count."""

    step: str
    what: str
    expected: Outcome
    got: Outcome

    def __str__(self) -> str:
        return f"step {self.step} ({self.what}) gave {self.got!r}, and had given {self.expected!r}"


@dataclass(slots=True)
class Replay:
    """A sandbox brought back: `sandbox` is the new one, of a rollout of its own, started from `origin` (None: anew).

    `replayed` steps were done again. `divergences`: those that gave something else. `recorded`: those that were not
    done again, because they must not be; what is recorded of them was taken for granted.
    """

    sandbox: "Sandbox"
    origin: Snapshot | None
    replayed: int = 0
    divergences: list[Divergence] = field(default_factory=list)
    recorded: list[str] = field(default_factory=list)


async def resume(
    sandbox: "Sandbox", timeout: float | str | None, diverged: str, not_idempotent: str, id: str | None  # noqa: ASYNC109 - the new rollout's
) -> Replay:  # fmt: skip
    """See `Sandbox.resume`."""
    if diverged not in ("raise", "report"):
        raise BadRequest("diverged", f"{diverged!r} is no policy; write 'raise' or 'report'")
    if not_idempotent not in ("raise", "recorded"):
        raise BadRequest("not_idempotent", f"{not_idempotent!r} is no policy; write 'raise' or 'recorded'")
    if sandbox.ended is None:
        raise BadRequest("sandbox", f"{sandbox.name} lives: go on with it, or fork() it")
    asked_ms = milliseconds(timeout, "timeout") or sandbox.rollout.spec.timeout_ms
    async with sandbox.step(id) as step:
        return await _brought_back(sandbox, asked_ms, diverged, not_idempotent, step)


async def _brought_back(sandbox: "Sandbox", asked_ms: int, diverged: str, not_idempotent: str, step: str) -> Replay:
    story = await sandbox.story()
    attempt = story.last(sandbox.attempt)
    steps, saved = story.steps(attempt), story.saved(attempt)
    spec, key = sandbox.rollout.spec, f"{sandbox.name}:{step}:resumed"
    replay: Replay | None = None
    if saved is not None:
        snapshot = Snapshot(saved.snapshot)
        again = msgspec.structs.replace(spec, template=str(snapshot), n=1, files=(), timeout_ms=asked_ms)
        try:
            replay = Replay(await _started(sandbox, again, key), snapshot)
        except Rejected as error:
            if error.code != "unknown_template":
                raise
        else:
            steps = [told for told in steps if not in_snapshot(told, saved)]
    if replay is None:  # it has none, or none that is still kept
        again = msgspec.structs.replace(spec, n=1, timeout_ms=asked_ms)
        replay = Replay(await _started(sandbox, again, f"{key}:anew"), None)
    async with released_unless_given(replay.sandbox.rollout, ReplayDiverged, ReplayStopped):
        record = await sandbox.rollout.remember()
        await _Replaying(replay, sandbox, record, diverged, not_idempotent).run(steps)
    replay.sandbox.steps.follow(sandbox.steps)
    return replay


async def _started(sandbox: "Sandbox", spec: RolloutSpec, key: str) -> "Sandbox":
    rollout = await sandbox.rollout.start(spec, key)
    async with released_unless_given(rollout):
        async for each in rollout.ready():
            return each
    raise AssertionError("a rollout of one has one sandbox")


class _Replaying:
    def __init__(self, replay: Replay, sandbox: "Sandbox", record: Record, diverged: str, not_idempotent: str) -> None:
        self._replay = replay
        self._record = record
        self._old = sandbox
        self._diverged = diverged
        self._not_idempotent = not_idempotent

    async def run(self, steps: list[Told]) -> None:
        """Do the steps again in their order, and side by side what was done side by side."""
        under_way: dict[tuple[int, int], asyncio.Task[None]] = {}
        try:
            for told in steps:
                if told.refused or told.what not in _DONE_AGAIN:
                    continue
                attempt, _ = told.place
                beside = {(attempt, number) for number in ranges.indices(told.step.beside)}
                for place in [place for place in under_way if place not in beside]:
                    await under_way.pop(place)
                if not told.step.idempotent:
                    await self._stop_at(told)
                    continue
                under_way[told.place] = asyncio.create_task(self._again(told))
            for task in under_way.values():
                await task
        finally:
            for task in under_way.values():
                task.cancel()
            await asyncio.gather(*under_way.values(), return_exceptions=True)

    async def _stop_at(self, told: Told) -> None:
        step = step_of(told.id)
        if self._not_idempotent != "recorded":
            why = "it is marked idempotent=False, and is not carried out again"
            what = described(await self._record.answer(told))
            raise ReplayStopped(self._old.name, step, what, why, self._replay)
        self._replay.recorded.append(step)

    async def _again(self, told: Told) -> None:
        sandbox, step = self._replay.sandbox, step_of(told.id)
        before = await self._record.answer(told)
        make, within_s = await self._request(before)
        what = described(before)
        answer = await sandbox.ask(make, within_s, f"{what}, done again,", step)
        self._replay.replayed += 1
        if _essence(answer) == _essence(before) or _cut_short(before):
            return
        divergence = Divergence(step, what, _outcome(before), _outcome(answer))
        self._replay.divergences.append(divergence)
        if self._diverged == "raise":
            raise ReplayDiverged(self._old.name, divergence, self._replay)

    async def _request(self, before: Answer) -> "tuple[Callable[[Head], Asked], float | None]":
        """Return what makes the same request to the new sandbox, and how long it may take."""
        match await self._filled(before):
            case CommandFinished(command=command, result=result):
                grace_s = self._old.rollout.link.grace_s
                if result.given_up:  # else it might never end
                    command = msgspec.structs.replace(command, timeout_ms=max(result.duration_us // 1000, 1))
                within_s = command.timeout_ms / 1000 + grace_s if command.timeout_ms else None
                return lambda head: RunCommand(*head, command), within_s
            case FileWritten(path=path, data=data, offset=offset, mode=mode):
                return lambda head: WriteFile(*head, path, data, offset, mode), FILE_S
            case FileManaged(op=op, path=path, to=to, recursive=recursive):
                return lambda head: ManageFile(*head, op, path, to, recursive), FILE_S
            case FileRead(path=path, offset=offset):
                return lambda head: ReadFile(*head, path, offset), FILE_S
        asked = await request(self._old.rollout.link, before)
        if not isinstance(asked, RollBack):
            raise self._no_input(before)
        snapshot = await sealed(self._old.rollout.link, asked.snapshot)
        return lambda head: RollBack(*head, snapshot), TIMEOUT_S

    async def _filled(self, before: Answer) -> Answer:
        """Return what is told with the input it was given, however large. Raises ReplayStopped."""
        answer = await filled(self._old.rollout.link, before)
        content = getattr(answer, "stdin", None) or getattr(answer, "content", None)
        given = answer.command.stdin if isinstance(answer, CommandFinished) else getattr(answer, "data", b"")
        if content is not None and blob_of(given) != content:
            raise self._no_input(before)
        return answer

    def _no_input(self, before: Answer) -> ReplayStopped:
        why = f"its input is in the log of executor {before.step.executor} no longer"
        return ReplayStopped(self._old.name, step_of(before.id), described(before), why, self._replay)


def _cut_short(before: Answer) -> bool:
    """Return whether nobody waited for a command's end: how far it had come by then was chance."""
    return isinstance(before, CommandFinished) and before.result.given_up


def _essence(answer: Answer) -> object:
    match answer:
        case CommandFinished(result=r):
            return (r.exit_code, r.stdout, r.stderr, r.timed_out, r.stdout_blob, r.stderr_blob)
        case FileRead():
            return (answer.data, answer.eof)
        case FileWritten():
            return answer.size
        case FileManaged(entries=entries, more=more):
            # Which of many entries are told is chance.
            return (more, () if more else tuple(map(_lasting, entries)))
        case CommandRefused():
            return (answer.code, answer.detail)
    return type(answer)


def _lasting(entry: FileEntry) -> tuple[str, str, int, int]:
    """Return what of a file is the same when all is done again: not its times, nor how large its directory is kept."""
    return (entry.name, entry.kind, 0 if entry.kind == "directory" else entry.size, entry.mode)


def _outcome(answer: Answer) -> Outcome:
    match answer:
        case CommandFinished(result=result):
            return CommandResult.of(result)
        case FileRead(data=data):
            return data
        case FileWritten(size=size):
            return size
        case FileManaged(op=op, entries=entries, more=more) if not op.changes:
            shown = [f"{entry.name} ({entry.kind}, {entry.size} bytes, {entry.mode:o})" for entry in entries]
            return ", ".join(shown) + (", and more" if more else "") or "nothing"
        case CommandRefused():
            return f"{answer.code}: {answer.detail}"
    return described(answer)
