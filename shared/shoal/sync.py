"""The client without `async`: the same methods, run in the event loop of a background thread.

    with shoal.sync.connect() as cluster:
        with cluster.rollout("host", n=64) as rollout:
            for sandbox in rollout.ready():
                print(sandbox.run("python3 solve.py", timeout=30).stdout)

Every class wraps its asynchronous namesake; what has no `await` there is reached through unchanged. Callbacks such as
`on_output` are called in the background thread, and cannot call the same connection.
"""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from shoal.bus.protocol import Bus
from shoal.client import (
    cluster as cluster_,
    replaying as replaying_,
    rollout as rollout_,
    run as run_,
    sandbox as sandbox_,
)
from shoal.client.choices import Differing, Undone
from shoal.client.diverging import ReplayDiverged, ReplayStopped
from shoal.client.facing import Faced, giving as _giving, iterating as _iterating, plain as _plain
from shoal.client.link import ANSWER_GRACE_S
from shoal.client.opening import noting
from shoal.client.portal import Portal
from shoal.client.replaying import Divergence
from shoal.client.results import RolloutStatus, SandboxOutcome
from shoal.client.snapshots import Snapshot
from shoal.wire.messages import EndReason, RolloutSpec


class Files(Faced):
    """See `shoal.Files`."""

    _inner: sandbox_.Files
    write = _plain(sandbox_.Files.write)
    read = _plain(sandbox_.Files.read)
    read_bytes = _plain(sandbox_.Files.read_bytes)
    list = _plain(sandbox_.Files.list)
    exists = _plain(sandbox_.Files.exists)
    stat = _plain(sandbox_.Files.stat)
    remove = _plain(sandbox_.Files.remove)
    make_dir = _plain(sandbox_.Files.make_dir)
    rename = _plain(sandbox_.Files.rename)


class Sandbox(Faced):
    """See `shoal.Sandbox`."""

    _inner: sandbox_.Sandbox
    run = _plain(sandbox_.Sandbox.run)
    python = _plain(sandbox_.Sandbox.python)
    snapshot = _plain(sandbox_.Sandbox.snapshot)
    rollback = _plain(sandbox_.Sandbox.rollback)
    hibernate = _plain(sandbox_.Sandbox.hibernate)
    release = _plain(sandbox_.Sandbox.release)

    @property
    def name(self) -> str:
        """`<rollout>-<index>`."""
        return self._inner.name

    @property
    def index(self) -> int:
        """Its place in its rollout, from 0."""
        return self._inner.index

    @property
    def isolation(self) -> str:
        """The driver that keeps it apart."""
        return self._inner.isolation

    @property
    def attempt(self) -> int:
        """How often it was started before."""
        return self._inner.attempt

    @property
    def node(self) -> str:
        """Where it runs; empty while it runs nowhere."""
        return self._inner.node

    @property
    def executor(self) -> str:
        """Who takes commands for it; empty while it runs nowhere."""
        return self._inner.executor

    @property
    def asleep(self) -> bool:
        """Whether it sleeps: all of it is kept, it occupies nothing, and its next command wakes it."""
        return self._inner.asleep

    @property
    def ended(self) -> EndReason | None:
        """Why it ended, or None while it lives."""
        return self._inner.ended

    @property
    def lost(self) -> bool:
        """Whether the platform lost it: what happened in it says nothing."""
        return self._inner.lost

    @property
    def ready_ms(self) -> float | None:
        """Ms from submission to readiness, by the broker's clock."""
        return self._inner.ready_ms

    @property
    def first_command_ms(self) -> float | None:
        """Ms from submission to the end of its first command, by the broker's clock."""
        return self._inner.first_command_ms

    def resume(
        self,
        *,
        timeout: float | str | None = None,
        diverged: Differing = "raise",
        not_idempotent: Undone = "raise",
        id: str | None = None,
    ) -> "Replay":
        """Bring it back when it is gone; see `shoal.Sandbox.resume`."""
        work = self._inner.resume(timeout=timeout, diverged=diverged, not_idempotent=not_idempotent, id=id)
        try:
            return Replay(self._portal, self._portal.call(work))
        except (ReplayDiverged, ReplayStopped) as error:
            error.replay = Replay(self._portal, error.replay)  # type: ignore[assignment]  # the face for this caller
            raise

    def fork(self, n: int = 1, *, timeout: float | str | None = None, id: str | None = None) -> "list[Sandbox]":
        """Return n running copies of it; see `shoal.Sandbox.fork`."""
        forks = self._portal.call(self._inner.fork(n, timeout=timeout, id=id))
        return [Sandbox(self._portal, each) for each in forks]

    @property
    def rollout(self) -> "Rollout":
        """The rollout it is of."""
        return Rollout(self._portal, self._inner.rollout)

    @property
    def files(self) -> Files:
        """Its files."""
        return Files(self._portal, self._inner.files)


