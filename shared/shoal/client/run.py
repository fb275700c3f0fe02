"""A run that goes on where it was when its trainer died: each rollout by its key, each step by its number."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Unpack

from shoal.bus.protocol import BusError
from shoal.client import listing, trajectory
from shoal.client.belonging import Live
from shoal.client.catalogue import Catalogued
from shoal.client.choices import Diverged, OnLost, Undone
from shoal.client.diverging import TrajectoryDiverged
from shoal.client.errors import BadRequest
from shoal.client.feed import decoded, history
from shoal.client.fold import RolloutFold
from shoal.client.ids import id_of
from shoal.client.link import Link
from shoal.client.opening import Opening
from shoal.client.record import recorded
from shoal.client.requests import (
    ROLLOUT,
    CommandLike,
    FileLike,
    Resources,
    check_size,
    rollout_spec,
    text,
    token,
)
from shoal.client.results import RolloutInfo
from shoal.client.rollout import Rollout
from shoal.client.rows import TrajectoryStep
from shoal.client.scheduling import Scheduling
from shoal.client.snapshots import Snapshot
from shoal.client.starting import FIRST_WORD_S, submit
from shoal.client.steps import Policy, shortened
from shoal.client.trajectory import Progress
from shoal.wire import streams, subjects
from shoal.wire.messages import RolloutSpec, RolloutSubmitted


class _Entered(Opening[Rollout]):
    """A rollout that is entered with `async with`. An exception that passes leaves it, to be resumed."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await super().__aexit__(kind, error, trace)


