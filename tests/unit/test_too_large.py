"""A rollout that a broker's message cannot start is rejected before anything of it is started."""

import asyncio
from typing import Any

import pytest

from shoal.bus.memory import MemoryBroker
from shoal.machine.core import Cause
from shoal.runtime.cluster import ensure_cluster
from shoal.runtime.options import Settings
from shoal.runtime.process import Context
from shoal.wire import messages as m, streams, subjects
from shoal.wire.codec import decode, encode
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_scheduler.service import run
from unit.toy_core import until

HOST = m.Snapshot("host", "host")
MIB = 1024**2
CAPACITY = m.CellCapacity(1000, 1, ("zygote",))


def fold(core: SchedulerCore, message: Any, now: int = 1) -> list[Any]:
    effects = core.handle(message, Cause("S", now, now))
    core.check()
    return [effect.message for effect in effects]  # type: ignore[union-attr]  # all are Publish


def said(spec: m.RolloutSpec, snapshot: m.Snapshot = HOST, most: int = MIB) -> list[Any]:
    """What follows when the template of such a rollout is known."""
    core = SchedulerCore(0)
    if most != MIB:
        fold(core, m.SettingsChanged((("message_bytes", str(most)),)))
    fold(core, CAPACITY)
    request = m.RolloutSubmitted("r", "t", "run", spec)
    assert len(encode(request)) < min(most, MIB)
    (asked,) = fold(core, request)
    assert isinstance(asked, m.ResolveTemplate)
    found = fold(core, m.TemplateResolved("t", spec.template, snapshot))
    if any(isinstance(each, m.RolloutRejected) for each in found):
        assert not core.books.rollouts
        assert fold(core, request) == []
    return found


def commands(size: int) -> m.RolloutSpec:
    return m.RolloutSpec("x", 256, commands=tuple(m.Command(argv=("run", "x" * size)) for _ in range(256)))


@pytest.mark.parametrize(
    ("field", "spec", "snapshot"),
    [
        ("warm", m.RolloutSpec("host", 2, warm="x=1\n" * 150_000), HOST),
        ("commands", commands(3900), m.Snapshot("d", "host", warm="x=1\n" * 15_000)),
        ("files", m.RolloutSpec("host", 2, files=(m.InputFile("/a", bytes(1_040_000)),)), HOST),
        (
            "template",
            m.RolloutSpec("x", 2, files=(m.InputFile("/a", bytes(500_000)),)),
            m.Snapshot("d", "host", warm="x" * 600_000),
        ),
        ("files", m.RolloutSpec("host", 100_000, files=(m.InputFile("/a", bytes(700_000)),)), HOST),
    ],
    ids=["warm twice", "commands and warm", "files", "warm template", "files and pieces of 100,000"],
)
def test_it_is_rejected_by_the_field_that_is_to_be_less(field: str, spec: m.RolloutSpec, snapshot: m.Snapshot) -> None:
    (refused,) = said(spec, snapshot)
    assert (refused.rollout, refused.code) == ("r", "bad_request")
    assert refused.detail.startswith(f"{field}: starting its sandboxes takes a message of up to ")
    assert "the broker takes 1048576; " in refused.detail


def test_what_fits_is_placed_in_one_message_that_the_broker_takes() -> None:
    place, *_ = said(commands(3900))
    assert isinstance(place, m.PlaceRequested)
    assert len(place.spec.commands) == 256
    assert 1_000_000 < len(encode(place)) < MIB


def test_what_the_broker_takes_is_what_counts() -> None:
    spec = m.RolloutSpec("host", 2, warm="x=1\n" * 150_000)
    assert isinstance(said(spec, most=2 * MIB)[0], m.PlaceRequested)
    (refused,) = said(m.RolloutSpec("host", 2, warm="x=1\n" * 50_000), most=MIB // 4)
    assert "the broker takes 262144; " in refused.detail


def test_also_where_the_template_is_known_already() -> None:
    core = SchedulerCore(0)
    fold(core, CAPACITY)
    fold(core, m.RolloutSubmitted("r1", "t", "run", m.RolloutSpec("host", 1)))
    fold(core, m.TemplateResolved("t", "host", HOST))
    large = m.RolloutSubmitted("r2", "t", "run", m.RolloutSpec("host", 1, warm="x=1\n" * 150_000))
    (refused,) = fold(core, large)
    assert (refused.rollout, refused.code) == ("r2", "bad_request")
    assert list(core.books.rollouts) == ["r1"]


def test_nothing_is_measured_of_what_was_given_up_meanwhile() -> None:
    core = SchedulerCore(0)
    fold(core, CAPACITY)
    fold(core, m.RolloutSubmitted("r", "t", "run", m.RolloutSpec("host", 2, start_within_ms=10)))
    (closed,) = fold(core, m.Tick(11), 11)
    assert isinstance(closed, m.SandboxesClosed)
    assert fold(core, m.TemplateResolved("t", "host", HOST), 12) == []
    assert isinstance(fold(core, closed, 13)[-1], m.RolloutConcluded)


async def test_a_scheduler_knows_what_its_broker_takes() -> None:
    broker = MemoryBroker(max_payload=MIB // 2)
    bus = broker.connect()
    stop = asyncio.Event()
    cells = await ensure_cluster(bus, 1)
    running = asyncio.create_task(run(Context(bus, cells, stop, Settings()), 100_000, "fair"))
    spec = m.RolloutSpec("host", 1, warm="x=1\n" * 100_000)
    log = streams.rollout(0).name

    def heard(kind: type[m.Message]) -> list[Any]:
        return [each for each in (decode(d.payload) for d in broker.messages(log)) if isinstance(each, kind)]

    await until(lambda: heard(m.SettingsChanged))
    await bus.publish(subjects.rollout_request(0, "t", "r"), encode(m.RolloutSubmitted("r", "t", "r", spec)), "in")
    await bus.publish(subjects.rollout_system(0), encode(m.TemplateResolved("t", "host", HOST)), "resolved")
    await until(lambda: heard(m.RolloutRejected))
    stop.set()
    await running
    assert [each.code for each in heard(m.RolloutRejected)] == ["bad_request"]
    assert not broker.messages(streams.dead().name)
