"""A rollout in its trainer's hands."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn

from shoal.client.belonging import Live
from shoal.client.errors import BadRequest, PlatformTimeout, QueueFull, Rejected, RolloutEnded, ShoalError, Timeout
from shoal.client.feed import Feed
from shoal.client.fold import News, Ready, RolloutFold
from shoal.client.link import Link
from shoal.client.opening import noting
from shoal.client.record import Record, recorded
from shoal.client.requests import patience
from shoal.client.results import RolloutStatus, RolloutSummary, SandboxOutcome
from shoal.client.sandbox import Sandbox
from shoal.client.steps import Policy
from shoal.machine import ranges
from shoal.wire import subjects
from shoal.wire.messages import (
    AnyMessage,
    CommandFinished,
    EndReason,
    OnLost,
    RolloutCancelled,
    RolloutReleased,
    RolloutSpec,
    SandboxesWanted,
)

_NEVER: Final = (EndReason.TIMED_OUT, EndReason.DEADLINE, EndReason.CANCELLED)
"""How those end that never took a command, because nobody waits for them any more."""


class Rollout(Live):
    """A group of sandboxes. As a context manager it releases what is left of them."""

    def __init__(
        self,
        link: Link,
        fold: RolloutFold,
        start: "Callable[[RolloutSpec, str, str], Awaitable[Rollout]]",
        record: Record | None = None,
        policy: Policy | None = None,
    ) -> None:
        """`start` another rollout: a spec, its run, what it is called there. `policy`: of a resumed run."""
        self.link = link
        self.spec = fold.spec
        self.record = record
        self.policy = policy
        self._start = start
        self.id = fold.rollout
        self.tenant = fold.tenant
        self.run = fold.run
        self.n = fold.spec.n
        self.cell = subjects.cell_of(self.id, link.cells)
        self._fold = fold
        self._live: dict[int, Sandbox] = {}
        self._arrived: deque[Sandbox] = deque()
        self._missing = 0
        self._released = False
        self._failure: ShoalError | None = None
        self._feed: Feed | None = None
        self._remembering = asyncio.Lock()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Rollout {self.id}: {self._fold.status().state}>"

    if not TYPE_CHECKING:  # whoever checks types hears that it cannot be

        def __aiter__(self) -> NoReturn:
            raise TypeError("write `async for ... in rollout.ready()`, or outcomes(): a rollout itself is no list")

    async def __aenter__(self) -> "Rollout":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with noting(error, f"rollout {self.id} is not released"):
            await self._release(given_up=kind is None)  # a trainer that is ended has given nothing up

    async def ready(self) -> AsyncGenerator[Sandbox, None]:
        """Yield each sandbox as soon as it takes commands; end when every one was yielded or released.

        A sandbox the platform lost before it was ready comes out, too, as one whose operations raise SandboxLost
        (`sandbox.lost` tells): n sandboxes go in, n come out. One that is restarted after a loss comes out anew; call
        ready() again for those that were lost after it ended. With on_lost="resume" the handle itself goes on, and no
        other comes out. Each comes out once, however many iterate.

        Raises Rejected; PlatformTimeout when the rollout's time was up, and RolloutEnded when it was cancelled, before
        all were ready; BadRequest for a rollout with commands, whose sandboxes only have outcomes.
        """
        if self._fold.spec.commands:
            raise BadRequest("ready", "commands travel with this rollout: iterate over outcomes() instead")
        ledger = self._fold.ledger
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            settled = ledger.live == ledger.ready_count() + ledger.asleep_count()
            if self._fold.rejected is None and settled and not self._doubtful():
                break
            self._raise_failure()
            await self._change()
        if self._missing:
            state = self._fold.status().state
            if state == "timed_out" or any(reason is EndReason.TIMED_OUT for reason, _ in ledger.counts()):
                raise PlatformTimeout(
                    f"the time of rollout {self.id} was up while {self._missing} of its {self.n} sandboxes were not"
                    " ready; ask for a longer timeout=, or for fewer"
                )
            raise RolloutEnded(self.id, state if state != "running" else "cancelled", self._missing)

    async def outcomes(self) -> AsyncGenerator[SandboxOutcome, None]:
        """Yield how each sandbox ended, as it ends, each exactly once; every iteration begins with the first.

        A sandbox that the platform lost has an outcome with `infrastructure`. Raises Rejected.
        """
        position = 0
        while True:
            while position < len(self._fold.outcomes):
                yield self._fold.outcomes[position]
                position += 1
            if self._fold.ledger.concluded:
                return
            self._raise_failure()
            await self._change()

    async def wait(self, timeout: float | str | None = None) -> RolloutSummary:  # noqa: ASYNC109 - the sync face has no other
        """Wait until the cluster has concluded the rollout; for one without commands, that is once it is released.

        timeout: seconds, or such as "10m". Raises Rejected; Timeout when that is over, which ends nothing.
        """
        within = patience(timeout, "timeout")
        try:
            async with asyncio.timeout(within):
                while self._fold.concluded is None:
                    self._raise_failure()
                    await self._change()
        except ShoalError:  # some are TimeoutErrors, too
            raise
        except TimeoutError as error:
            raise Timeout(
                f"rollout {self.id} has not concluded within {within:g} s; wait longer, or release() it"
            ) from error
        return self._fold.summary()

    def status(self) -> RolloutStatus:
        """Return the rollout as it is now, as far as this client has heard."""
        return self._fold.status()

    @property
    def failures(self) -> list[SandboxOutcome]:
        """The sandboxes the platform lost for good so far."""
        return [outcome for outcome in self._fold.outcomes if outcome.infrastructure]

    async def release(self) -> None:
        """Give back all its sandboxes, and those still waiting. Idempotent."""
        await self._release()

    async def _release(self, *, given_up: bool = True) -> None:
        if self._released or self._fold.over:
            return
        self._released = True
        try:
            await self._say(RolloutReleased(self.id, ranges.whole(self.n)), "released", given_up=given_up)
        except BaseException:
            self._released = False  # it can be asked again
            raise
        for sandbox in list(self._live.values()):
            sandbox.ended_by(EndReason.RELEASED)

    async def cancel(self) -> None:
        """Stop it, whatever it is doing; its sandboxes end as cancelled. Idempotent."""
        if not self._fold.over:
            await self._say(RolloutCancelled(self.id, "client"), "cancelled")

    async def start(self, spec: RolloutSpec, key: str) -> "Rollout":
        """Start another rollout of the same run; in one that can be resumed, the one that is called so there."""
        return await self._start(spec, self.run, key)

    async def remember(self) -> Record:
        """Return what the trajectory says of this rollout, read to its end. Raises a ShoalError."""
        async with self._remembering:
            if self._failure is not None:
                raise self._failure.with_traceback(None)  # what it knows would stay as it is
            if self.record is None:
                self.record = await recorded(self.link, self._fold)
        return self.record

    # --- the connection's side

    def handle(self, message: AnyMessage, time_ms: int) -> None:
        """Take a message of the rollout log."""
        self._apply(self._fold.handle(message, time_ms))
        if self._fold.concluded is not None or self._fold.rejected is not None:
            self.link.leave(self.id, self)
            if self.record is not None:
                self.link.tell_no_more(self.record)
            if self._feed is not None:
                self.link.finish(self._feed)
                self._feed = None
        self._change_now()

    def answered(self, message: CommandFinished, time_ms: int) -> None:
        """Take note of a command that is done."""
        self._fold.note_command(message.index, message.attempt, time_ms)
        sandbox = self._live.get(message.index)
        if sandbox is not None and sandbox.attempt == message.attempt and sandbox.first_command_ms is None:
            sandbox.first_command_ms = self._fold.since_submitted(time_ms)

    def broken(self, error: ShoalError) -> None:
        """Take note that nothing more will come."""
        self._failure = error
        for sandbox in self._live.values():
            sandbox.presence.broken(error)
        self._change_now()

    def catch_up(self) -> None:
        """Take over what was folded before: the sandboxes that live, and those that ended.

        Where what was done in them is known, too, all of them come out of `ready()` once more.
        """
        there = list(self._fold.where.values()) if self.record is None else self._fold.came()
        self._apply(News(there, list(self._fold.outcomes)))
        for index, sandbox in self._live.items():
            if index in self._fold.kept:
                sandbox.presence.kept(*self._fold.kept[index])

    async def follow(self, after: int) -> None:
        """Hear what the log says of it after a sequence, by a reader of its own, which ends with it."""
        self._feed = await self.link.follow_from(self.cell, self.tenant, self.run, self.id, after, self)

    async def first_word(self, within_s: float) -> None:
        """Wait until the cluster has said something about it, or the time is up. Raises Rejected."""
        try:
            async with asyncio.timeout(within_s):
                while not self._fold.heard:
                    self._raise_failure()
                    await self._change()
        except TimeoutError:
            return  # it is stored, and the scheduler will come to it
        if self._fold.rejected is not None:
            self._raise_failure()

    def after_loss(self, index: int, reason: EndReason) -> str:
        """Return what can be done about a sandbox that is lost for good; empty where that is what always can."""
        starts, most = self._fold.ledger.starts(index), self.spec.max_attempts
        if starts >= most and (self.spec.on_lost is not OnLost.FAIL or reason is EndReason.START_FAILED):
            again = "" if reason is EndReason.START_FAILED else "; `await sandbox.resume()` brings it back"
            often = "once" if starts == 1 else f"{starts} times"
            return f"it was started {often}, the most that max_attempts= allows: retries= allows more{again}"
        return "" if self.spec.on_lost is OnLost.FAIL else "ask for another"

    async def want(self, index: int, attempt: int) -> None:
        """Ask for a sandbox that sleeps."""
        message = SandboxesWanted(self.id, ((index, 1),))
        await self.link.publish(self._request(), message, f"{self.id}:wanted:{index}:{attempt}")

    async def release_one(self, index: int) -> None:
        """Give one sandbox back."""
        if self._released or self._fold.over:
            return
        await self._say(RolloutReleased(self.id, ((index, 1),)), f"released:{index}")

    async def _say(self, message: AnyMessage, what: str, *, given_up: bool = True) -> None:
        if given_up and self.policy is not None:  # what else is released is no part of a run that can be resumed
            await self.link.given_up.tell()
        await self.link.publish(self._request(), message, f"{self.id}:{what}")

    def _request(self) -> str:
        return subjects.rollout_request(self.cell, self.tenant, self.run)

    def _apply(self, news: News) -> None:
        for attempt, where in news.slept:
            if where.index in self._live:
                self._live[where.index].presence.slept(attempt, self.link.grace_s, logged=True)
        for index, attempt, steps in news.kept:
            if index in self._live:
                self._live[index].presence.kept(attempt, steps)
        for where in news.ready:
            known = self._live.get(where.index)
            if known is not None and known.presence.away:
                known.presence.back(where)
                continue
            sandbox = Sandbox(self, where)
            sandbox.steps.given_up = {(step.id, step.turn): step for step in self._fold.given_up.get(where.index, ())}
            sandbox.ready_ms = self._fold.since_submitted(where.time_ms)
            self._live[where.index] = sandbox
            self._arrived.append(sandbox)
            if self._released:
                sandbox.ended_by(EndReason.RELEASED)
        for index, reason, detail in news.again:
            lost = self._live.get(index)
            if lost is None:
                continue
            if lost.presence.away or (self.spec.on_lost is OnLost.RESUME and lost.ended is None):
                lost.presence.lost(reason, detail)
            else:
                del self._live[index]
                lost.ended_by(reason, detail, restarting=True)
        if self._live or not self._fold.spec.commands:
            for outcome in news.ended:
                self._ended(outcome)
        else:  # of jobs that nobody had a sandbox of
            self._missing += sum([outcome.reason in _NEVER or self._overdue(outcome) for outcome in news.ended])

    def _overdue(self, outcome: SandboxOutcome) -> bool:
        """Whether a sandbox was not started in all of its rollout's time, rather than until its submit deadline."""
        return outcome.reason is EndReason.NOT_STARTED and self._fold.concluded is not None

    def _ended(self, outcome: SandboxOutcome) -> None:
        sandbox = self._live.pop(outcome.index, None)
        if sandbox is not None:
            sandbox.ended_by(outcome.reason, outcome.detail)
        elif outcome.reason in _NEVER or self._overdue(outcome):
            self._missing += 1
        elif outcome.reason is not EndReason.RELEASED and not self._fold.spec.commands:
            where = Ready(outcome.index, outcome.attempt, outcome.node, "", outcome.isolation, 0)
            never = Sandbox(self, where)
            never.ended_by(outcome.reason, outcome.detail)
            self._arrived.append(never)

    def _doubtful(self) -> bool:
        """Return whether a command has told of a loss of which the log has not: it may be about to start again."""
        return any(sandbox.ended is not None and sandbox.ended.lost for sandbox in self._live.values())

    def _raise_failure(self) -> None:
        rejected = self._fold.rejected
        if rejected is not None:
            if rejected.retry_after_ms:
                raise QueueFull(self.id, rejected.code, rejected.detail, rejected.retry_after_ms / 1000)
            raise Rejected(self.id, rejected.code, rejected.detail)
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    async def _change(self) -> None:
        self.link.check()
        await self._changed.wait()

    def _change_now(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
