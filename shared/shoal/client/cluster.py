"""A trainer's connection to a cluster."""

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Final, Unpack

from shoal.bus.address import servers, shown
from shoal.bus.protocol import Bus, BusError
from shoal.client import dead, listing, mapping, nodes as nodes_, tenants
from shoal.client.choices import OnLost
from shoal.client.dead import DeadLetterInfo, DeadLetterRetry
from shoal.client.errors import BadRequest, Unreachable, without_answer
from shoal.client.fold import RolloutFold
from shoal.client.ids import new_id
from shoal.client.link import ANSWER_GRACE_S, Link
from shoal.client.opening import Opening
from shoal.client.requests import (
    ROLLOUT,
    CommandLike,
    FileLike,
    Resources,
    check_size,
    checked,
    rollout_spec,
    text,
    token,
)
from shoal.client.results import Event, NodeInfo, RolloutInfo, SandboxOutcome
from shoal.client.rollout import Rollout
from shoal.client.run import Resumable
from shoal.client.scheduling import Scheduling
from shoal.client.snapshots import Snapshot
from shoal.client.starting import FIRST_WORD_S, begin, submit
from shoal.wire import streams, subjects
from shoal.wire.messages import Limits, RolloutCancelled, RolloutSpec, RolloutSubmitted
from shoal.wire.quantities import BadValueError, parse_seconds

DEFAULT_URL: Final = "nats://127.0.0.1:4222"
DEFAULT_TENANT: Final = "default"
DEFAULT_RUN: Final = "default"


def connect(
    url: str | None = None,
    *,
    tenant: str | None = None,
    timeout: float = 5.0,
    bus: Bus | None = None,
    answer_grace: float = ANSWER_GRACE_S,
) -> "Opening[Cluster]":
    """Connect to a cluster: `async with connect() as cluster`, or `cluster = await connect()` and `cluster.close()`.

    url: a NATS address, or several separated by commas; without it SHOAL_URL, or nats://127.0.0.1:4222. tenant: on
    whose account; without it SHOAL_TENANT, or "default". timeout: seconds for the first connection; once made, it is
    made again whenever it breaks. answer_grace: seconds an answer may take beyond its command's own timeout. bus: use
    this connection, which is closed with the cluster, instead of making one.

    Raises BadRequest, and Unreachable or NotAllowed, which say what to do.
    """

    async def open() -> Cluster:
        address = url or os.environ.get("SHOAL_URL") or DEFAULT_URL
        if not isinstance(address, str) or not servers(address):
            raise BadRequest(
                "url", f"{shown(str(address))!r} is no broker's address; write nats://HOST:4222, or tls://..."
            )
        who = token(tenant or os.environ.get("SHOAL_TENANT") or DEFAULT_TENANT, "tenant")
        seconds = checked(parse_seconds, timeout, "timeout")
        chosen = bus
        if chosen is None:
            try:
                connecting = (await _jetstream()).JetStreamBus.connect
                chosen = await connecting(address, name=f"shoal-client.{who}", connect_timeout=seconds)
            except BadValueError as error:  # what the environment says of TLS
                raise BadRequest(error.field, error.problem) from error
            except BusError as error:
                raise without_answer(address, error) from error
        try:
            entry = await chosen.get(streams.CLUSTER_BUCKET, "cells")
        except BusError as error:
            await chosen.close()
            raise without_answer(address, error) from error
        except BaseException:
            await chosen.close()
            raise
        if entry is None:
            await chosen.close()
            raise Unreachable(address, "a broker does, but no cluster was ever set up there")
        return Cluster(Link(chosen, shown(address), who, int(entry.value), answer_grace))

    return Opening(open, Cluster.close)


async def _jetstream() -> ModuleType:
    """Import what speaks with a broker: late, for who only reads types, and in a thread: the trainer's loop goes on."""
    return await asyncio.to_thread(import_module, "shoal.bus.jetstream")


