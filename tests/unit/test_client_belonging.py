"""Where a connection can be used: until it is closed, in its process and event loop; elsewhere it says so at once."""

import asyncio
import gc
import os
import pickle
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

import shoal
from shoal.bus.memory import MemoryBus, MemoryReader
from shoal.bus.protocol import Bus, UnreachableError
from unit.client_fabric import Fabric, all_ready

TOO_LONG_S = 30
Operations = dict[str, Callable[[], Awaitable[object]]]


async def held(fabric: Fabric) -> tuple[shoal.Cluster, Operations]:
    """Return a connection, and all that waits for something on it."""
    cluster = await shoal.connect(bus=fabric.connect())
    rollout = await cluster.rollout("host", n=2)
    sandbox = await anext(rollout.ready())
    job = await cluster.rollout("host", command="true")
    return cluster, {
        "run": lambda: sandbox.run("true"),
        "session": lambda: sandbox.run("true", session=True),
        "python": lambda: sandbox.python("1"),
        "read": lambda: sandbox.files.read("f"),
        "write": lambda: sandbox.files.write("f", "text"),
        "snapshot": sandbox.snapshot,
        "fork": sandbox.fork,
        "hibernate": sandbox.hibernate,
        "wait": job.wait,
        "outcomes": lambda: anext(job.outcomes()),
        "cancel": job.cancel,
        "release": rollout.release,
        "map": lambda: cluster.map("host", ["true"]),
        "rollout": lambda: opened(cluster.rollout("host")),
        "submit": lambda: cluster.submit("host"),
        "attach": lambda: cluster.attach(rollout.id),
        "rollouts": cluster.rollouts,
        "nodes": cluster.nodes,
        "tenants": cluster.tenants,
        "snapshots": cluster.snapshots,
        "events": lambda: first(cluster.events()),
        "follow": lambda: first(cluster.events("none", follow=True)),
        "trajectory": lambda: first(cluster.trajectory("default")),
        "dead letters": lambda: first(cluster.dead_letters()),
        "prefetch": lambda: cluster.prefetch("x"),
        "drain": lambda: cluster.drain("n1"),
    }


async def opened(opening: Awaitable[object]) -> object:
    return await opening


async def first(found: AsyncGenerator[Any, None]) -> object:
    return await anext(found)


