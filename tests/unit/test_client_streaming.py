"""What `on_output` is given of a command whose pieces were not all streamed."""

import asyncio

import shoal
from shoal.client.results import CommandResult
from shoal.client.streaming import Streamed
from shoal.wire import subjects
from shoal.wire.messages import CommandOutput
from unit.client_fabric import Fabric, all_ready


async def test_pieces_after_a_gap_and_pieces_of_a_next_process_are_handed_on() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.rollout("host", run="r") as rollout:
            (sandbox,) = [sandbox async for sandbox in rollout.ready()]
            fabric.silent = True
            got: list[bytes] = []
            enough = asyncio.Event()

            def take(_channel: str, data: bytes) -> None:
                got.append(data)
                if data == b"d":
                    enough.set()

            running = asyncio.create_task(sandbox.run("x", id="s", on_output=take))
            await fabric.until(lambda: bool(fabric.commands))
            for part, data in ((0, b"a"), (2, b"b"), (1 << 32, b"c"), (1 << 32, b"c"), ((1 << 32) + 1, b"d")):
                output = CommandOutput(f"{sandbox.name}:s", rollout.id, 0, part, 1, data)
                fabric.publish(subjects.trajectory(rollout.cell, rollout.tenant, "r"), output)
            await enough.wait()
            assert got == [b"a", b"b", b"c", b"d"]
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_a_recorded_answer_is_handed_on_whole() -> None:
    async with Fabric(all_ready) as fabric, shoal.connect(bus=fabric.connect()) as cluster:
        async with cluster.rollout("host") as rollout:
            (sandbox,) = [sandbox async for sandbox in rollout.ready()]
            await sandbox.run("x", id="s")
            got: list[tuple[str, bytes]] = []
            await sandbox.run("x", id="s", on_output=lambda channel, data: got.append((channel, data)))
            assert got == [("stdout", b"x"), ("stderr", b"oops\n")]


def test_at_the_end_the_rest_is_handed_on_unless_something_between_is_missing() -> None:
    got: list[tuple[str, bytes]] = []
    streamed = Streamed(lambda channel, data: got.append((channel, data)))
    streamed("stdout", b"one ")
    streamed("stderr", b"1 ")
    streamed("stderr", b"3 ")
    streamed.end(CommandResult(0, b"one two", b"1 2 3 4", 0.1))
    assert got == [("stdout", b"one "), ("stderr", b"1 "), ("stderr", b"3 "), ("stdout", b"two")]
    streamed.end(CommandResult(0, b"one two", b"1 3 ", 0.1))
    assert len(got) == 4
