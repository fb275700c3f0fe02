"""Nodes as they are listed: by what placement's boot of each executor says."""

from shoal.bus.memory import MemoryBroker
from shoal.client import listing
from shoal.runtime.cluster import ensure_cluster
from shoal.wire import subjects
from shoal.wire.codec import encode
from shoal.wire.messages import AnyMessage, ExecutorBeat, ExecutorJoined, ExecutorLeft, NodeSpec


async def test_what_a_boot_says_whose_name_another_has_taken_is_not_the_nodes_life() -> None:
    broker = MemoryBroker(lambda: now_ms)
    bus = broker.connect()
    now_ms = 1_000_000
    await ensure_cluster(bus)
    sent = 0

    async def say(*messages: AnyMessage) -> None:
        nonlocal sent
        for message in messages:
            sent += 1
            await bus.publish(subjects.placement_node(0), encode(message), f"t:{sent}")

    async def state() -> list[tuple[str, int, int]]:
        return [(each.state, each.slots, each.live) for each in await listing.nodes(bus, 1, 0, now_ms)]

    def joined(boot: str, slots: int) -> ExecutorJoined:
        return ExecutorJoined("e", boot, "zygote", (NodeSpec("n", slots, 2**30),))

    await say(joined("b1", 8), ExecutorBeat("e", "b1", 3, 0))
    assert await state() == [("alive", 8, 3)]
    await say(joined("b2", 4), ExecutorBeat("e", "b2", 1, 0), joined("b1", 8), ExecutorBeat("e", "b1", 3, 0))
    assert await state() == [("alive", 4, 1)]
    now_ms += listing.SILENT_AFTER_MS + 1
    await say(joined("b1", 8), ExecutorBeat("e", "b1", 3, 0))
    assert await state() == [("silent", 4, 1)]
    await say(ExecutorLeft("e", "b2"), joined("b2", 4), joined("b1", 8))
    assert await state() == [("left", 4, 1)]
    await say(joined("b3", 2))
    assert await state() == [("alive", 2, 0)]
