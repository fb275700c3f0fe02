"""Records what real systems said, for tests to read: `python tests/archive/record.py` (as root, Linux 6.15 or newer).

`recorded/agents.shoal`: zygote sandboxes that run commands, write files, are snapshotted, forked, rolled back, put to
sleep and cancelled. `recorded/lost.shoal`: 256 simulated sandboxes on 20 nodes, a node that is drained, and an executor
that is killed and comes back without what it held. What is there is replaced; the tests name what is in them.
"""

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

import shoal
from shoal.archive.exporting import export
from shoal.archive.live import LiveHistory
from shoal.bus.jetstream import JetStreamBus
from shoal.cli import statefile
from shoal.cli.system import LocalSystem
from shoal.wire.messages import Limits

RECORDED = Path(__file__).with_name("recorded")


async def agents(cluster: shoal.Cluster) -> None:
    """Use sandboxes in every way there is."""
    await cluster.add_tenant("default")
    await cluster.limit_tenant("default", Limits(weight=2.0, sandboxes=64))
    async with cluster.rollout("host", n=3, run="agent", on_lost="restart", timeout="5m") as rollout:
        one, two, three = [sandbox async for sandbox in rollout.ready()]
        await one.files.write("a.txt", "hello")
        await one.run("cat a.txt; exit 3")
        await asyncio.gather(*(sandbox.run("sleep 0.2; echo hi") for sandbox in (one, two, three)))
        await asyncio.gather(*(one.run(f"sleep 0.1; echo {number}") for number in range(3)))
        await one.files.read("a.txt")
        kept = await two.snapshot("built")
        await two.run("echo x > y")
        await two.rollback(kept)
        await three.hibernate()
        await three.run("echo awake")
        forks = await two.fork(2)
        for fork in forks:
            await fork.run(["hostname"])
    await cluster.map("host", ["true", "exit 4", "sleep 0.1"] * 4, run="jobs")
    cancelled = await cluster.rollout("host", n=2, run="cancelled")
    await cancelled.cancel()
    await cancelled.wait()
    await cluster.remove_tenant("default")


async def lost(cluster: shoal.Cluster, state: Path) -> None:
    """Lose what runs, once, and drain a node."""
    await (await cluster.rollout("host", n=256, command="work", run="jobs")).wait()
    await cluster.drain("local-3")
    rollout = await cluster.rollout("host", n=40, run="agents", on_lost="restart", timeout="5m")
    first = [sandbox async for sandbox in rollout.ready()]
    await asyncio.gather(*(sandbox.run("think") for sandbox in first))
    running = statefile.read(state)
    assert running is not None
    os.kill(int(running.services["executor"]["pid"]), signal.SIGKILL)
    again: list[shoal.Sandbox] = []
    while len(again) < 40:
        again += [sandbox async for sandbox in rollout.ready()]
        await asyncio.sleep(0.1)
    await again[0].run("think again")
    await cluster.undrain("local-3")
    await rollout.release()
    await rollout.wait()


async def record(name: str, driver: str, nodes: int) -> None:
    """Bring a system up, have things happen there, and keep what was said."""
    path = RECORDED / f"{name}.shoal"
    path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="shoal-record-") as directory:
        state = Path(directory)
        async with LocalSystem(state, port=0, driver=driver, nodes=nodes, slots=16) as system:
            async with shoal.connect(system.url) as cluster:
                await (agents(cluster) if name == "agents" else lost(cluster, state))
            await asyncio.sleep(3)  # for beats, and for what is said after the end
            bus = await JetStreamBus.connect(system.url)
            done = await export(LiveHistory(bus), path)
            await bus.close()
    sys.stdout.write(f"{path.name}: {done.messages} messages, {done.size} bytes\n")


def main() -> None:
    """Record both."""
    RECORDED.mkdir(exist_ok=True)
    asyncio.run(record("agents", "zygote", 1))
    asyncio.run(record("lost", "simulated", 20))


if __name__ == "__main__":
    main()
