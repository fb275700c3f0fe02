"""A newer version of a service goes on from what the version before it kept, though its log has no beginning."""

import asyncio
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.machine.checkpoint import Checkpoint, UnusableCheckpointError, seal, unseal
from shoal.runtime.checkpoints import Checkpoints, StateGoneError
from shoal.runtime.lease import position_of
from shoal.wire import streams
from shoal.wire.codec import encode
from shoal.wire.messages import RolloutReleased
from unit.toy_core import INBOX, REQUEST, Toy, out, running, shell_of, until


class Newer(Toy):
    """Keeps what it has seen as pairs, with a number that the version before it did not know."""

    state_version = Toy.state_version + 1
    upgrades = MappingProxyType({1: lambda state: [[[each, 0] for each in state[0]], *state[1:]]})

    def dump(self) -> bytes:
        return msgspec.msgpack.encode(([(each, 0) for each in self.seen], list(self.asked), self.due))

    def load(self, state: bytes) -> None:
        kind = tuple[list[tuple[str, int]], list[str], int | None]
        seen, asked, self.due = msgspec.msgpack.decode(state, type=kind)
        self.seen, self.asked = [each for each, _ in seen], dict.fromkeys(asked)


class Newest(Newer):
    """Two versions on."""

    state_version = Newer.state_version + 1
    upgrades = MappingProxyType({**Newer.upgrades, 2: lambda state: state})


@pytest.fixture
async def bus(memory_broker: MemoryBroker) -> MemoryBus:
    bus = memory_broker.connect()
    await bus.ensure(streams.cluster(1))
    return bus


async def served(bus: MemoryBus, core: Toy, begin: int, count: int, **options: object) -> None:
    """A life of a service, told to stop when it is done with what came."""
    async with running(shell_of(bus, core, **options)) as shell:
        for n in range(begin, begin + count):
            await bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")
        await until(lambda: shell.acknowledged == begin + count)


async def sequences(bus: MemoryBus) -> list[int]:
    return [each.sequence for each in (await Checkpoints(bus, "toy.0").manifest())[0].generations]


@pytest.mark.parametrize("version", [Newer, Newest])
async def test_a_newer_version_goes_on_where_the_log_has_no_beginning(
    memory_broker: MemoryBroker, bus: MemoryBus, version: type[Newer]
) -> None:
    await served(bus, Toy(), 0, 10)
    await bus.purge(INBOX, 10)
    core = version()
    await served(bus, core, 10, 5)
    assert core.seen == [f"r{n}" for n in range(15)]
    assert [rollout for _, rollout in out(memory_broker)] == [f"r{n}-{k}" for n in range(15) for k in range(2)]
    await served(bus, version(), 15, 5)
    await bus.purge(INBOX, 20)
    with pytest.raises(StateGoneError):  # there is no way back, once what it kept itself is all there is
        await shell_of(bus, Toy()).run()


async def test_who_is_told_to_stop_keeps_all_it_has_done(bus: MemoryBus) -> None:
    await served(bus, Toy(), 0, 10)
    assert await sequences(bus) == [10]
    shell = shell_of(bus, Newer())
    async with running(shell):
        await shell.ready()
    assert (shell.replayed, shell.folded, shell.published) == (0, 0, 0)  # nothing is folded by other rules than it was
    assert await sequences(bus) == [10]  # nothing is new
    await served(bus, Toy(), 10, 1)
    assert await sequences(bus) == [11, 10]


async def test_a_standby_keeps_nothing_when_it_is_told_to_stop(bus: MemoryBus) -> None:
    async with running(shell_of(bus, Toy())) as leader:
        await leader.ready()
        async with running(shell_of(bus, Toy())) as standby:
            await bus.publish(REQUEST, encode(RolloutReleased("r0")), "in-0")
            await until(lambda: standby.position == 1 and leader.acknowledged == 1)
        assert await sequences(bus) == []
    assert await sequences(bus) == [1]


async def test_who_could_not_store_what_follows_keeps_no_state_that_says_so(bus: MemoryBus) -> None:
    class Full(MemoryBus):
        full = False

        def publish(self, subject: str, payload: bytes, id: str) -> Any:
            if self.full:
                return asyncio.get_running_loop().create_future()  # never stored
            return super().publish(subject, payload, id)

    full = Full(bus._broker)
    shell = shell_of(full, Toy())
    stop = asyncio.Event()
    task = asyncio.create_task(shell.run(stop))
    await shell.ready()
    full.full = True
    await bus.publish(REQUEST, encode(RolloutReleased("r0")), "in-0")
    await until(lambda: shell.position == 1)
    stop.set()
    await task
    assert await sequences(bus) == []
    assert await position_of(bus, "toy.0") == 0


async def test_a_standby_whose_checkpoints_are_replaced_while_it_loads_them_loads_the_new_ones(bus: MemoryBus) -> None:
    await served(bus, Toy(), 0, 10)
    leader = Checkpoints(bus, "toy.0")
    fetched: list[str] = []

    class Slow(Checkpoints):
        """What it is about to fetch has been replaced, twice, by a leader that needs its log no longer either."""

        async def _fetch(self, generation: Any) -> bytes:
            fetched.append(generation.id)
            if len(fetched) == 1:
                for n in (10, 11):
                    core = Toy()
                    core.seen = [f"r{each}" for each in range(n + 1)]
                    await bus.publish(REQUEST, encode(RolloutReleased(f"r{n}")), f"in-{n}")
                    assert await leader.save(Checkpoint("toy.0", 1, INBOX, n + 1, 1, core.dump()), 2)
                await bus.purge(INBOX, 11)
            return await super()._fetch(generation)

    core = Toy()
    shell = shell_of(bus, core)
    shell._checkpoints = Slow(bus, "toy.0")
    async with running(shell):
        await shell.ready()
    assert core.seen == [f"r{n}" for n in range(12)]
    assert fetched == ["1-10", "2-12", "2-11"]


def test_a_state_is_unsealed_as_of_this_version_or_not_at_all() -> None:
    sealed = seal(Checkpoint("toy.0", 1, INBOX, 7, 5, msgspec.msgpack.encode((["a"], [], None))))
    found = unseal(sealed, core="toy.0", version=2, stream=INBOX, upgrades=Newer.upgrades)
    assert (found.version, found.sequence) == (2, 7)
    assert msgspec.msgpack.decode(found.state) == [[["a", 0]], [], None]
    for version, reads in ((0, "0"), (3, "3")):
        with pytest.raises(UnusableCheckpointError, match=f"of version 1, and this program reads {reads}$"):
            unseal(sealed, core="toy.0", version=version, stream=INBOX, upgrades=Newer.upgrades)
