"""A broker whose store lost the end of one log; new messages have made it as long again before a service is there."""

import asyncio
import shutil
from pathlib import Path

import pytest

from shoal.broker import EmbeddedBroker
from shoal.bus.jetstream import JetStreamBus
from shoal.machine.core import cause_of
from shoal.wire import streams
from shoal.wire.codec import decode, encode
from shoal.wire.messages import ReleaseRequested, RolloutReleased
from unit.toy_core import INBOX, OUT, REQUEST, Toy, running, shell_of, until

pytestmark = pytest.mark.broker


async def submit(bus: JetStreamBus, first: int, count: int) -> None:
    for n in range(first, first + count):
        await bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")


def kept(state: Path) -> Path:
    """Return where a broker keeps the inbox."""
    (found,) = [path for path in state.rglob(INBOX) if path.is_dir()]
    return found


@pytest.mark.parametrize("before", [True, False])
async def test_new_messages_in_the_place_of_lost_ones_are_acted_upon(tmp_path: Path, before: bool) -> None:
    """`before`: they are stored before a service is there."""
    state, backup = tmp_path / "broker", tmp_path / "backup"
    async with EmbeddedBroker(state, port=0) as broker:
        bus = await JetStreamBus.connect(broker.url)
        await bus.ensure(streams.cluster(1))
        await submit(bus, 0, 6)
        async with running(shell_of(bus, Toy())) as shell:
            await until(lambda: shell.acknowledged == 6)
        await bus.close()
    shutil.copytree(kept(state), backup)
    async with EmbeddedBroker(state, port=0) as broker:
        bus = await JetStreamBus.connect(broker.url)
        await submit(bus, 6, 4)
        async with running(shell_of(bus, Toy())) as shell:
            await until(lambda: shell.acknowledged == 10)
        await bus.close()
    place = kept(state)
    shutil.rmtree(place)
    shutil.copytree(backup, place)
    async with EmbeddedBroker(state, port=0) as broker:
        bus = await JetStreamBus.connect(broker.url)
        assert await bus.last_sequence(INBOX) == 6
        core = Toy()
        if before:
            await submit(bus, 10, 6)
        async with running(shell_of(bus, core)) as shell:
            await shell.ready()
            if not before:
                await submit(bus, 10, 6)
            await until(lambda: shell.acknowledged == 12)
        assert core.seen == [f"r{n}" for n in (*range(6), *range(10, 16))]
        reader = await bus.reader(OUT)
        said: list[tuple[str, tuple[str, int, int] | None]] = []
        async with asyncio.timeout(20):
            while len(said) < 32:
                for delivery in await reader.batch():
                    message = decode(delivery.payload)
                    assert isinstance(message, ReleaseRequested)
                    said.append((message.rollout, cause_of(delivery.id)))
        assert [name for name, _ in said] == [f"r{n}-{k}" for n in range(16) for k in range(2)]
        assert [cause for _, cause in said[12:20]] == [cause for _, cause in said[20:28]]  # the same sequences
        await reader.close()
        await bus.close()
