"""Policies by name are part of the log, so whoever folds it decides the same."""

import asyncio
from typing import Any

import pytest

from shoal.bus.memory import MemoryBroker
from shoal.machine.core import Cause, Core, LawBrokenError
from shoal.runtime.cluster import ensure_cluster
from shoal.runtime.shell import Shell
from shoal.wire import messages as m, streams, subjects
from shoal.wire.codec import decode
from shoal_placement.core.placement import PlacementCore
from shoal_scheduler.core.scheduler import SchedulerCore


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: SchedulerCore(0), {"order": "fifo", "quota": "7", "message_bytes": "900000"}),
        (lambda: PlacementCore(0), {"policy": "random"}),
    ],
)
def test_settings_are_state(make: Any, settings: dict[str, str]) -> None:
    core = make()
    before = core.dump()
    for wrong in ({"nonsense": "1"}, dict.fromkeys(settings, "nonsense")):
        with pytest.raises(LawBrokenError, match="settings"):
            core.handle(m.SettingsChanged(tuple(wrong.items())), Cause("S", 1, 1))
        assert core.dump() == before
    core.handle(m.SettingsChanged(tuple(settings.items())), Cause("S", 2, 2))
    assert core.settings == settings
    copy = make()
    copy.load(core.dump())
    assert copy.settings == settings
    assert copy.dump() == core.dump()


def test_an_order_of_turns_holds_from_where_it_was_said() -> None:
    core = SchedulerCore(0, quota=10)
    submitted = m.RolloutSubmitted("r", "t", "u", m.RolloutSpec("host", 11))
    core.handle(m.SettingsChanged((("quota", "11"),)), Cause("S", 1, 1))
    assert any(isinstance(e.message, m.ResolveTemplate) for e in core.handle(submitted, Cause("S", 2, 2)))  # type: ignore[union-attr]  # all are Publish


async def test_whoever_leads_says_what_it_was_told_and_only_where_it_is_news() -> None:
    broker = MemoryBroker()
    await ensure_cluster(broker.connect())
    stream = streams.rollout(0).name

    async def lead(order: str) -> Core:
        core = SchedulerCore(0)
        stop = asyncio.Event()
        shell = Shell(
            broker.connect(), core, name="scheduler.0", stream=stream, tick_subject=subjects.rollout_system(0),
            settings={"order": order, "quota": "100000"}, ttl_s=0.2,
        )  # fmt: skip
        running = asyncio.create_task(shell.run(stop))
        async with asyncio.timeout(10):
            while core.settings["order"] != order:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        stop.set()
        await running
        return core

    for order in ("fair", "fifo", "fifo", "fair"):
        await lead(order)
    said = [decode(each.payload) for each in broker.messages(stream)]
    assert [dict(each.settings)["order"] for each in said if isinstance(each, m.SettingsChanged)] == ["fifo", "fair"]