class Run(Live):
    """A run of the tenant's, by its name. Made by `Cluster.resume`.

    Whoever resumes it gets its rollouts as they are, with everything already done: what is asked of a sandbox in the
    same order as before is answered from the log, until that has nothing more; from there on it is done. What was given
    up (`asyncio.wait_for`, `asyncio.timeout`, `task.cancel()`) before the trainer went on has no answer: it waits until
    it is given up again.
    """

    def __init__(self, link: Link, name: str, policy: Policy) -> None:
        self._link = link
        self._policy = policy
        self._requests: dict[int, _Requests] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self.name = name

    def __repr__(self) -> str:
        return f"<Run {self.name}>"

    def rollout(
        self,
        template: str | Snapshot,
        n: int | None = None,
        *,
        key: str,
        timeout: float | str | None = None,
        resources: Resources | None = None,
        command: CommandLike | None = None,
        commands: Sequence[CommandLike] | None = None,
        files: Mapping[str, FileLike] | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        on_lost: OnLost | None = None,
        max_attempts: int = 3,
        priority: int = 0,
        isolation: str = "",
        checkpoint_every: float | str | None = None,
        checkpoint_commands: int = 0,
        warm: str = "",
        idle_after: float | str | None = None,
        **scheduling: Unpack[Scheduling],
    ) -> Opening[Rollout]:
        """Return the rollout that this run calls `key`: the one that was submitted, or else one that is submitted now.

        It is submitted once, whoever asks and however often. What else is taken is as in `Cluster.rollout`, and has to
        be the same each time. `ready()` gives all its sandboxes in the order in which they were ready, those that have
        ended, too. Entered with `async with` it is released, unless an exception passes: then it stays, to be resumed.

        Raises TrajectoryDiverged where it was submitted as something else; else as `Cluster.rollout`.
        """

        async def open() -> Rollout:
            spec = rollout_spec(
                template, n, timeout=timeout, resources=resources, command=command, commands=commands, files=files,
                env=env, user=user, on_lost=on_lost, max_attempts=max_attempts, priority=priority, isolation=isolation,
                checkpoint_every=checkpoint_every, checkpoint_commands=checkpoint_commands, warm=warm,
                idle_after=idle_after, **scheduling,
            )  # fmt: skip
            return await self._called(spec, self.name, key)

        return _Entered(open, Rollout.release)

    async def attach(self, rollout_id: str) -> Rollout:
        """Return a rollout of this run by its id, with everything already done. Raises BadRequest for no such."""
        async with self._link.opening(text(rollout_id, "rollout", ROLLOUT)):
            known = self._known(rollout_id)
            if known is not None:
                return known
            found = await self._find(rollout_id)
            if found is None:
                problem = f"run {self.name} has no rollout {rollout_id!r} in the log; run.rollouts() lists what is"
                raise BadRequest("rollout", problem)
            return await self._resumed(*found)

    async def rollouts(self) -> list[RolloutInfo]:
        """Return all rollouts of this run that the log has, oldest first."""
        link = self._link
        try:
            return await listing.rollouts(link.bus, link.cells, link.tenant, self.name, None)
        except BusError as error:
            raise link.explained(error) from error

    async def close(self) -> None:
        """Leave it. What runs in the cluster goes on."""

    # ---

    async def _called(self, spec: RolloutSpec, run: str, key: str) -> Rollout:
        async with self._opening.setdefault(key, asyncio.Lock()):  # whoever asks at the same time gets the same
            return await self._open(spec, run, key)

    async def _open(self, spec: RolloutSpec, run: str, key: str) -> Rollout:
        await self._link.given_up.tell()
        retry = 0
        while True:
            id = id_of(self._link.tenant, run, key, retry)
            async with self._link.opening(id):
                rollout = await self._admitted(id, spec, run, key)
            if rollout is not None:
                await rollout.first_word(FIRST_WORD_S)
                return rollout
            retry += 1  # what was not admitted may be now, but only under another id

    async def _admitted(self, id: str, spec: RolloutSpec, run: str, key: str) -> Rollout | None:
        """Return a rollout of this id, submitted now if it never was; None: it was, and not admitted."""
        known = self._known(id)
        if known is not None:
            _same_spec(key, known.spec, spec)
            return known
        found = await self._find(id)
        if found is not None and found[0].rejected is not None:
            return None
        if found is None:
            request = RolloutSubmitted(id, self._link.tenant, run, spec, key)
            await submit(self._link, request, check_size(request))
            found = await self._find(id)  # as if it had been there: who submitted it first does not matter
            assert found is not None
        _same_spec(key, found[0].spec, spec)
        return await self._resumed(*found)

    def _known(self, rollout: str) -> Rollout | None:
        """Return a handle that knows everything already done, if there is one."""
        them = [each for each in self._link.followers(rollout) if isinstance(each, Rollout)]
        return next((each for each in them if each.policy is not None), None)

    async def _find(self, rollout: str) -> tuple[RolloutFold, int] | None:
        """Return a rollout of this run, folded, and up to which sequence."""
        cell = subjects.cell_of(rollout, self._link.cells)
        requests = self._requests.setdefault(cell, _Requests(self._link, cell, self.name))
        try:
            return await requests.fold(rollout)
        except BusError as error:
            raise self._link.explained(error) from error

    async def _resumed(self, fold: RolloutFold, last: int) -> Rollout:
        link = self._link
        record = None if fold.spec.commands else await recorded(link, fold)
        rollout = Rollout(link, fold, self._called, record, self._policy)
        rollout.catch_up()
        if fold.concluded is None and fold.rejected is None:
            try:
                await rollout.follow(last)
            except BaseException:
                if record is not None:
                    link.tell_no_more(record)
                raise
        return rollout


class _Requests:
    """Where in a cell's log the rollouts of a run were submitted: each is read from there on."""

    def __init__(self, link: Link, cell: int, run: str) -> None:
        self._link = link
        self._stream = streams.rollout(cell).name
        self._subject = subjects.rollout_request(cell, link.tenant, run)
        owner = (cell, link.tenant, run)
        self._rest = [subjects.rollout_sandbox(*owner), subjects.rollout_outcome(*owner)]
        self._at: dict[str, int] = {}
        self._read = 0

    async def fold(self, rollout: str) -> tuple[RolloutFold, int] | None:
        """Return a rollout folded from the log, and up to which sequence; None where it was never submitted."""
        bus = self._link.bus
        last = await bus.last_sequence(self._stream)
        async for delivery in history(bus, self._stream, after=self._read, until=last, only=[self._subject]):
            message = decoded(delivery)
            if isinstance(message, RolloutSubmitted):
                self._at.setdefault(message.rollout, delivery.sequence)
        self._read = max(self._read, last)
        if rollout not in self._at:
            return None
        fold: RolloutFold | None = None
        only = [self._subject, *self._rest]
        async with aclosing(history(bus, self._stream, after=self._at[rollout] - 1, until=last, only=only)) as found:
            async for delivery in found:
                message = decoded(delivery)
                if fold is None and isinstance(message, RolloutSubmitted) and message.rollout == rollout:
                    fold = RolloutFold(message.rollout, message.tenant, message.run, message.spec)
                if fold is None:
                    continue
                if message is not None:
                    fold.handle(message, delivery.time_ms)
                if fold.concluded is not None or fold.rejected is not None:
                    break
        return None if fold is None else (fold, last)


