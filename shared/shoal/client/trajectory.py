"""The trajectory of a whole run, read from the logs as rows: once to see how it came out, once more to tell it.

What is kept meanwhile grows with the sandboxes and their snapshots, and by a byte for each step; never with what steps
returned.
"""

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from shoal.bus.protocol import BusError
from shoal.client import inputs, outputs
from shoal.client.errors import BadRequest
from shoal.client.feed import decoded, history
from shoal.client.fold import RolloutFold
from shoal.client.link import Link
from shoal.client.rows import State, TrajectoryStep, job_of, row_of, state_of
from shoal.client.story import PASSING, Story, order
from shoal.machine import ranges
from shoal.wire import streams, subjects
from shoal.wire.asked import Answer
from shoal.wire.messages import (
    AnyMessage,
    CommandFinished,
    CommandRefused,
    EndReason,
    RolloutSubmitted,
    SandboxesBegan,
    SandboxesReady,
    SandboxSaved,
    Snapshot,
)

Progress = Callable[[int, int], None]
"""Called with how many messages were read, and of how many, as far as that is known."""


@dataclass(slots=True)
class _Sandbox:
    """What is known of a sandbox before it is told: how its story went, and how many rows it has."""

    story: Story | None = None  # where it has more than one attempt, or a snapshot
    seen: dict[int, bytearray] = field(default_factory=dict)  # by attempt: whether a step had its answer
    last: int = 0  # attempt
    rows: int = 0
    end: EndReason | None = None

    def news(self, answer: Answer) -> bool:
        """Return whether this is told for the first time; repeated answers are one."""
        seen, number = self.seen.setdefault(answer.attempt, bytearray()), answer.step.number
        if len(seen) <= number:
            seen.extend(bytes(max(number + 1, 2 * len(seen)) - len(seen)))
        told, seen[number] = seen[number], 1
        return not told

    def note(self, message: State) -> None:
        """Take what is told of its attempts."""
        self.last = max(self.last, message.attempt, key=order)
        if isinstance(message, SandboxSaved):  # all that matters of a snapshot is which one it is
            message = msgspec.structs.replace(message, snapshot=Snapshot(message.snapshot.digest, ""))
        if self.story is None and isinstance(message, SandboxesBegan) and not order(message.attempt):
            return
        self.story = self.story or Story()
        self.story.take(message, 0)

    def undone(self, answer: Answer) -> bool:
        """Return whether a step is undone."""
        return self.story is not None and not self.story.holds(self.last, answer.attempt, answer.step.number)


@dataclass(slots=True)
class _Rollout:
    request: RolloutSubmitted
    sandboxes: dict[int, _Sandbox] = field(default_factory=dict)

    def sandbox(self, index: int) -> _Sandbox:
        return self.sandboxes.setdefault(index, _Sandbox())


