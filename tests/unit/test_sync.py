"""The synchronous face: what it waits for, and that it waits for nothing that never comes."""

import asyncio
import gc
import inspect
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import pytest

import shoal
from shoal import sync
from shoal.bus.protocol import Bus
from shoal.client.portal import Portal
from shoal.wire.codec import decode
from shoal.wire.messages import NodeDrained, RolloutReleased
from unit.client_fabric import Fabric, all_ready

T = TypeVar("T")
TOO_LONG_S = 30.0


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(all_ready)


@pytest.fixture
def cluster(fabric: Fabric) -> Iterator[sync.Cluster]:
    def bus() -> Bus:  # called in the client's thread, whose loop the fabric shares
        asyncio.get_running_loop().create_task(fabric.__aenter__())
        return fabric.connect()

    with shoal.connect_sync(bus=bus) as cluster:
        yield cluster


def done(work: Callable[[], T]) -> T | BaseException:
    """Return what work returns or raises, in a thread of its own; fail where it hangs."""
    ended: list[T | BaseException] = []

    def run() -> None:
        try:
            ended.append(work())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TOO_LONG_S)
    assert ended, "it hangs"
    return ended[0]


def test_an_iteration_that_is_garbage_may_be_collected_in_the_connections_own_thread(cluster: sync.Cluster) -> None:
    rollout = cluster.rollout("host", n=2)
    iteration = rollout.ready()
    sandbox = next(iteration)
    cycle: list[object] = [iteration]
    cycle.append(cycle)
    del iteration, cycle

    def collect(*_: object) -> None:
        gc.collect()

    answer = done(lambda: sandbox.run("x", on_output=collect))
    assert isinstance(answer, shoal.CommandResult)
    assert len(list(rollout.ready())) == 1  # the other


def test_a_callback_that_calls_its_own_connection_is_told_so(cluster: sync.Cluster) -> None:
    sandbox = next(cluster.rollout("host").ready())
    for work in (lambda: sandbox.run("y"), cluster.close):
        told = done(lambda work=work: sandbox.run("x", on_output=lambda *_: work()))  # type: ignore[misc]  # a lambda's default
        assert isinstance(told, RuntimeError)
        assert "on_output" in str(told)
    assert sandbox.run("z").stdout == "z"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_ends_the_program_ends_its_caller_and_not_the_connection(
    cluster: sync.Cluster, kind: type[BaseException]
) -> None:
    def leave(*_: object) -> None:
        raise kind(3)

    sandbox = next(cluster.rollout("host").ready())
    told = done(lambda: sandbox.run("x", on_output=leave))
    assert isinstance(told, kind)
    assert told.args == (3,)
    after = done(lambda: sandbox.run("y"))
    assert isinstance(after, shoal.CommandResult)
    assert after.stdout == "y"


def test_what_is_called_while_the_loop_ends_is_refused() -> None:
    portal, ending, refused = Portal(), threading.Event(), threading.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.get_running_loop().run_in_executor(None, refused.wait, TOO_LONG_S)

    async def spawn() -> "asyncio.Task[None]":
        return asyncio.create_task(slow_to_end())

    def call() -> None:
        ending.wait()
        try:
            portal.call(asyncio.Event().wait())
        finally:
            refused.set()

    kept = portal.call(spawn())
    caller: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: caller.append(done(call)))
    thread.start()
    portal.close()
    thread.join()
    (told,) = caller
    assert kept.done()
    assert isinstance(told, RuntimeError)
    assert "closed" in str(told)


def test_what_waits_when_the_loop_ends_is_told() -> None:
    portal, begun = Portal(), threading.Event()

    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    told: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: told.append(done(lambda: portal.call(forever()))))
    thread.start()
    begun.wait()
    portal.close()
    portal.close()
    thread.join()
    assert [type(each) for each in told] == [shoal.NotConnected]
    with pytest.raises(RuntimeError, match="closed"):
        portal.call(forever())


def test_what_was_got_from_a_closed_connection_says_so(cluster: sync.Cluster) -> None:
    rollout = cluster.rollout("host")
    sandbox = next(rollout.ready())
    cluster.close()
    for work in (lambda: sandbox.run("x"), rollout.release, lambda: list(rollout.outcomes())):
        assert "closed" in str(done(work))


