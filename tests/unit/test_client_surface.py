"""What the client lists, refuses and loads, and its synchronous face."""

import asyncio
import copy
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import shoal
from shoal.bus.memory import MemoryBroker
from shoal.bus.protocol import Bus
from shoal.wire import subjects
from shoal.wire.messages import (
    EndReason,
    ExecutorBeat,
    ExecutorJoined,
    NodeSpec,
    RolloutSubmitted,
)
from shoal.wire.quantities import format_bytes
from unit.client_fabric import EXECUTOR, Fabric, all_ready, all_run


async def test_listings() -> None:
    async with Fabric(all_run) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        assert await cluster.rollouts() == []
        assert await cluster.nodes() == []
        await cluster.map("host", ["x"] * 4, run="r1")
        await cluster.submit("host", n=2, run="r2")
        (first, second) = await cluster.rollouts()
        assert (first.run, first.n, first.state, first.counts) == ("r1", 4, "finished", {EndReason.SUCCEEDED: 4})
        assert (second.run, second.submitted_ms >= first.submitted_ms > 0) == ("r2", True)
        assert [info.run for info in await cluster.rollouts(None, run="r2")] == ["r2"]
        node = subjects.placement_node(0)
        now = fabric.broker.clock()
        fabric.broker.clock = lambda: now - 60_000
        fabric.publish(node, ExecutorJoined("e2", "b", "simulated", (NodeSpec("n2", 8, 2**30),)))
        fabric.broker.clock = lambda: now
        fabric.publish(node, ExecutorJoined(EXECUTOR, "b", "simulated", (NodeSpec("n1", 8, 2**30),)))
        fabric.publish(node, ExecutorBeat(EXECUTOR, "b", 3, 1))
        found = [(info.node, info.state, info.live, info.starting) for info in await cluster.nodes()]
        assert found == [("n1", "alive", 3, 1), ("n2", "silent", 0, 0)]
        kinds = [type(event.message).__name__ async for event in cluster.events("r1")]
        assert kinds == ["RolloutSubmitted", *["SandboxesFinished"] * 4, "RolloutConcluded"]
        await cluster.submit("host", run="r3")
        following = cluster.events("r3", follow=True, since="1h")
        assert isinstance((await anext(following)).message, RolloutSubmitted)
        second_id = await cluster.submit("host", run="r3")
        message = (await anext(following)).message
        assert isinstance(message, RolloutSubmitted)
        assert message.rollout == second_id
        await following.aclose()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 100_001}, "n"),
        ({"template": " "}, "template"),
        ({"run": "a.b"}, "run"),
        ({"timeout": "soon"}, "timeout"),
        ({"n": 3, "commands": ["a", "b"]}, "commands"),
        ({"commands": "a"}, "commands"),
        ({"command": ""}, "command"),
        ({"command": []}, "command"),
        ({"on_lost": "cry"}, "on_lost"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"files": {"a": b"x" * 800_000}}, "files"),
    ],
)
async def test_a_bad_request_is_found_before_anything_is_sent(arguments: dict[str, object], field: str) -> None:
    async with Fabric() as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        with pytest.raises(shoal.BadRequest) as caught:
            await cluster.rollout(**{"template": "host", **arguments})  # type: ignore[arg-type]
        assert caught.value.field == field
        assert fabric.broker.messages("SHOAL_ROLLOUT_0") == []


@pytest.mark.parametrize("limits", [{"memory": "12 potatoes"}, {"cpu": 0}, {"pids": 0}, {"disk": 0}])
def test_bad_resources(limits: dict[str, object]) -> None:
    with pytest.raises(shoal.BadRequest):
        shoal.Resources(**limits)  # type: ignore[arg-type]


async def test_no_cluster_and_a_closed_connection_say_what_to_do() -> None:
    with pytest.raises(shoal.Unreachable, match="shoal up"):
        await shoal.connect("nats://nowhere", bus=MemoryBroker().connect())
    async with Fabric(all_ready) as fabric:
        cluster = await shoal.connect(bus=fabric.connect())
        rollout = await cluster.rollout("host")
        before = asyncio.all_tasks()
        await cluster.close()
        await cluster.close()
        assert not [task for task in before if not task.done() and task.get_name().startswith("shoal")]
        with pytest.raises(shoal.Unreachable, match="closed"):
            await rollout.wait()