class _Reading:
    """One cell's logs of one run."""

    def __init__(self, link: Link, cell: int, tenant: str, run: str, only: str, progress: Progress) -> None:
        self.link, self.cell, self.tenant, self.run = link, cell, tenant, run
        self._bus = link.bus
        self._only, _, at = only.rpartition("-")
        self._index = int(at) if only else None
        self._progress = progress
        self._rollout_log = streams.rollout(cell).name
        self._trajectory = streams.trajectory(cell).name
        owner = (cell, tenant, run)
        self._requests = subjects.rollout_request(*owner)
        self._reports = [subjects.rollout_sandbox(*owner), subjects.rollout_outcome(*owner)]
        self._subject = subjects.trajectory(*owner)
        self._rollouts: dict[str, _Rollout] = {}
        self._ready: deque[tuple[SandboxesReady, int]] = deque()
        self._since_ms: int | None = None
        self.found = False

    async def rows(self, *, states: bool, whole: bool) -> AsyncGenerator[TrajectoryStep, None]:
        """Yield the jobs' steps, then the others', in the order in which they came to their end."""
        async for row in self._jobs(states):
            yield row
        if self._rollouts:
            async for message, _ in self._read(0):
                self._outline(message)
            for rollout in self._rollouts.values():
                for sandbox in rollout.sandboxes.values():
                    sandbox.seen.clear()
            async for message, time_ms in self._read(1):
                for row in self._first(time_ms):
                    yield row
                for row in self._told(await self._whole(message) if whole else message, time_ms, states):
                    yield row
            for row in self._first(None):
                yield row

    async def _whole(self, message: AnyMessage) -> AnyMessage:
        if not isinstance(message, Answer):
            return message
        answer = await inputs.filled(self.link, message)
        return await outputs.filled(self, answer) if isinstance(answer, CommandFinished) else answer

    async def _jobs(self, states: bool) -> AsyncGenerator[TrajectoryStep, None]:
        """Fold the rollouts: yield what their jobs returned, and note how other sandboxes ended."""
        folds: dict[str, tuple[RolloutFold, RolloutSubmitted] | None] = {}
        only = [self._requests, *self._reports]
        async with aclosing(history(self._bus, self._rollout_log, only=only)) as found:
            async for delivery in found:
                message = decoded(delivery)
                if isinstance(message, RolloutSubmitted) and message.rollout not in folds:
                    folds[message.rollout] = self._begun(message, delivery.time_ms)
                known = folds.get(getattr(message, "rollout", ""))
                if known is None or message is None:
                    continue
                fold, request = known
                if states and isinstance(message, SandboxesReady) and message.digest and not request.spec.commands:
                    self._ready.append((message, delivery.time_ms))
                results = {each.index: each.result for each in getattr(message, "results", ())}
                for outcome in fold.handle(message, delivery.time_ms).ended:
                    if self._index not in (None, outcome.index):
                        continue
                    if request.spec.commands:
                        result = results.get(outcome.index) if outcome.result is not None else None
                        yield job_of(request, outcome, result, delivery.time_ms)
                    else:
                        self._rollouts[fold.rollout].sandbox(outcome.index).end = outcome.reason
                fold.outcomes.clear()
                if fold.concluded is not None or fold.rejected is not None:
                    folds[fold.rollout] = None

    def _begun(self, request: RolloutSubmitted, time_ms: int) -> tuple[RolloutFold, RolloutSubmitted] | None:
        if self._only not in ("", request.rollout):
            return None
        self.found = True
        self._since_ms = self._since_ms or time_ms
        if not request.spec.commands:
            bare = msgspec.structs.replace(request.spec, files=())
            self._rollouts[request.rollout] = _Rollout(msgspec.structs.replace(request, spec=bare))
        return RolloutFold(request.rollout, request.tenant, request.run, request.spec), request

    async def _read(self, turn: int) -> AsyncGenerator[tuple[AnyMessage, int], None]:
        last = await self._bus.last_sequence(self._trajectory, self._subject)
        first = await self._bus.first_sequence(self._trajectory)
        total = max(last - first + 1, 0)
        read = history(self._bus, self._trajectory, since_ms=self._since_ms, until=last, only=[self._subject])
        async with aclosing(read) as found:
            async for delivery in found:
                self._progress(turn * total + delivery.sequence - first + 1, 2 * total)
                message = decoded(delivery)
                if message is not None and getattr(message, "rollout", "") in self._rollouts:
                    yield message, delivery.time_ms

    def _outline(self, message: AnyMessage) -> None:
        for _, _, sandbox in self._sandboxes(message):
            if isinstance(message, State):
                sandbox.note(message)
            elif isinstance(message, Answer) and _is_step(message) and sandbox.news(message):
                sandbox.rows += 1
                sandbox.last = max(sandbox.last, message.attempt, key=order)

    def _told(self, message: AnyMessage, time_ms: int, states: bool) -> Iterator[TrajectoryStep]:
        for request, index, sandbox in self._sandboxes(message):
            if isinstance(message, State) and states:
                yield state_of(request, message, index, time_ms)
            elif isinstance(message, Answer) and _is_step(message) and sandbox.news(message):
                row = row_of(request, message, time_ms)
                row.undone = sandbox.undone(message)
                sandbox.rows -= 1
                if not sandbox.rows and sandbox.end is not None:
                    row.end = str(sandbox.end)
                yield row

    def _first(self, until_ms: int | None) -> Iterator[TrajectoryStep]:
        """Yield what sandboxes began as that were ready by then: first attempts, of which the rollouts' log tells."""
        while self._ready and (until_ms is None or self._ready[0][1] <= until_ms):
            message, time_ms = self._ready.popleft()
            for request, index, _ in self._sandboxes(message):
                yield state_of(request, message, index, time_ms)

    def _sandboxes(self, message: AnyMessage) -> Iterator[tuple[RolloutSubmitted, int, _Sandbox]]:
        """Yield those that a message is about, and that are wanted."""
        rollout = self._rollouts[getattr(message, "rollout", "")]
        index = getattr(message, "index", None)
        about = ranges.indices(message.indices) if isinstance(message, SandboxesBegan | SandboxesReady) else (index,)
        for each in about:
            if isinstance(each, int) and self._index in (None, each):
                yield rollout.request, each, rollout.sandbox(each)


def _is_step(answer: Answer) -> bool:
    passing = isinstance(answer, CommandRefused) and answer.code in PASSING
    return bool(answer.step.number) and not passing


async def steps(
    link: Link,
    tenant: str,
    run: str,
    *,
    only: str = "",
    states: bool = False,
    whole: bool = False,
    progress: Progress = lambda *_: None,
) -> AsyncGenerator[TrajectoryStep, None]:
    """Yield the steps of a run, or of `only` one of its sandboxes.

    With `states` also what else is told of them; `whole`: with inputs and outputs that are too large to be told at
    once, where they can be fetched. Raises BadRequest where the log has nothing of the run.
    """
    found = False
    try:
        for cell in range(link.cells):
            reading = _Reading(link, cell, tenant, run, only, progress)
            async with aclosing(reading.rows(states=states, whole=whole)) as rows:
                async for row in rows:
                    yield row
            found = found or reading.found
    except BusError as error:
        raise link.explained(error) from error
    if not found:
        problem = f"tenant {tenant} has no rollout of run {run!r} in the log; `shoal ls` lists what there is"
        raise BadRequest("rollout", problem)
