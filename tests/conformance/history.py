"""What every source of history does. Implementations inherit `HistoryConformance` and say how to keep what was said."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from uuid import uuid4

import msgspec
import pytest

from shoal.archive import source
from shoal.archive.source import NOTHING, Bounds, History, merged, message_at
from shoal.bus.protocol import Bus, Delivery
from shoal.machine.checkpoint import Checkpoint, Generation, Manifest, piece_keys, seal
from shoal.wire import streams, subjects
from shoal.wire.streams import CHECKPOINT_BUCKET, CLUSTER_BUCKET

HistoryOf = Callable[[Bus], Awaitable[History]]
"""Makes a history of what a bus's streams keep now; it may take part of that away from there."""


class Said:
    """Two streams with messages in turns, one that is empty, and states of a partition; of a test's own."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        token = uuid4().hex[:12]
        self.one, self.other, self.empty = (streams.executor(f"{token}{end}") for end in "abc")
        self.partition = f"scheduler.{token}"
        self.said: dict[str, list[Delivery]] = {}

    async def say(self, count: int = 40) -> None:
        """Publish so many messages in each of the two streams."""
        for stream in (self.one, self.other, self.empty):
            await self.bus.ensure([stream])
        for number in range(count):
            for stream in (self.one, self.other):
                name = stream.name.removeprefix("SHOAL_EXECUTOR_")
                control = subjects.executor_control(name)
                subject = control if number % 3 else subjects.executor_command(name, "t")
                id = f"SHOAL_ROLLOUT_0:{number}:0" if number % 2 else f"r{uuid4().hex}:released"
                await self.bus.publish(subject, b"%d" % number * (number % 7), id)
            await asyncio.sleep(0.002 if number % 5 == 0 else 0)
        for stream in (self.one, self.other):
            reader = await self.bus.reader(stream.name)
            found = self.said[stream.name] = []
            while len(found) < count:
                found += await reader.batch()
            await reader.close()

    async def save(self) -> list[Checkpoint]:
        """Store two states of a partition over the first stream, as a service does."""
        messages = self.said[self.one.name]
        states = [
            Checkpoint(self.partition, version, self.one.name, at.sequence, at.time_ms, b"state %d" % at.sequence * 100)
            for version, at in ((1, messages[9]), (2, messages[29]))
        ]
        kept: list[Generation] = []
        for state in states:
            packed = zlib.compress(seal(state))
            generation = Generation(f"1-{state.sequence}", state.sequence, state.time_ms, 2, len(packed))
            for key, piece in zip(piece_keys(self.partition, generation), (packed[:50], packed[50:]), strict=True):
                await self.bus.put(CHECKPOINT_BUCKET, key, piece)
            kept.insert(0, generation)
        await self.bus.put(CHECKPOINT_BUCKET, self.partition, msgspec.json.encode(Manifest(tuple(kept))))
        return states


async def read(
    history: History, stream: str, *, after: int = 0, since_ms: int | None = None, until: int | None = None
) -> list[Delivery]:
    """Return all that is read."""
    async with asyncio.timeout(30), aclosing(
        history.read(stream, after=after, since_ms=since_ms, until=until)
    ) as found:  # fmt: skip
        return [delivery async for delivery in found]


class HistoryConformance:
    """Inherit, and provide `bus`, a connection to a broker, and `history_of`."""

    @pytest.fixture
    async def said(self, bus: Bus) -> Said:
        said = Said(bus)
        await said.say()
        return said

    async def test_streams_and_what_there_is_of_them(self, said: Said, history_of: HistoryOf) -> None:
        history = await history_of(said.bus)
        names = await history.streams()
        assert {said.one.name, said.other.name} <= set(names)
        assert list(names) == sorted(names)
        assert await history.bounds(said.one.name) == Bounds(1, 40)
        first, last = await history.bounds(said.empty.name)
        assert (first, last) == NOTHING
        assert await history.bounds("SHOAL_EXECUTOR_none") == NOTHING
        assert await read(history, said.empty.name) == []
        assert await read(history, "SHOAL_EXECUTOR_none") == []
        await history.close()

    async def test_every_message_as_it_was(self, said: Said, history_of: HistoryOf) -> None:
        history = await history_of(said.bus)
        for name, messages in said.said.items():
            assert await read(history, name) == messages

    async def test_a_part_by_sequence(self, said: Said, history_of: HistoryOf) -> None:
        history = await history_of(said.bus)
        messages = said.said[said.one.name]
        for after in (0, 1, 17, 19, 20, 21, 38, 39, 40, 1000):
            for until in (None, 1, 19, 20, 21, 39, 40, 1000):
                wanted = [m for m in messages if m.sequence > after and (until is None or m.sequence <= until)]
                assert await read(history, said.one.name, after=after, until=until) == wanted, (after, until)

    async def test_a_part_by_time(self, said: Said, history_of: HistoryOf) -> None:
        history = await history_of(said.bus)
        messages = said.said[said.one.name]
        for at in {message.time_ms for message in messages[::7]}:
            for since_ms in (at - 1, at, at + 1):
                young = [message for message in messages if message.time_ms >= since_ms]
                assert await read(history, said.one.name, since_ms=since_ms) == young
                late = [message for message in young if message.sequence > 25]
                assert await read(history, said.one.name, since_ms=since_ms, after=25) == late
        assert await read(history, said.one.name, since_ms=messages[-1].time_ms + 1) == []

    async def test_one_message(self, said: Said, history_of: HistoryOf) -> None:
        history = await history_of(said.bus)
        assert await message_at(history, said.one.name, 20) == said.said[said.one.name][19]
        assert await message_at(history, said.one.name, 41) is None

    async def test_a_reader_may_stop_early(self, said: Said, history_of: HistoryOf) -> None:
        history = await history_of(said.bus)
        async with aclosing(history.read(said.one.name)) as found:
            async for delivery in found:
                if delivery.sequence == 3:
                    break
        assert len(await read(history, said.one.name)) == 40

    async def test_merged_by_time(self, said: Said, history_of: HistoryOf) -> None:
        history = await history_of(said.bus)
        names = list(said.said)
        async with aclosing(merged(history, names)) as all_of_it:
            found = [(stream, delivery) async for stream, delivery in all_of_it]
        for name in names:
            assert [delivery for stream, delivery in found if stream == name] == said.said[name]
        times = [delivery.time_ms for _, delivery in found]
        assert times == sorted(times)
        until_ms = times[len(times) // 2]
        async with aclosing(merged(history, names, since_ms=times[10], until_ms=until_ms)) as part:
            some = [delivery.time_ms async for _, delivery in part]
        assert some == [time_ms for time_ms in times if times[10] <= time_ms <= until_ms]

    async def test_many_are_merged_a_page_at_a_time(
        self, said: Said, history_of: HistoryOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        history = await history_of(said.bus)
        names = list(said.said)
        async with aclosing(merged(history, names)) as found:
            at_once = [each async for each in found]
        monkeypatch.setattr(source, "_MANY", 1)
        for page in (1, 7, 20, 40, 41):
            monkeypatch.setattr(source, "_PAGE", page)
            async with aclosing(merged(history, names)) as found:
                assert [each async for each in found] == at_once
        since_ms = at_once[30][1].time_ms
        async with aclosing(merged(history, names, since_ms=since_ms)) as found:
            assert [each async for each in found] == [each for each in at_once if each[1].time_ms >= since_ms]

    async def test_states_of_a_partition(self, said: Said, history_of: HistoryOf) -> None:
        states = await said.save()
        await said.bus.put(CLUSTER_BUCKET, "cells", b"1")
        history = await history_of(said.bus)
        assert list(await history.checkpoints(said.partition)) == states
        assert list(await history.checkpoints(said.partition, last=1)) == states[1:]
        assert list(await history.checkpoints(said.partition, last=5)) == states
        assert list(await history.checkpoints(said.partition, version=1)) == states[:1]
        assert list(await history.checkpoints(said.partition, version=1, last=1)) == states[:1]
        assert list(await history.checkpoints(said.partition, until_ms=states[1].time_ms - 1)) == states[:1]
        assert list(await history.checkpoints(said.partition, until_ms=0)) == []
        assert list(await history.checkpoints("scheduler.none")) == []
        async with aclosing(history.states(said.partition)) as found:
            assert [state async for state in found] == states

    async def test_how_the_cluster_is_set_up(self, said: Said, history_of: HistoryOf) -> None:
        await said.bus.put(CLUSTER_BUCKET, "cells", b"1")
        await said.bus.put(CLUSTER_BUCKET, "tenants.a", b"{}")
        history = await history_of(said.bus)
        values = await history.values(CLUSTER_BUCKET)
        assert (values["cells"], values["tenants.a"]) == (b"1", b"{}")
        assert await history.values("SHOAL_NONE") == {}