class Replay(Faced):
    """See `shoal.Replay`."""

    _inner: replaying_.Replay

    @property
    def sandbox(self) -> Sandbox:
        """The new sandbox."""
        return Sandbox(self._portal, self._inner.sandbox)

    @property
    def origin(self) -> Snapshot | None:
        """What it was started from; None: anew."""
        return self._inner.origin

    @property
    def replayed(self) -> int:
        """How many steps were done again."""
        return self._inner.replayed

    @property
    def divergences(self) -> list[Divergence]:
        """The steps that gave something else."""
        return self._inner.divergences

    @property
    def recorded(self) -> list[str]:
        """The steps that were not done again, because they must not be."""
        return self._inner.recorded


class Rollout(Faced):
    """See `shoal.Rollout`."""

    _inner: rollout_.Rollout
    outcomes = _iterating(rollout_.Rollout.outcomes)
    wait = _plain(rollout_.Rollout.wait)
    release = _plain(rollout_.Rollout.release)
    cancel = _plain(rollout_.Rollout.cancel)

    @property
    def id(self) -> str:
        """What it is called in the cluster; `attach` takes it."""
        return self._inner.id

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self._inner.tenant

    @property
    def run(self) -> str:
        """The run it is of."""
        return self._inner.run

    @property
    def n(self) -> int:
        """How many sandboxes it has."""
        return self._inner.n

    @property
    def spec(self) -> RolloutSpec:
        """What was asked for, as it travels."""
        return self._inner.spec

    @property
    def failures(self) -> list[SandboxOutcome]:
        """The sandboxes the platform lost for good so far."""
        return self._inner.failures

    def status(self) -> RolloutStatus:
        """Return the rollout as it is now, as far as this client has heard."""
        return self._inner.status()

    def ready(self) -> Iterator[Sandbox]:
        """Yield each sandbox as soon as it takes commands; see `shoal.Rollout.ready`."""
        for sandbox in self._portal.each(self._inner.ready()):
            yield Sandbox(self._portal, sandbox)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with noting(error, f"{self!r} is not released"):
            self.release()


class _Entered(Rollout):
    """A rollout of a run. An exception that passes leaves it, to be resumed."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()


class Run(Faced):
    """See `shoal.Run`."""

    _inner: run_.Run
    rollout = _giving(run_.Run.rollout, _Entered)
    attach = _giving(run_.Run.attach, Rollout)
    rollouts = _plain(run_.Run.rollouts)
    close = _plain(run_.Run.close)

    @property
    def name(self) -> str:
        """What it is called."""
        return self._inner.name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with noting(error, f"{self!r} is not closed"):
            self.close()


class Cluster(Faced):
    """See `shoal.Cluster`."""

    _inner: cluster_.Cluster
    resume = _giving(cluster_.Cluster.resume, Run)
    trajectory = _iterating(cluster_.Cluster.trajectory)
    story = _iterating(cluster_.Cluster.story)
    rollout = _giving(cluster_.Cluster.rollout, Rollout)
    attach = _giving(cluster_.Cluster.attach, Rollout)
    submit = _plain(cluster_.Cluster.submit)
    map = _plain(cluster_.Cluster.map)
    cancel = _plain(cluster_.Cluster.cancel)
    rollouts = _plain(cluster_.Cluster.rollouts)
    nodes = _plain(cluster_.Cluster.nodes)
    tenants = _plain(cluster_.Cluster.tenants)
    add_tenant = _plain(cluster_.Cluster.add_tenant)
    remove_tenant = _plain(cluster_.Cluster.remove_tenant)
    limits = _plain(cluster_.Cluster.limits)
    limit_tenant = _plain(cluster_.Cluster.limit_tenant)
    drain = _plain(cluster_.Cluster.drain)
    undrain = _plain(cluster_.Cluster.undrain)
    events = _iterating(cluster_.Cluster.events)
    dead_letters = _iterating(cluster_.Cluster.dead_letters)
    build_template = _plain(cluster_.Cluster.build_template)
    snapshots = _plain(cluster_.Cluster.snapshots)
    pin_snapshot = _plain(cluster_.Cluster.pin_snapshot)
    prefetch = _plain(cluster_.Cluster.prefetch)
    remove_snapshot = _plain(cluster_.Cluster.remove_snapshot)
    dead_letter = _plain(cluster_.Cluster.dead_letter)
    retry_dead = _plain(cluster_.Cluster.retry_dead)

    @property
    def tenant(self) -> str:
        """On whose account this connection acts."""
        return self._inner.tenant

    @property
    def url(self) -> str:
        """The broker's address."""
        return self._inner.url

    def close(self) -> None:
        """Disconnect and end the background thread. Idempotent."""
        self._portal.close(self._inner.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with noting(error, f"{self!r} is not closed"):
            self.close()


def connect(
    url: str | None = None,
    *,
    tenant: str | None = None,
    timeout: float = 5.0,
    bus: Callable[[], Bus] | None = None,
    answer_grace: float = ANSWER_GRACE_S,
) -> Cluster:
    """Connect to a cluster as `shoal.connect` does; use it with `with`, or `close()` it.

    bus: makes the connection to use instead, called in the background thread.
    """
    portal = Portal()

    async def open() -> cluster_.Cluster:
        made = bus() if bus is not None else None
        return await cluster_.connect(url, tenant=tenant, timeout=timeout, bus=made, answer_grace=answer_grace)

    try:
        return Cluster(portal, portal.call(open()))
    except BaseException:
        portal.close()
        raise