def _same_spec(key: str, recorded: RolloutSpec, asked: RolloutSpec) -> None:
    names = [name for name in recorded.__struct_fields__ if getattr(recorded, name) != getattr(asked, name)]
    if names:
        was, now = (
            ", ".join(f"{name}={shortened(repr(getattr(spec, name)))}" for name in names) for spec in (recorded, asked)
        )
        raise TrajectoryDiverged("", key, f"a rollout with {was}", f"one with {now}")


class Resumable(Catalogued):
    """A connection from which runs are resumed, and told."""

    def trajectory(
        self, run: str, *, whole: bool = False, progress: Progress | None = None
    ) -> AsyncGenerator[TrajectoryStep, None]:
        """Yield all that was done in the sandboxes of a run, a row for each step, in the order in which steps ended.

        whole: with the inputs and outputs that are too large to be told at once, where they can be fetched. progress:
        called with how many messages of the log were read, and of how many. Raises BadRequest for no such run.
        """
        quiet: Progress = lambda *_: None  # noqa: E731 - that is all of it
        who = (self._link, self._link.tenant, token(run, "run"))
        return trajectory.steps(*who, whole=whole, progress=progress or quiet)

    async def story(self, sandbox: str) -> AsyncGenerator[TrajectoryStep, None]:
        """Yield the story of one sandbox: its steps, and what it was in between. Raises BadRequest for no such."""
        rollout, _, index = text(sandbox, "sandbox", "a sandbox's name, such as sandbox.name").rpartition("-")
        if not rollout or not index.isdigit():
            raise BadRequest("sandbox", f"{sandbox!r} is no sandbox; write ROLLOUT-INDEX, such as r7k2m4n6p8q2s4t6-0")
        fold = await self._folded(rollout)
        if int(index) >= fold.spec.n:
            raise BadRequest("rollout", f"rollout {rollout} has no sandbox {index}: it has {fold.spec.n}")
        told = trajectory.steps(self._link, fold.tenant, fold.run, only=sandbox, states=True)
        async with aclosing(told):
            async for row in told:
                yield row

    async def _folded(self, rollout: str) -> RolloutFold:
        """Return a rollout of the tenant's. Raises BadRequest when it is not there."""
        link = self._link
        try:
            found = await listing.find(link.bus, subjects.cell_of(rollout, link.cells), rollout, link.tenant)
        except BusError as error:
            raise link.explained(error) from error
        if found is None:
            problem = f"tenant {link.tenant} has no rollout {rollout!r} in the log; `shoal ls` lists what there is"
            raise BadRequest("rollout", problem)
        return found[0]

    def resume(self, run: str, *, diverged: Diverged = "raise", not_idempotent: Undone = "raise") -> Opening[Run]:
        """Go on with a run, or begin it: `async with cluster.resume("grpo-7") as run`.

        In a trainer that was restarted, whatever it lost, the same program gets the same rollouts by their keys, and
        the recorded result of every step that was done before; the first that was not is done, and so on from there.
        diverged: what if a step is asked to be something else than it was: "raise" TrajectoryDiverged, or go on "live"
        from there. not_idempotent: what if a step was undone by a loss that must not be done twice: "raise"
        NotIdempotent, or take what is "recorded" of it.

        A step that was given up waits to be given up again, and warns in the log `shoal.client` when that takes much
        longer than the first time; with diverged="live" it then gets what came of it.
        """
        policy, name = Policy(diverged, not_idempotent), token(run, "run")

        async def open() -> Run:
            return Run(self._link, name, policy)

        return Opening(open, Run.close)
