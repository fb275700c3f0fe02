"""The client without `async`: the same methods, run in the event loop of a background thread.

    with shoal.sync.connect() as cluster:
        with cluster.rollout("host", n=64) as rollout:
            for sandbox in rollout.ready():
                print(sandbox.run("python3 solve.py", timeout=30).stdout)

Every class wraps its asynchronous namesake; what has no `await` there is reached through unchanged. Callbacks such as
`on_output` are called in the background thread, and cannot call the same connection.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from shoal.bus.protocol import Bus
from shoal.client import (
    cluster as cluster_,
    replaying as replaying_,
    rollout as rollout_,
    run as run_,
    sandbox as sandbox_,
)
from shoal.client.errors import ReplayDiverged, ReplayStopped
from shoal.client.link import ANSWER_GRACE_S
from shoal.client.opening import noting
from shoal.client.portal import Portal

P = ParamSpec("P")
R = TypeVar("R")
W = TypeVar("W", bound="_Wrapped")


class _Wrapped:
    """Something asynchronous, and the portal to its loop."""

    def __init__(self, portal: Portal, inner: Any) -> None:
        self._portal = portal
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __repr__(self) -> str:
        return repr(self._inner)


def _plain(method: Callable[Concatenate[Any, P], Awaitable[R]]) -> Callable[Concatenate[Any, P], R]:
    def call(self: _Wrapped, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._portal.call(method(self._inner, *args, **kwargs))

    _describe(call, method)
    return call


def _giving(
    method: Callable[Concatenate[Any, P], Awaitable[Any]], wrapper: type[W]
) -> Callable[Concatenate[Any, P], W]:
    def call(self: _Wrapped, /, *args: P.args, **kwargs: P.kwargs) -> W:
        return wrapper(self._portal, self._portal.call(method(self._inner, *args, **kwargs)))

    _describe(call, method)
    return call


def _iterating(
    method: Callable[Concatenate[Any, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate[Any, P], Iterator[R]]:
    def call(self: _Wrapped, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self._portal.each(method(self._inner, *args, **kwargs))

    _describe(call, method)
    return call


def _describe(call: Any, method: Any) -> None:
    call.__name__, call.__qualname__, call.__doc__ = method.__name__, method.__qualname__, method.__doc__


class Files(_Wrapped):
    """See `shoal.Files`."""

    _inner: sandbox_.Files
    write = _plain(sandbox_.Files.write)
    read = _plain(sandbox_.Files.read)
    read_bytes = _plain(sandbox_.Files.read_bytes)


class Sandbox(_Wrapped):
    """See `shoal.Sandbox`."""

    _inner: sandbox_.Sandbox
    run = _plain(sandbox_.Sandbox.run)
    python = _plain(sandbox_.Sandbox.python)
    snapshot = _plain(sandbox_.Sandbox.snapshot)
    rollback = _plain(sandbox_.Sandbox.rollback)
    hibernate = _plain(sandbox_.Sandbox.hibernate)
    release = _plain(sandbox_.Sandbox.release)

    def resume(
        self,
        *,
        timeout: float | str | None = None,
        diverged: str = "raise",
        not_idempotent: str = "raise",
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


class Replay(_Wrapped):
    """See `shoal.Replay`."""

    _inner: replaying_.Replay

    @property
    def sandbox(self) -> Sandbox:
        """The new sandbox."""
        return Sandbox(self._portal, self._inner.sandbox)


class Rollout(_Wrapped):
    """See `shoal.Rollout`."""

    _inner: rollout_.Rollout
    outcomes = _iterating(rollout_.Rollout.outcomes)
    wait = _plain(rollout_.Rollout.wait)
    release = _plain(rollout_.Rollout.release)
    cancel = _plain(rollout_.Rollout.cancel)

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


class Run(_Wrapped):
    """See `shoal.Run`."""

    _inner: run_.Run
    rollout = _giving(run_.Run.rollout, _Entered)
    attach = _giving(run_.Run.attach, Rollout)
    rollouts = _plain(run_.Run.rollouts)
    close = _plain(run_.Run.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with noting(error, f"{self!r} is not closed"):
            self.close()


class Cluster(_Wrapped):
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
