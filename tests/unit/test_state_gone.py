"""A service whose state cannot be had says so and serves nobody, unless it is told to begin with what is left."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.blobs.opening import open_store
from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.machine.checkpoint import Checkpoint
from shoal.runtime.checkpoints import Checkpoints, StateGoneError
from shoal.runtime.options import Settings
from shoal.runtime.process import Context
from shoal.wire import streams
from shoal.wire.codec import encode
from shoal.wire.messages import RolloutReleased
from shoal_placement.service import run as run_placement
from shoal_scheduler.service import run as run_scheduler
from shoal_snapshot.service import run as run_snapshot
from unit.toy_core import INBOX, REQUEST, Toy, running, shell_of, until


class Newer(Toy):
    """Another version, to which a state of before means nothing."""

    state_version = Toy.state_version + 1


@pytest.fixture
async def bus(memory_broker: MemoryBroker) -> MemoryBus:
    bus = memory_broker.connect()
    await bus.ensure(streams.cluster(1))
    return bus


async def trimmed(bus: MemoryBus) -> None:
    """A log of ten messages of which a checkpoint covers all, and the last two are kept."""
    for n in range(10):
        await bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")
    await covered(bus)


async def covered(bus: MemoryBus, upto: int = 10) -> None:
    core = Toy()
    async with running(shell_of(bus, core)) as shell:
        await until(lambda: shell.acknowledged == upto)
    assert [each.sequence for each in (await Checkpoints(bus, "toy.0").manifest())[0].generations[:1]] == [upto]
    await bus.purge(INBOX, upto - 2)


async def harm(bus: MemoryBus, what: str) -> None:
    """Have no checkpoint be of use."""
    bucket = streams.CHECKPOINT_BUCKET
    for key in await bus.keys(bucket):
        if what == "no bucket" or (what == "no pieces" and key != "toy.0"):
            await bus.delete(bucket, key)
        elif what == "manifest" and key == "toy.0":
            await bus.put(bucket, key, b"potatoes")


async def test_a_log_without_its_beginning_is_served_from_a_checkpoint(bus: MemoryBus) -> None:
    await trimmed(bus)
    core = Toy()
    async with running(shell_of(bus, core)) as shell:
        await shell.ready()
    assert core.seen == [f"r{n}" for n in range(10)]


@pytest.mark.parametrize("what", ["version", "no pieces", "manifest", "no bucket"])
async def test_without_a_checkpoint_it_is_not_served_but_by_who_is_told_to(bus: MemoryBus, what: str) -> None:
    await trimmed(bus)
    await harm(bus, what)
    with pytest.raises(StateGoneError, match=r"^toy.0 cannot .* SHOAL_ROLLOUT_0 .* message 9 on.*--begin-with-what-is"):
        await shell_of(bus, Newer()).run()
    core = Newer()
    async with running(shell_of(bus, core, what_is_left=True)) as shell:
        await shell.ready()
        await bus.publish(REQUEST, encode(RolloutReleased("new")), "in-new")
        await until(lambda: shell.acknowledged == 11)
    assert core.seen == ["r8", "r9", "new"]


async def test_who_began_with_what_is_left_goes_on_as_any(bus: MemoryBus) -> None:
    await trimmed(bus)
    async with running(shell_of(bus, Newer(), what_is_left=True, checkpoint_every=1)) as shell:
        await bus.publish(REQUEST, encode(RolloutReleased("new")), "in-new")
        await until(lambda: shell._checkpointed == 11)
    core = Newer()
    async with running(shell_of(bus, core)) as shell:
        await shell.ready()
    assert core.seen == ["r8", "r9", "new"]


async def test_a_log_of_which_nothing_is_left_is_not_served_either(bus: MemoryBus) -> None:
    await trimmed(bus)
    await bus.purge(INBOX, 10)
    with pytest.raises(StateGoneError):
        await shell_of(bus, Newer()).run()


async def test_a_leader_that_saves_and_trims_meanwhile_is_not_mistaken_for_a_loss(bus: MemoryBus) -> None:
    for n in range(10):
        await bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")
    load = Checkpoints.load

    class Slow(Checkpoints):
        async def load(self, **named: Any) -> list[Checkpoint]:
            await bus.publish(REQUEST, encode(RolloutReleased("r10")), "in-10")
            await covered(bus, 11)
            return await load(self, **named)

    core = Toy()
    shell = shell_of(bus, core)
    shell._checkpoints = Slow(bus, "toy.0")
    async with running(shell):
        await shell.ready()
    assert core.seen == [f"r{n}" for n in range(11)]


SERVICES: dict[str, tuple[str, Callable[[Context, Path, bool], Awaitable[None]]]] = {
    "scheduler": (
        streams.rollout(0).name, lambda context, _, what_is_left: run_scheduler(context, 10, "fair", what_is_left),
    ),
    "placement": (
        streams.placement(0).name, lambda context, _, what_is_left: run_placement(context, "soonest", what_is_left),
    ),
    "snapshot": (
        streams.snapshot().name,
        lambda context, path, what_is_left: run_snapshot(context, open_store(path.as_uri()), path, what_is_left),
    ),
}  # fmt: skip


@pytest.mark.parametrize("service", SERVICES)
async def test_every_service_passes_on_what_it_is_told(bus: MemoryBus, tmp_path: Path, service: str) -> None:
    stream, run = SERVICES[service]
    subject = next(each for each in streams.cluster(1) if each.name == stream).subjects[0].replace(">", "x")
    await bus.publish(subject, b"", "x")
    await bus.purge(stream, 1)
    stop = asyncio.Event()
    stop.set()
    with pytest.raises(StateGoneError, match=service):
        await run(Context(bus, 1, stop, Settings()), tmp_path, False)
    await run(Context(bus, 1, stop, Settings()), tmp_path, True)
