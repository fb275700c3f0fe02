"""Every core under any messages at all: each is folded or breaks a law, and what is left is sound and can be kept."""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from shoal.machine.core import Cause, Core, Publish, respond
from shoal.wire import messages as m
from shoal.wire.bounds import MOST
from shoal.wire.codec import decode, encode
from shoal_placement.core.placement import PlacementCore
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_snapshot.core.snapshot import SnapshotCore
from wire.samples import SAMPLES

CORES: dict[str, Callable[[], Core]] = {
    "scheduler": lambda: SchedulerCore(0, cells=2),
    "placement": lambda: PlacementCore(0),
    "snapshot": SnapshotCore,
}
SPECIMENS = list(SAMPLES.values())
NAMES = ("a", "r1", "r2", "t", "x" * 64, "", "a.b", "*", ">", "a b", "\0", "../x", "snapshot:" + "a" * 64, "host")
INTEGERS = (0, 1, -1, 2, 3, 255, 2**24, 2**31, 2**53, MOST, -MOST)
SEEDS = 60


def altered(draw: random.Random, value: Any) -> Any:
    """Return a value with one part of it another of its kind."""
    match value:
        case msgspec.Struct() if value.__struct_fields__:
            field = draw.choice(value.__struct_fields__)
            return msgspec.structs.replace(value, **{field: altered(draw, getattr(value, field))})
        case bool():
            return not value
        case m.EndReason():
            return draw.choice(list(m.EndReason))
        case int():
            return draw.choice(INTEGERS)
        case float():
            return draw.choice((0.0, -1.0, float(MOST)))
        case str():
            return draw.choice(NAMES)
        case tuple() if value:
            at = draw.randrange(len(value))
            return draw.choice(((), value * 2, (*value[:at], altered(draw, value[at]), *value[at + 1 :])))
    return value


SUBJECT = "shoal.rollout.0._._.system"
"""Of services: there, whatever a message is, it is folded."""


def drive(make: Callable[[], Core], seed: int, messages: int = 150) -> int:
    """Fold so many messages; returns how many of them broke no law."""
    draw, core, now, folded = random.Random(seed), make(), 1_700_000_000_000, 0
    for sequence in range(1, messages):
        message: Any = draw.choice(SPECIMENS)
        for _ in range(draw.choice((0, 0, 1, 1, 2, 3))):
            message = altered(draw, message)
        try:
            payload = encode(message)
            decode(payload)
        except ValueError:
            continue  # no message
        now += draw.choice((0, 1, 100, 60_000))
        before = core.dump()
        effects, broken = respond(core, SUBJECT, payload, Cause("S", sequence, now))
        assert not broken or core.dump() == before
        folded += not broken
        for effect in effects:
            assert not isinstance(effect, Publish) or encode(effect.message)
        core.check()
        core.wake_at_ms()
        state = core.dump()
        if sequence % 10 == 0:
            copy = make()
            copy.load(state)
            assert copy.dump() == state
            core = copy
    return folded


@pytest.mark.parametrize("name", CORES)
def test_whatever_comes_is_folded_or_breaks_a_law(name: str) -> None:
    assert sum(drive(CORES[name], seed) for seed in range(SEEDS)) > SEEDS * 10


HEDGED = m.SandboxesHedged("r1", 0, 2**20, ((0, 128), (130, 1)))


def test_a_hedge_of_sandboxes_there_are_not_breaks_a_law() -> None:
    core = SchedulerCore(0)
    core.handle(m.RolloutSubmitted("r1", "t", "u", m.RolloutSpec("host", 4)), Cause("S", 1, 1))
    before = core.dump()
    _, broken = respond(core, SUBJECT, encode(HEDGED), Cause("S", 2, 2))
    assert "are not those of rollout r1" in broken
    assert core.dump() == before


@pytest.mark.parametrize("wrong", [{"cell": 10_000}, {"cell": -1}, {"tenant": ">"}, {"run": "a b"}])
def test_a_request_that_nobody_could_be_told_of_breaks_a_law(wrong: dict[str, Any]) -> None:
    asked: Any = next(each for each in SPECIMENS if isinstance(each, m.PlaceRequested))
    asked = msgspec.structs.replace(asked, spec=msgspec.structs.replace(asked.spec, commands=()))
    core = PlacementCore(0)
    before = core.dump()
    _, broken = respond(core, SUBJECT, encode(msgspec.structs.replace(asked, **wrong)), Cause("S", 1, 1))
    assert f"{next(iter(wrong))}: " in broken
    assert core.dump() == before


def test_what_is_lent_is_never_more_than_can_be_kept() -> None:
    core = SchedulerCore(0, cells=2)
    broken = []
    for number in range(1, 12):
        lent = m.QuotaLent(1, number, "t", 1, (MOST, 0, 0, 0))
        broken.append(respond(core, SUBJECT, encode(lent), Cause("S", number, number))[1])
        SchedulerCore(0, cells=2).load(core.dump())
    assert not broken[0]
    assert all("cannot be lent to tenant t" in each for each in broken[1:])