class Cluster(Resumable):
    """What a trainer asks of a cluster. Made by `connect`."""

    def __repr__(self) -> str:
        shown = re.sub(r"//[^/@,]*@", "//", self.url)  # who connects, and with what password, is for no log
        return f"<Cluster {shown}, tenant {self.tenant}>"

    @property
    def tenant(self) -> str:
        """On whose account this connection acts."""
        return self._link.tenant

    @property
    def url(self) -> str:
        """The broker's address, without user and password."""
        return self._link.address

    def rollout(
        self,
        template: str | Snapshot,
        n: int | None = None,
        *,
        run: str = DEFAULT_RUN,
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
        """Ask for n sandboxes: `await` it, or enter it with `async with`, which releases them.

        timeout bounds the whole rollout ("10m", or seconds; without it an hour), what it waits for room included: a
        sandbox that was ready for half of it or more ends then as timed_out, one that came later as deadline, which is
        the platform's. What limits the work alone is lifetime, or a command's own timeout. With command (all run it) or
        commands (one each, or one for all) they run it at once and are gone: iterate over `outcomes()`. Without, over
        `ready()`. files are put into each beforehand: path to bytes, str, or a Path on this machine. on_lost: "fail",
        "restart" or "resume" (from its last snapshot) a sandbox the platform lost, at most max_attempts starts; without
        it "restart" where commands travel along, and else "fail". checkpoint_every ("5m") and checkpoint_commands (a
        number) take snapshots by themselves. warm: Python that a node runs once; the interpreter behind
        `sandbox.python` is forked from there. idle_after ("10m"): let a sandbox sleep that nobody used for so long; its
        next command wakes it. isolation: a driver's name, or any. What else is taken says when and where they start:
        see `Scheduling`.

        Returns when the cluster's first word of it has come (two seconds at most: waiting is durable). Raises
        BadRequest before anything is sent, Rejected, Unreachable, StreamFull.
        """

        async def open() -> Rollout:
            spec = rollout_spec(
                template, n, timeout=timeout, resources=resources, command=command, commands=commands, files=files,
                env=env, user=user, on_lost=on_lost, max_attempts=max_attempts, priority=priority, isolation=isolation,
                checkpoint_every=checkpoint_every, checkpoint_commands=checkpoint_commands, warm=warm,
                idle_after=idle_after, **scheduling,
            )  # fmt: skip
            return await self._start(spec, run)

        return Opening(open, Rollout.release)

    async def submit(
        self,
        template: str | Snapshot,
        n: int | None = None,
        *,
        run: str = DEFAULT_RUN,
        timeout: float | str | None = None,  # noqa: ASYNC109 - the rollout's, kept by the cluster
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
        **scheduling: Unpack[Scheduling],
    ) -> str:
        """Ask for sandboxes as `rollout` does; return the rollout's id as soon as the request is stored."""
        spec = rollout_spec(
            template, n, timeout=timeout, resources=resources, command=command, commands=commands, files=files,
            env=env, user=user, on_lost=on_lost, max_attempts=max_attempts, priority=priority, isolation=isolation,
            **scheduling,
        )  # fmt: skip
        request = RolloutSubmitted(new_id(), self.tenant, token(run, "run"), spec)
        await submit(self._link, request, check_size(request))
        return request.rollout

    async def map(
        self,
        template: str | Snapshot,
        commands: Sequence[CommandLike],
        *,
        run: str = DEFAULT_RUN,
        timeout: float | str | None = None,  # noqa: ASYNC109 - the rollout's, kept by the cluster
        command_timeout: float | str | None = None,
        resources: Resources | None = None,
        files: Mapping[str, FileLike] | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        on_lost: OnLost | None = None,
        max_attempts: int = 3,
        priority: int = 0,
        isolation: str = "",
        **scheduling: Unpack[Scheduling],
    ) -> list[SandboxOutcome]:
        """Run each command in a sandbox of its own; return how each ended, in the commands' order.

        timeout bounds all, what they wait for room included: what was ready for less than half of it and has no result
        then ends as deadline, which is the platform's, and other commands as timed_out. command_timeout bounds each
        command, from its start: its end is a verdict, however long it waited. More than fits into one request becomes
        several rollouts; an outcome's `index` is its command's place in `commands` all the same, and `sandbox` its name
        in its own rollout. A sandbox the platform lost for good is an outcome with `infrastructure`, whose `exit_code`
        raises SandboxLost. Raises as `rollout` does; then what was started is released.
        """
        given = mapping.commands_of(commands, command_timeout)

        def spec_of(n: int, part: Sequence[CommandLike]) -> RolloutSpec:
            return rollout_spec(
                template, n, timeout=timeout, resources=resources, commands=part, files=files, env=env, user=user,
                on_lost=on_lost, max_attempts=max_attempts, priority=priority, isolation=isolation, **scheduling,
            )  # fmt: skip

        async def start(spec: RolloutSpec) -> Rollout:
            return await self._start(spec, run, first_word_s=None)

        if not given:
            return []
        base = RolloutSubmitted(new_id(), self.tenant, token(run, "run"), spec_of(1, given[:1]))
        return await mapping.each(given, spec_of, base, start)

    async def attach(self, rollout_id: str, *, run: str | None = None, tenant: str | None = None) -> Rollout:
        """Return a rollout that somebody submitted, as the log has it. Raises BadRequest when it is not there."""
        link = self._link
        text(rollout_id, "rollout", ROLLOUT)
        link.check()
        async with link.opening(rollout_id):
            known = self._known(rollout_id)
            if known is not None:
                return known
            fold, last = await self._find(rollout_id, run, tenant)
            rollout = Rollout(link, fold, self._start)
            rollout.catch_up()
            if fold.concluded is None and fold.rejected is None:
                if not fold.spec.commands:
                    await link.follow_answers(rollout.cell, fold.tenant, fold.run)
                await rollout.follow(last)
            return rollout

    async def cancel(self, rollout_id: str, *, run: str | None = None, tenant: str | None = None) -> None:
        """Stop a rollout, whatever it is doing. Raises BadRequest when it is not there."""
        known = self._known(text(rollout_id, "rollout", ROLLOUT))
        if known is not None:
            await known.cancel()
            return
        fold, _ = await self._find(rollout_id, run, tenant)
        subject = subjects.rollout_request(self._cell(rollout_id), fold.tenant, fold.run)
        await self._link.publish(subject, RolloutCancelled(rollout_id, "client"), f"{rollout_id}:cancelled")

    async def rollouts(self, since: float | str | None = "24h", *, run: str | None = None) -> list[RolloutInfo]:
        """Return this tenant's rollouts submitted in the time given (None: all the log has), oldest first."""
        run = None if run is None else token(run, "run")
        try:
            return await listing.rollouts(self._link.bus, self._link.cells, self.tenant, run, _ago(since))
        except BusError as error:
            raise self._link.explained(error) from error

    async def nodes(self, since: float | str = "2m") -> list[NodeInfo]:
        """Return the nodes whose executors were heard in the time given: alive, silent (for ten seconds), or left.

        This machine's clock is compared with the broker's.
        """
        try:
            return await listing.nodes(self._link.bus, self._link.cells, _ago(since) or 0, time.time_ns() // 1_000_000)
        except BusError as error:
            raise self._link.explained(error) from error

    async def events(
        self, run: str | None = None, *, follow: bool = False, since: float | str | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield the messages of the log, by time: all, or those of one run of this tenant's.

        since: how far back ("1h", or seconds). follow: go on with what comes; without since, begin with that.
        """
        run = None if run is None else token(run, "run")
        found = listing.events(self._link.bus, self._link.cells, self.tenant, run, _ago(since), follow)
        try:
            async for event in found:
                yield event
        except BusError as error:
            raise self._link.explained(error) from error
        finally:
            await found.aclose()

    async def tenants(self) -> list[str]:
        """Return the cluster's tenants; none means that whoever comes is welcome."""
        return await tenants.tenants(self._link)

    async def add_tenant(self, name: str) -> None:
        """Make a tenant. From the first one on, what others submit is rejected."""
        await tenants.add(self._link, token(name, "tenant"))

    async def remove_tenant(self, name: str) -> None:
        """Unmake a tenant: its rollouts go on, and no new one is admitted."""
        await tenants.remove(self._link, token(name, "tenant"))

    async def limits(self) -> dict[str, Limits]:
        """Return what tenants may have, of those that were given limits."""
        return await tenants.limits(self._link)

    async def limit_tenant(self, name: str, limits: Limits) -> None:
        """Say what a tenant may have, from now on. Raises BadRequest."""
        await tenants.limit(self._link, token(name, "tenant"), limits)

    async def drain(self, node: str, *, hibernate: bool = False) -> None:
        """Place nothing more on a node; what can sleep is put to sleep if so wanted. Raises BadRequest."""
        await nodes_.drain(self._link, node, drained=True, hibernate=hibernate)

    async def undrain(self, node: str) -> None:
        """Let a node take sandboxes again. Raises BadRequest."""
        await nodes_.drain(self._link, node, drained=False)

    def dead_letters(
        self, since: float | str | None = None, *, stream: str | None = None, reader: str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[DeadLetterInfo, None]:  # fmt: skip
        """Yield the messages that some reader gave up, oldest first: all, those of the time given, or the last so many.

        stream, reader: only those found there, or given up by it; a name, or a pattern such as "executor.*".
        """
        return dead.letters(self._link, _ago(since), stream, reader, limit)

    async def dead_letter(self, number: int) -> DeadLetterInfo:
        """Return one dead letter. Raises BadRequest when it is not there."""
        return await dead.letter(self._link, number)

    async def retry_dead(self, letter: int | DeadLetterInfo, *, anew: bool = False) -> DeadLetterRetry:
        """Publish a dead letter's message again, where it was found. Nothing else is recorded; the letter stays.

        Retries of a letter within two minutes of the first are one, whoever asks: `duplicate` tells. A later one is a
        new one, and so is one that is `anew`. Raises BadRequest when the letter is not there or was cut.
        """
        return await dead.retry(self._link, letter, anew=anew)

    async def close(self) -> None:
        """Disconnect. What runs in the cluster goes on: release a rollout to end it. Idempotent.

        A connection is its process's and its event loop's: in a process forked from that one it is only forgotten.
        """
        await self._link.close()

    def _known(self, rollout: str) -> Rollout | None:
        return next((each for each in self._link.followers(rollout) if isinstance(each, Rollout)), None)

    def _cell(self, rollout: str) -> int:
        return subjects.cell_of(rollout, self._link.cells)

    async def _start(
        self, spec: RolloutSpec, run: str, key: str = "", first_word_s: float | None = FIRST_WORD_S
    ) -> Rollout:  # fmt: skip
        request = RolloutSubmitted(new_id(), self.tenant, token(run, "run"), spec)
        return await begin(self._link, request, check_size(request), self._start, first_word_s)

    async def _find(self, rollout: str, run: str | None, tenant: str | None) -> tuple[RolloutFold, int]:
        owner = self.tenant if tenant is None else token(tenant, "tenant")
        where = "*" if run is None else token(run, "run")
        try:
            found = await listing.find(self._link.bus, self._cell(rollout), rollout, owner, where)
        except BusError as error:
            raise self._link.explained(error) from error
        if found is None:
            raise BadRequest(
                "rollout", f"tenant {owner} has no rollout {rollout!r} in the log; `shoal ls` lists what there is"
            )
        return found


def _ago(duration: float | str | None) -> int | None:
    return listing.since(None if duration is None else checked(parse_seconds, duration, "since"))