def test_the_synchronous_face() -> None:
    def script(fabric: Fabric, request: RolloutSubmitted) -> None:
        (all_run if request.spec.commands else all_ready)(fabric, request)

    fabric = None

    def bus() -> Bus:  # called in the client's thread, whose loop the fabric shares
        nonlocal fabric
        fabric = Fabric(script)
        asyncio.get_running_loop().create_task(fabric.__aenter__())
        return fabric.connect()

    with shoal.connect_sync(bus=bus) as cluster:
        with cluster.rollout("host", n=2) as rollout:
            for sandbox in rollout.ready():
                assert sandbox.run("x", check=True).stdout == "x"
                sandbox.files.write("f", "text")
                assert sandbox.files.read("f") == "text"
                with pytest.raises(shoal.FileError):
                    sandbox.files.read("g")
            assert rollout.status().n == 2
        outcomes = cluster.map("host", ["a", "b"])
        assert [outcome.stdout for outcome in outcomes] == ["a", "b"]
        assert sorted(outcome.index for outcome in rollout.outcomes()) == [0, 1]
        assert len(cluster.rollouts()) == 2
        assert {event.stream for event in cluster.events("default")} == {"SHOAL_ROLLOUT_0", "SHOAL_TRAJECTORY_0"}
        with pytest.raises(shoal.BadRequest):
            cluster.rollout("host", n=0)
    with pytest.raises(RuntimeError, match="closed"):
        cluster.rollouts()
    assert not [thread for thread in threading.enumerate() if thread.name == "shoal"]


def test_importing_loads_only_what_a_trainer_has() -> None:
    code = (
        "import sys, shoal\nfor name in shoal.__all__: getattr(shoal, name)\nimport shoal.bus.jetstream\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "nats" in loaded
    assert not loaded & {"click", "rich", "structlog", "uvloop", "pyseccomp", "msgpack", "orjson"}


ARCHIVE_READER = """
import asyncio, sys
import shoal
from shoal.wire.codec import decode

async def main():
    async with shoal.archive.open(sys.argv[1]) as history:
        for stream in await history.streams():
            async for delivery in history.read(stream):
                print(type(decode(delivery.payload)).__name__)

asyncio.run(main())
"""


def test_an_archive_is_read_with_nothing_but_shoal_imported() -> None:
    recorded = Path(__file__).parents[1] / "archive" / "recorded" / "lost.shoal"
    done = subprocess.run(
        [sys.executable, "-c", ARCHIVE_READER, str(recorded)], capture_output=True, text=True, check=True
    )
    assert "RolloutSubmitted" in done.stdout
    assert "archive" in dir(shoal)


def test_one_whose_time_is_up_names_both_times_it_may_have_been() -> None:
    told = str(shoal.SandboxEnded("r-0", EndReason.TIMED_OUT, "its lifetime was up"))
    assert "its rollout's" not in told.partition(";")[0]
    assert "timeout=" in told
    assert "lifetime=" in told


def test_one_that_came_too_late_says_what_limits_the_work_alone() -> None:
    told = str(shoal.SandboxLost("r-0", EndReason.DEADLINE, "it was ready after 11.0 s"))
    assert "most of that went by before it was there (it was ready after 11.0 s)" in told
    assert "do not score it; try again with a longer timeout=" in told
    assert "command_timeout=" in told
    assert "lifetime=" in told


async def test_what_is_printed_of_a_handle_is_short_and_tells_no_password() -> None:
    async with Fabric(all_ready) as fabric:
        url = "nats://me:secret@one:4222,nats://token@two:4222"
        async with shoal.connect(url, tenant="research", bus=fabric.connect()) as cluster:
            assert repr(cluster) == "<Cluster nats://one:4222,nats://two:4222, tenant research>"
            async with cluster.rollout("host") as rollout:
                sandbox = await anext(rollout.ready())
                assert repr(sandbox.files) == f"<Files of {rollout.id}-0>"
                snapshot = await sandbox.snapshot("base")
                assert repr(snapshot) == f"<Snapshot {snapshot.digest[:16]} 'base', {format_bytes(snapshot.size)}>"


async def test_a_live_handle_stays_in_its_process_and_says_what_to_hand_over() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.rollout("host") as rollout, cluster.resume("r") as run:
            sandbox = await anext(rollout.ready())
            for handle in (cluster, rollout, sandbox, sandbox.files, run):
                with pytest.raises(TypeError, match=rf"a {type(handle).__name__} is .* hand over rollout\.id"):
                    pickle.dumps(handle)
                assert copy.copy(handle) is handle


async def test_what_is_too_much_for_one_message_is_called_by_its_name() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        for given, field in (
            ({"commands": ["true"], "files": {"a": "x" * 900_000}}, "files"),
            ({"commands": ["true"], "env": {"A": "x" * 900_000}}, "env"),
            ({"commands": ["true", "x" * 900_000], "files": {"a": "x"}}, "commands"),
        ):
            with pytest.raises(shoal.BadRequest, match="at most 700000 fit") as told:
                await cluster.map("host", **given)  # type: ignore[arg-type]  # one call for all
            assert told.value.field == field


async def test_an_on_output_that_nobody_would_await_is_refused() -> None:
    async def wrong(channel: str, data: bytes) -> None: ...

    class Wrong:
        async def __call__(self, channel: str, data: bytes) -> None: ...

    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.rollout("host") as rollout:
            sandbox = await anext(rollout.ready())
            for given in (wrong, Wrong(), "print"):
                with pytest.raises(shoal.BadRequest, match="on_output"):
                    await sandbox.run("true", on_output=given)  # type: ignore[arg-type]  # as somebody may
                with pytest.raises(shoal.BadRequest, match="on_output"):
                    await sandbox.python("1", on_output=given)  # type: ignore[arg-type]  # as somebody may