async def told(operations: Operations) -> dict[str, str]:
    """Return what each says."""
    said = {}
    for name, operation in operations.items():
        try:
            said[name] = f"nothing, and gave {await asyncio.wait_for(operation(), TOO_LONG_S)!r}"
        except BaseException as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def forked(work: Callable[[], Any]) -> Any:
    """Return what work gives in a forked process; fail where it hangs."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(TOO_LONG_S)
            os.write(writing, pickle.dumps(work()))
        except BaseException as error:
            os.write(writing, pickle.dumps(f"{type(error).__name__}: {error}"))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        given = pipe.read()
    os.waitpid(child, 0)
    assert given, "it hangs"
    return pickle.loads(given)


def all_say(said: dict[str, str], text: str) -> None:
    assert {name: what for name, what in said.items() if what != f"NotConnected: {text}"} == {}


async def test_a_closed_connection_says_that_it_was_closed_whatever_is_asked_of_it() -> None:
    async with Fabric(all_ready) as fabric:
        cluster, operations = await held(fabric)
        await cluster.close()
        await cluster.close()
        all_say(await told(operations), "this connection was closed; connect again")


async def test_what_waits_when_the_connection_is_closed_says_the_same() -> None:
    async with Fabric(all_ready) as fabric:
        fabric.silent = True
        cluster, operations = await held(fabric)
        waiting = {
            name: asyncio.ensure_future(operations[name]())
            for name in ("run", "wait", "outcomes", "snapshots", "follow")
        }
        await asyncio.sleep(0.05)
        await cluster.close()
        all_say(
            await told({name: lambda task=task: task for name, task in waiting.items()}),  # type: ignore[misc]  # a lambda's default
            "this connection was closed; connect again",
        )


def test_a_connection_that_was_kept_for_another_event_loop_says_so() -> None:
    async def before() -> tuple[shoal.Cluster, Operations]:
        async with Fabric(all_ready) as fabric:
            return await held(fabric)

    async def after() -> dict[str, str]:
        said = await told(operations)
        await cluster.close()  # it went with its loop
        return said

    cluster, operations = asyncio.run(before())
    all_say(
        asyncio.run(after()),
        "this connection belongs to another event loop, such as that of an earlier asyncio.run(); connect again in this"
        " one",
    )


def test_a_connection_is_not_closed_by_another_event_loop_than_its_own_while_that_runs() -> None:
    async def main() -> None:
        async with Fabric(all_ready) as fabric:
            cluster, _ = await held(fabric)
            with pytest.raises(shoal.NotConnected, match="another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(cluster.close()))
            assert len(await cluster.rollouts()) == 2
            await cluster.close()

    asyncio.run(main())


def test_a_forked_process_is_told_whose_the_connection_is() -> None:
    async def main() -> tuple[shoal.Cluster, Operations]:
        return await held(await Fabric(all_ready).__aenter__())

    async def child() -> dict[str, str]:
        said = await told(operations)
        await cluster.close()
        return said | await told({"after close": operations["run"]})

    async def parent() -> None:
        assert len(await cluster.rollouts()) == 2
        await cluster.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # the fabric's

    loop = asyncio.new_event_loop()
    try:
        cluster, operations = loop.run_until_complete(main())
        said = forked(lambda: asyncio.run(child()))
        loop.run_until_complete(parent())
    finally:
        loop.close()
    all_say(said, f"this connection belongs to process {os.getpid()}; connect again in this one")


def test_the_synchronous_face_in_a_forked_process_is_told_and_the_parents_goes_on() -> None:
    def bus() -> Bus:  # called in the client's thread, whose loop the fabric shares
        fabric = Fabric(all_ready)
        asyncio.get_running_loop().create_task(fabric.__aenter__())
        return fabric.connect()

    with shoal.connect_sync(bus=bus) as cluster:
        rollout = cluster.rollout("host", n=2)
        ready = rollout.ready()
        sandbox = next(ready)

        def child() -> dict[str, str]:
            said = {}
            for name, work in {
                "run": lambda: sandbox.run("true"),
                "map": lambda: cluster.map("host", ["true"]),
                "ready": lambda: next(ready),
                "outcomes": lambda: next(rollout.outcomes()),
                "release": rollout.release,
            }.items():
                try:
                    said[name] = repr(work())
                except Exception as error:
                    said[name] = f"{type(error).__name__}: {error}"
            try:
                with cluster, rollout:
                    raise KeyError("body")
            except KeyError as error:  # neither the rollout's end nor the connection's hides it
                said["with"] = "NotConnected" + error.__notes__[0][error.__notes__[0].index(": this") :]
            with cluster:
                pass
            return said

        said = forked(child)
        assert sandbox.run("x").stdout == "x"
        assert sandbox.run("x").stdout == "x"
        rollout.release()
    all_say(said, f"this connection belongs to process {os.getpid()}; connect again in this one")


async def test_a_reader_that_could_not_be_opened_when_nobody_waited_is_no_lost_exception_and_tried_again() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    failing, begun = asyncio.Event(), asyncio.Event()

    class Slow(MemoryBus):
        async def reader(self, *args: Any, **kwargs: Any) -> MemoryReader:
            if not failing.is_set():
                begun.set()
                await failing.wait()
                raise UnreachableError("nobody")
            return await super().reader(*args, **kwargs)

    async with Fabric(all_ready) as fabric, shoal.connect(bus=Slow(fabric.broker)) as cluster:
        waiting = asyncio.create_task(opened(cluster.rollout("host")))
        await begun.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        failing.set()
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()
        assert not complaints
        assert (await cluster.rollout("host")).n == 1
