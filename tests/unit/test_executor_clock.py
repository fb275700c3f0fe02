"""Clocks that are wrong: what is left of a time is counted from when the broker stored the order, by no wall clock."""

import asyncio
import time

import msgspec
import pytest

from shoal.bus.memory import MemoryBroker
from shoal.runtime.cluster import ensure_cluster
from shoal.wire import streams, subjects
from shoal.wire.codec import decode, encode
from shoal.wire.messages import (
    AnyMessage,
    EndReason,
    NodeSpec,
    Resources,
    SandboxesEnded,
    SandboxesReady,
    Snapshot,
    StartSandboxes,
)
from shoal_executor.core import ExecutorCore
from shoal_executor.drivers.simulated import SimulatedDriver
from shoal_executor.service import ExecutorService, Offer
from shoal_executor.service.clock import Apart, now_ms
from unit.test_executor_recovery import Life, World, until, world

_ = world  # a fixture

AHEAD_S = 90.0
HOUR_MS = 3_600_000


def order(
    deadline_ms: int, rollout: str = "r1", *, lifetime_ms: int = 0, ready_by_ms: int = 0
) -> StartSandboxes:  # fmt: skip
    return StartSandboxes(
        "b1", "n1", rollout, "acme", "run", 0, 0, ((0, 1),), Snapshot("host", "host"), Resources(), (), (), (), "",
        deadline_ms, lifetime_ms=lifetime_ms, ready_by_ms=ready_by_ms,
    )  # fmt: skip


@pytest.mark.parametrize("ahead_s", [AHEAD_S, -AHEAD_S])
async def test_a_clock_that_is_wrong_ends_nothing_and_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead_s)
    broker = MemoryBroker(lambda: int(real() * 1000))
    bus = broker.connect()
    await ensure_cluster(bus)
    await bus.ensure([streams.executor("e1")])
    stop = asyncio.Event()
    service = ExecutorService(bus, SimulatedDriver(), Offer("e1", 0, (NodeSpec("n1", 8, 2**30),)), "b1")
    running = asyncio.create_task(service.run(stop))

    def said() -> list[AnyMessage]:
        return [decode(each.payload) for each in broker.messages("SHOAL_ROLLOUT_0")]

    def ended() -> list[tuple[str, EndReason]]:
        return [(each.rollout, each.reason) for each in said() if isinstance(each, SandboxesEnded)]

    await until(lambda: broker.messages("SHOAL_PLACEMENT_0"))
    broker_ms = int(real() * 1000)
    orders = (
        order(broker_ms + 60_000),
        order(broker_ms + 60_000, "lasting", lifetime_ms=60_000),
        order(broker_ms + 60_000, "short", lifetime_ms=100),
        order(broker_ms - 10_000, "late"),
        order(broker_ms - 10_000, "woken", ready_by_ms=broker_ms + 60_000),
        order(broker_ms - 10_000, "waited", ready_by_ms=broker_ms - 60_000),
    )
    for number, each in enumerate(orders):
        await bus.publish(subjects.executor_control("e1"), encode(each), f"t:{number}")
    await until(lambda: len(ended()) >= 4)
    assert sorted(ended()) == [
        ("late", EndReason.TIMED_OUT), ("short", EndReason.TIMED_OUT),
        ("waited", EndReason.DEADLINE), ("woken", EndReason.TIMED_OUT),
    ]  # fmt: skip
    assert {"r1", "lasting"} <= {each.rollout for each in said() if isinstance(each, SandboxesReady)}
    stop.set()
    await running


async def test_the_next_process_counts_on_from_when_the_first_took_the_order(world: World) -> None:
    first = await world.live("b1")
    sent_ms = now_ms()
    await world.order(1)  # due in 600 s, by the broker's clock
    await until(lambda: world.said(SandboxesReady))
    (group,) = first.service._core.groups.values()
    assert sent_ms + 595_000 < group.due_ms < now_ms() + 601_000
    await first.kill()
    second: Life = await world.live("b2")
    (again,) = second.service._core.groups.values()
    assert again.due_ms == group.due_ms
    assert second.service._deadlines._due.keys() == second.service._core.groups.keys()
    await second.leave()


def test_a_deadline_goes_with_its_group_into_a_checkpoint() -> None:
    core, twin = ExecutorCore("b1"), ExecutorCore("b1")
    core.start(order(HOUR_MS), 1234)
    core.start(msgspec.structs.replace(order(HOUR_MS), indices=((1, 1),)), 9999)  # the first counts
    twin.load(core.dump())
    assert [group.due_ms for group in twin.groups.values()] == [1234]


def test_clocks_that_are_apart_are_told_once_in_a_while_by_the_least_difference() -> None:
    apart = Apart()
    told = [apart.heard(at, at + ahead, at) for at, ahead in ((0, 90_000), (10_000, 70_000), (31_000, 99_000))]
    assert told == [None, None, 70_000]
    assert [apart.heard(at, at + 90_000, at) for at in range(32_000, 600_000, 1000)] == [None] * 568
    assert [apart.heard(at, at - 90_000, at) for at in range(640_000, 1_280_000, 10_000)].count(-90_000) == 1


def test_what_only_came_late_does_not_look_like_a_clock_that_is_apart() -> None:
    apart = Apart()
    for at in range(0, 100_000, 1000):
        late = 60_000 if at % 20_000 else 40  # most of them waited for an executor that was away
        assert apart.heard(at, at + late, at) is None


async def test_an_executor_says_that_its_clock_is_apart(
    monkeypatch: pytest.MonkeyPatch, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    life = await world.live("b1")
    monkeypatch.setattr(Apart, "heard", lambda *_: 90_000)
    await world.order(1)
    await until(lambda: world.said(SandboxesReady))
    told = capsys.readouterr().out
    assert "clock and the broker's are apart" in told
    assert "90.0" in told
    await life.leave()