@pytest.mark.parametrize("_", range(20))  # it comes now here, now there
def test_ctrl_c_comes_out_of_an_iteration_as_itself(_: int) -> None:
    portal, ended = Portal(), threading.Event()

    async def follow() -> AsyncGenerator[int, None]:
        try:
            yield 1
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            for _ in range(10):  # it takes its leave slowly
                await asyncio.sleep(0)
            ended.set()

    iteration = portal.each(follow())
    assert next(iteration) == 1
    with pytest.raises(KeyboardInterrupt) as told:
        next(iteration)
    assert told.value.__context__ is None
    assert ended.wait(TOO_LONG_S)
    portal.close()


def test_an_iteration_that_is_left_is_ended_before_the_connection_is() -> None:
    portal, order = Portal(), list[str]()

    async def follow() -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            order.append("iteration")

    async def leave() -> None:
        order.append("connection")

    for each in portal.each(follow()):
        assert each == 1
        break
    portal.close(leave)
    assert order == ["iteration", "connection"]


FACES = [
    (sync.Cluster, shoal.Cluster),
    (sync.Run, shoal.Run),
    (sync.Rollout, shoal.Rollout),
    (sync.Sandbox, shoal.Sandbox),
    (sync.Files, shoal.Files),
    (sync.Replay, shoal.Replay),
]
WITHIN = {
    "Rollout": {"follow", "start", "remember", "first_word", "want", "release_one"},
    "Sandbox": {"execute", "step", "story", "told", "ask"},
}
"""What is there for the rest of the client, and not for a trainer."""


def waits(method: object) -> bool:
    """Return whether what a method returns is of no use without an event loop."""
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        return True
    returned = str(getattr(method, "__annotations__", {}).get("return"))
    return any(kind in returned for kind in ("Opening", "Async", "Await", "Coroutine"))


@pytest.mark.parametrize(("face", "inner"), FACES)
def test_whatever_waits_is_wrapped(face: type, inner: type) -> None:
    names = {name for name, method in inspect.getmembers(inner) if not name.startswith("_") and waits(method)}
    wrapped = {name for each in face.__mro__ for name in vars(each)}
    assert names - wrapped == WITHIN.get(inner.__name__, set())
    assert not any(waits(method) for name, method in inspect.getmembers(face))


def test_whatever_is_reached_is_a_face_too(cluster: sync.Cluster) -> None:
    async_ = tuple(inner for _, inner in FACES)
    run = cluster.resume("r1")
    rollout = run.rollout("host", key="k")
    sandbox = next(rollout.ready())
    for each in (cluster, run, rollout, sandbox, sandbox.files):
        inner = object.__getattribute__(each, "_inner")
        for name in {*vars(inner), *(n for n, _ in inspect.getmembers(type(inner), lambda m: isinstance(m, property)))}:
            assert name.startswith("_") or not isinstance(getattr(each, name), async_), name


def released(fabric: Fabric) -> list[str]:
    stored = [decode(message.payload) for message in fabric.broker.messages("SHOAL_ROLLOUT_0")]
    return [message.rollout for message in stored if isinstance(message, RolloutReleased)]


def test_forks_are_given_back_by_the_rollout_that_they_are(cluster: sync.Cluster, fabric: Fabric) -> None:
    sandbox = next(cluster.rollout("host").ready())
    assert sandbox.rollout.id in sandbox.name
    forks = sandbox.fork(2)
    forks[0].rollout.release()
    assert [fork.ended for fork in forks] == [shoal.EndReason.RELEASED] * 2
    assert released(fabric) == [forks[0].rollout.id]


def test_a_rollout_of_a_run_stays_when_an_exception_passes(cluster: sync.Cluster, fabric: Fabric) -> None:
    with cluster.resume("r1") as run:
        with suppress(ZeroDivisionError), run.rollout("host", key="k") as rollout:
            (sandbox,) = rollout.ready()
            raise ZeroDivisionError
        with run.rollout("host", key="k") as again:
            assert sandbox.run("x").stdout == "x"
            assert released(fabric) == []
        assert again.id == rollout.id
        assert sandbox.ended is shoal.EndReason.RELEASED
        with pytest.raises(ZeroDivisionError), cluster.rollout("host") as other:
            raise ZeroDivisionError
    run.close()
    assert released(fabric) == [again.id, other.id]


def test_nodes_and_limits_are_reached(cluster: sync.Cluster, fabric: Fabric) -> None:
    cluster.drain("n1", hibernate=True)
    cluster.undrain("n1")
    cluster.limit_tenant("a", shoal.Limits(sandboxes=3))
    assert cluster.limits() == {"a": shoal.Limits(sandboxes=3)}
    told = [decode(message.payload) for message in fabric.broker.messages("SHOAL_PLACEMENT_0")]
    assert told == [NodeDrained("n1", True, True), NodeDrained("n1", False, False)]
