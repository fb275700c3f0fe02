"""What every bus does. Implementations inherit `BusConformance` and say how to connect."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import pytest

from shoal.bus.protocol import (
    Bus,
    BusError,
    Delivery,
    Entry,
    Kept,
    NoStreamError,
    Reader,
    Stored,
    StreamFullError,
    TooLargeError,
)
from shoal.wire.streams import Stream

BusFactory = Callable[[], Awaitable[Bus]]


class Log:
    """One stream of a test's own, and subjects in it."""

    def __init__(self, max_bytes: int = 16 * 1024**2) -> None:
        token = uuid4().hex[:12]
        self.prefix = f"test.{token}"
        self.stream = Stream(f"TEST_{token}", (f"{self.prefix}.>",), 3600.0, max_bytes)

    @property
    def name(self) -> str:
        return self.stream.name

    def subject(self, *tokens: str) -> str:
        return ".".join((self.prefix, *(tokens or ("a",))))


async def take(reader: Reader, count: int, within_s: float = 30.0) -> list[Delivery]:
    """Return exactly the next `count` messages of a reader."""
    found: list[Delivery] = []
    async with asyncio.timeout(within_s):
        while len(found) < count:
            found += await reader.batch(count - len(found))
    return found


async def nothing_more(reader: Reader) -> None:
    """Assert that a reader has no message ready. A late one would escape this, a skipped one never does."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await reader.batch()


class BusConformance:
    """Inherit, and provide `bus_factory`: each call is a new connection to the same broker."""

    @pytest.fixture
    async def bus(self, bus_factory: BusFactory) -> AsyncIterator[Bus]:
        bus = await bus_factory()
        yield bus
        await bus.close()

    @pytest.fixture
    async def log(self, bus: Bus) -> Log:
        log = Log()
        await bus.ensure([log.stream])
        return log

    # --- publishing

    async def test_messages_get_the_next_sequences_in_call_order(self, bus: Bus, log: Log) -> None:
        futures = [bus.publish(log.subject(), b"%d" % i, f"id-{i}") for i in range(3000)]
        stored = await asyncio.gather(*futures)
        assert [each.sequence for each in stored] == list(range(1, 3001))
        assert {each.stream for each in stored} == {log.name}
        assert not any(each.duplicate for each in stored)
        assert await bus.last_sequence(log.name) == 3000

    async def test_a_copy_with_a_known_id_is_dropped_and_says_where_the_first_is(self, bus: Bus, log: Log) -> None:
        first = await bus.publish(log.subject(), b"one", "same")
        other = await bus.publish(log.subject(), b"two", "other")
        copy = await bus.publish(log.subject(), b"one again", "same")
        assert (first.sequence, first.duplicate) == (1, False)
        assert (other.sequence, other.duplicate) == (2, False)
        assert (copy.sequence, copy.duplicate) == (1, True)
        reader = await bus.reader(log.name)
        assert [message.payload for message in await take(reader, 2)] == [b"one", b"two"]
        await nothing_more(reader)

    async def test_another_connection_knows_the_ids_too(self, bus: Bus, log: Log, bus_factory: BusFactory) -> None:
        await bus.publish(log.subject(), b"one", "same")
        other = await bus_factory()
        try:
            assert (await other.publish(log.subject(), b"one", "same")).duplicate
        finally:
            await other.close()

    async def test_a_full_stream_refuses(self, bus: Bus) -> None:
        small = Log(max_bytes=64 * 1024)
        await bus.ensure([small.stream])
        futures = [bus.publish(small.subject(), bytes(8 * 1024), f"id-{i}") for i in range(20)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        refused = [each for each in results if isinstance(each, BaseException)]
        assert refused
        assert all(isinstance(each, StreamFullError) for each in refused)
        kept = len(results) - len(refused)
        assert await bus.last_sequence(small.name) == kept
        assert len(await take(await bus.reader(small.name), kept)) == kept

    async def test_room_in_a_full_stream_is_used(self, bus: Bus) -> None:
        small = Log(max_bytes=16 * 1024)
        await bus.ensure([small.stream])
        with pytest.raises(StreamFullError):
            await asyncio.gather(*(bus.publish(small.subject(), bytes(8 * 1024), f"id-{i}") for i in range(3)))
        larger = Stream(small.name, small.stream.subjects, 3600.0, 1024**2)
        await bus.ensure([larger])
        await bus.ensure([small.stream])  # as a service does that knows nothing of the room that was made
        assert not (await bus.publish(small.subject(), bytes(8 * 1024), "id-2")).duplicate

    async def test_a_full_stream_that_makes_room_loses_its_oldest(self, bus: Bus) -> None:
        small = Log(max_bytes=64 * 1024)
        await bus.ensure([small.stream])  # as one of before is, that refuses
        many = (bus.publish(small.subject(), bytes(8 * 1024), f"id-{i}") for i in range(20))
        told = await asyncio.gather(*many, return_exceptions=True)  # all of them: one may be stored after a refusal
        assert {type(each) for each in told} == {Stored, StreamFullError}
        last = await bus.last_sequence(small.name)
        await bus.ensure([replace(small.stream, makes_room=True)])
        stored = [await bus.publish(small.subject(), bytes(8 * 1024), f"more-{i}") for i in range(20)]
        assert [each.sequence for each in stored] == list(range(last + 1, last + 21))
        assert last < await bus.first_sequence(small.name) <= last + 20

    async def test_a_message_the_broker_cannot_take_is_refused_and_harms_no_other(self, bus: Bus, log: Log) -> None:
        assert bus.max_payload == 1024**2
        before = bus.publish(log.subject(), b"before", "before")
        large = bus.publish(log.subject(), bytes(1024**2), "large")  # exactly the limit; the id does not fit
        after = bus.publish(log.subject(), b"after", "after")
        with pytest.raises(TooLargeError):
            await large
        assert [(await before).sequence, (await after).sequence] == [1, 2]

    async def test_a_subject_no_stream_keeps(self, bus: Bus) -> None:
        with pytest.raises(NoStreamError):
            await bus.publish("nobody.keeps.this", b"", "id")

    # --- reading

    async def test_a_delivery_is_what_was_published(self, bus: Bus, log: Log) -> None:
        await bus.publish(log.subject("x", "y"), b"\x00\xff", "the:id:7")
        await bus.publish(log.subject("z"), b"", "second")
        reader = await bus.reader(log.name)
        first, second = await take(reader, 2)
        assert (first.subject, first.payload, first.sequence, first.id) == (
            log.subject("x", "y"),
            b"\x00\xff",
            1,
            "the:id:7",
        )
        assert (second.payload, second.sequence) == (b"", 2)
        assert 1_600_000_000_000 < first.time_ms <= second.time_ms

    async def test_a_reader_gets_everything_once_in_order(self, bus: Bus, log: Log) -> None:
        reader = await bus.reader(log.name)
        taking = asyncio.create_task(take(reader, 10_000))
        for start in range(0, 10_000, 1000):
            await asyncio.gather(*(bus.publish(log.subject(), b"%d" % i, f"{i}") for i in range(start, start + 1000)))
        found = await taking
        assert [message.sequence for message in found] == list(range(1, 10_001))
        assert [message.payload for message in found] == [b"%d" % i for i in range(10_000)]
        await nothing_more(reader)

    async def test_a_batch_holds_at_most_its_limit(self, bus: Bus, log: Log) -> None:
        await asyncio.gather(*(bus.publish(log.subject(), b"", f"{i}") for i in range(10)))
        reader = await bus.reader(log.name)
        sizes: list[int] = []
        while sum(sizes) < 10:
            sizes.append(len(await reader.batch(3)))
        assert all(1 <= size <= 3 for size in sizes)

    async def test_batch_waits_for_the_first_message(self, bus: Bus, log: Log) -> None:
        reader = await bus.reader(log.name)
        waiting = asyncio.create_task(reader.batch())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await bus.publish(log.subject(), b"now", "id")
        assert [message.payload for message in await waiting] == [b"now"]

    async def test_a_cancelled_batch_loses_nothing(self, bus: Bus, log: Log) -> None:
        reader = await bus.reader(log.name)
        found: list[int] = []
        for i in range(50):
            waiting = asyncio.create_task(reader.batch())
            bus.publish(log.subject(), b"", f"{i}")
            for _ in range(i % 7):
                await asyncio.sleep(0)
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                found += [message.sequence for message in await waiting]
        found += [message.sequence for message in await take(reader, 50 - len(found))]
        assert found == list(range(1, 51))

    async def test_after(self, bus: Bus, log: Log) -> None:
        await asyncio.gather(*(bus.publish(log.subject(), b"", f"{i}") for i in range(10)))
        assert [message.sequence for message in await take(await bus.reader(log.name, after=7), 3)] == [8, 9, 10]
        last = await bus.reader(log.name, after=10)
        await bus.publish(log.subject(), b"", "eleventh")
        assert [message.sequence for message in await take(last, 1)] == [11]

    async def test_only_new_ones(self, bus: Bus, log: Log) -> None:
        await bus.publish(log.subject(), b"old", "old")
        reader = await bus.reader(log.name, after=None)
        await bus.publish(log.subject(), b"new", "new")
        assert [message.payload for message in await take(reader, 1)] == [b"new"]

    async def test_since(self, bus: Bus, log: Log) -> None:
        await bus.publish(log.subject(), b"old", "old")
        await asyncio.sleep(0.05)
        await bus.publish(log.subject(), b"young", "young")
        young = (await take(await bus.reader(log.name), 2))[1]
        reader = await bus.reader(log.name, since_ms=young.time_ms)
        assert [message.payload for message in await take(reader, 1)] == [b"young"]
        future = await bus.reader(log.name, since_ms=young.time_ms + 1)
        await asyncio.sleep(0.05)
        await bus.publish(log.subject(), b"youngest", "youngest")
        assert [message.payload for message in await take(future, 1)] == [b"youngest"]

    async def test_filters(self, bus: Bus, log: Log) -> None:
        for i in range(12):
            await bus.publish(log.subject(f"k{i % 4}", "x"), b"%d" % i, f"{i}")
        one = await bus.reader(log.name, filters=[log.subject("k1", "*")])
        assert [message.payload for message in await take(one, 3)] == [b"1", b"5", b"9"]
        two = await bus.reader(log.name, after=4, filters=[log.subject("k0", ">"), log.subject("k3", "x")])
        assert [message.sequence for message in await take(two, 4)] == [5, 8, 9, 12]
        await nothing_more(one)
        await nothing_more(two)

    async def test_readers_do_not_disturb_each_other(self, bus: Bus, log: Log) -> None:
        readers = [await bus.reader(log.name) for _ in range(3)]
        await asyncio.gather(*(bus.publish(log.subject(), b"", f"{i}") for i in range(500)))
        for reader in readers:
            assert [message.sequence for message in await take(reader, 500)] == list(range(1, 501))

    async def test_a_closed_reader(self, bus: Bus, log: Log) -> None:
        reader = await bus.reader(log.name)
        waiting = asyncio.create_task(reader.batch())
        await asyncio.sleep(0.02)
        await reader.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(BusError):
            await reader.batch()
        await reader.close()

    async def test_an_unknown_stream(self, bus: Bus) -> None:
        with pytest.raises(NoStreamError):
            await bus.last_sequence("TEST_NONE")
        with pytest.raises(NoStreamError):
            await bus.first_sequence("TEST_NONE")
        with pytest.raises(NoStreamError):
            await bus.reader("TEST_NONE")

    async def test_the_first_sequence(self, bus: Bus, log: Log) -> None:
        assert (await bus.first_sequence(log.name), await bus.last_sequence(log.name)) == (1, 0)
        await bus.publish(log.subject(), b"", "id")
        assert (await bus.first_sequence(log.name), await bus.last_sequence(log.name)) == (1, 1)

    async def test_when_a_message_was_stored(self, bus: Bus, log: Log) -> None:
        await asyncio.gather(*(bus.publish(log.subject(), b"", f"{i}") for i in range(3)))
        told = [await bus.stored_ms(log.name, sequence) for sequence in (1, 2, 3)]
        assert told == [message.time_ms for message in await take(await bus.reader(log.name), 3)]
        assert await bus.stored_ms(log.name, 4) is None
        await bus.purge(log.name, 2)
        assert [await bus.stored_ms(log.name, sequence) for sequence in (1, 2, 3)] == [None, None, told[2]]
        await bus.purge(log.name, 3)
        assert await bus.stored_ms(log.name, 3) is None
        with pytest.raises(NoStreamError):
            await bus.stored_ms("TEST_NONE", 1)

    async def test_streams_by_name_with_what_they_keep(self, bus: Bus, log: Log) -> None:
        other = Log()
        await bus.ensure([other.stream])
        await bus.put("TEST_BUCKET", "key", b"value")
        await asyncio.gather(*(bus.publish(log.subject(), b"", f"{i}") for i in range(5)))
        await bus.purge(log.name, 2)
        assert await bus.streams(log.name) == {log.name: Kept(3, 5)}
        known = await bus.streams("TEST_")
        assert (known[log.name], known[other.name]) == (Kept(3, 5), Kept(1, 0))
        assert list(known) == sorted(known)
        assert not any("TEST_BUCKET" in name for name in await bus.streams())
        await bus.purge(log.name, 5)
        assert await bus.streams(log.name) == {log.name: Kept(6, 5)}
        assert await bus.streams("TEST_NONE") == {}

    async def test_the_last_of_a_subject(self, bus: Bus, log: Log) -> None:
        assert await bus.last_sequence(log.name, log.subject("a")) == 0
        for number, part in enumerate("aabab"):
            await bus.publish(log.subject(part), b"", f"id-{number}")
        assert await bus.last_sequence(log.name, log.subject("a")) == 4
        assert await bus.last_sequence(log.name, log.subject("b")) == 5
        assert await bus.last_sequence(log.name, log.subject("*")) == 5
        await bus.purge(log.name, 4)
        assert await bus.last_sequence(log.name, log.subject("a")) == 0
        with pytest.raises(NoStreamError):
            await bus.last_sequence("TEST_NONE", "a")

    async def test_expired_messages_are_not_read(self, bus: Bus) -> None:
        log = Log()
        short = Stream(log.name, log.stream.subjects, 1.0, 1024**2, dedupe_s=1.0)
        await bus.ensure([short])
        await bus.publish(log.subject(), b"old", "old")
        async with asyncio.timeout(30):
            while await bus.first_sequence(log.name) == 1:
                await asyncio.sleep(0.1)
        # Every replica forgets by its own clock, and a reader may be served by one that is a moment behind; what is
        # written meanwhile grows old, too.
        async with asyncio.timeout(30):
            while True:
                stored = await bus.publish(log.subject(), b"new", f"new {uuid4().hex}")
                message = (await take(await bus.reader(log.name), 1))[0]
                if message.payload != b"old":
                    break
        assert message.payload == b"new"
        assert 1 < message.sequence <= stored.sequence

    # --- purging

    async def test_purging_removes_the_oldest_only(self, bus: Bus, log: Log) -> None:
        for number in range(5):
            await bus.publish(log.subject(), b"%d" % number, f"{number}")
        await bus.purge(log.name, 3)
        assert (await bus.first_sequence(log.name), await bus.last_sequence(log.name)) == (4, 5)
        assert [each.payload for each in await take(await bus.reader(log.name), 2)] == [b"3", b"4"]
        await bus.purge(log.name, 2)
        assert await bus.first_sequence(log.name) == 4
        await bus.purge(log.name, 5)
        assert (await bus.publish(log.subject(), b"new", "new")).sequence == 6
        with pytest.raises(NoStreamError):
            await bus.purge("TEST_NONE", 1)

    # --- values

    async def test_values(self, bus: Bus) -> None:
        bucket = f"TEST_{uuid4().hex[:8]}"
        assert await bus.get(bucket, "key") is None
        first = await bus.put(bucket, "key", b"one")
        assert await bus.get(bucket, "key") == Entry(b"one", first)
        second = await bus.put(bucket, "key", b"")
        assert second > first
        assert await bus.get(bucket, "key") == Entry(b"", second)
        assert await bus.get(bucket, "other") is None

    async def test_only_what_was_seen_is_replaced(self, bus: Bus) -> None:
        bucket = f"TEST_{uuid4().hex[:8]}"
        first = await bus.replace(bucket, "key", b"one", 0)
        assert first is not None
        assert await bus.replace(bucket, "key", b"two", 0) is None
        second = await bus.replace(bucket, "key", b"two", first)
        assert second is not None
        await bus.put(bucket, "other", b"")
        assert await bus.replace(bucket, "key", b"three", first) is None
        assert await bus.get(bucket, "key") == Entry(b"two", second)
        assert await bus.replace(bucket, "key", b"three", second) is not None

    async def test_keys_and_deletion(self, bus: Bus) -> None:
        bucket = f"TEST_{uuid4().hex[:8]}"
        assert await bus.keys(bucket) == []
        await bus.delete(bucket, "nothing")
        for key in ("b.2", "a", "b.1", "b.1.x", "bc"):
            await bus.put(bucket, key, key.encode())
        assert await bus.keys(bucket) == ["a", "b.1", "b.1.x", "b.2", "bc"]
        assert await bus.keys(bucket, "b") == ["b.1", "b.1.x", "b.2"]
        await bus.delete(bucket, "b.1")
        await bus.delete(bucket, "b.1")
        assert await bus.get(bucket, "b.1") is None
        assert await bus.keys(bucket, "b") == ["b.1.x", "b.2"]
        assert await bus.replace(bucket, "b.1", b"again", 0) is not None

    async def test_of_many_that_replace_one_does(self, bus: Bus, bus_factory: BusFactory) -> None:
        bucket = f"TEST_{uuid4().hex[:8]}"
        others = [await bus_factory() for _ in range(4)]
        try:
            for revision in (0, await bus.put(bucket, "known", b"")):
                key = "known" if revision else "new"
                made = await asyncio.gather(
                    *(one.replace(bucket, key, b"%d" % i, revision) for i, one in enumerate(others))
                )
                (winner,) = [number for number, each in enumerate(made) if each is not None]
                assert await bus.get(bucket, key) == Entry(b"%d" % winner, made[winner] or 0)
        finally:
            for one in others:
                await one.close()

    # --- closing

    async def test_close_stores_what_was_published(self, bus: Bus, log: Log, bus_factory: BusFactory) -> None:
        leaving = await bus_factory()
        futures = [leaving.publish(log.subject(), b"", f"{i}") for i in range(2000)]
        await leaving.close()
        assert [future.result().sequence for future in futures] == list(range(1, 2001))
        assert await bus.last_sequence(log.name) == 2000
        with pytest.raises(BusError):
            await leaving.publish(log.subject(), b"", "late")
        await leaving.close()

    async def test_ensuring_twice_keeps_the_messages(self, bus: Bus, log: Log) -> None:
        await bus.publish(log.subject(), b"", "id")
        await asyncio.gather(*(bus.ensure([log.stream]) for _ in range(5)))
        assert await bus.last_sequence(log.name) == 1

    async def test_overlapping_streams_are_refused(self, bus: Bus, log: Log) -> None:
        with pytest.raises(BusError):
            await bus.ensure([Stream(f"{log.name}_2", (log.subject("x"),), 3600.0, 1024**2)])
