"""Cores that fail on a message each: whatever else happens to their processes, nothing but these messages is lost."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from shoal.archive.archived import ArchiveHistory, series_of
from shoal.archive.exporting import export
from shoal.archive.live import LiveHistory
from shoal.archive.source import ArchiveError, History
from shoal.archive.verifying import verify as verify_archive
from shoal.bus.memory import MemoryBroker
from shoal.bus.protocol import BusError
from shoal.machine.core import Cause, Core, Effect
from shoal.machine.passing import decoded
from shoal.machine.service import Service
from shoal.replay.rebuilding import rebuild
from shoal.replay.services import services
from shoal.replay.verifying import verify
from shoal.runtime.wall import PassedOverError
from shoal.wire import messages as m, streams, subjects
from shoal.wire.codec import decode, encode
from shoal_placement.core.placement import PlacementCore
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_snapshot.core.snapshot import SnapshotCore
from simulation.test_shells import PARTITIONS, System, beset, rollout, simulated

SEEDS = 12
NODE = m.NodeSpec("poison", 24, 2**40)
POISON: dict[str, tuple[str, m.AnyMessage]] = {
    "scheduler.0": (
        subjects.rollout_request(0, "poison", "r"),
        m.RolloutSubmitted("poison", "poison", "r", m.RolloutSpec("host", 1)),
    ),
    "placement.0": (subjects.placement_node(0), m.ExecutorJoined("poison", "b", "zygote", (NODE,))),
    "snapshot": (subjects.snapshot("poison", "request"), m.ListSnapshots("poison", "poison")),
}
"""To each partition what its core fails on, and would act upon: by subject."""
BAD = [message for _, message in POISON.values()]


class PlantedError(Exception):
    """A core fails."""


class FragileScheduler(SchedulerCore):
    """Fails, and what was its state is gone."""

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        return vanish(self) if message in BAD else super().handle(message, cause)


class FragilePlacement(PlacementCore):
    """Fails, and what was its state is gone."""

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        return vanish(self) if message in BAD else super().handle(message, cause)


class FragileSnapshot(SnapshotCore):
    """Fails, and what was its state is gone."""

    def handle(self, message: m.AnyMessage, cause: Cause) -> Sequence[Effect]:
        return vanish(self) if message in BAD else super().handle(message, cause)


def vanish(core: Core) -> Sequence[Effect]:
    vars(core).clear()
    raise PlantedError


FRAGILE: dict[str, Callable[[], Core]] = {
    "scheduler.0": lambda: FragileScheduler(0), "placement.0": lambda: FragilePlacement(0), "snapshot": FragileSnapshot,
}  # fmt: skip


class Poisoned(System):
    """A cluster whose cores fail on what is poison to them."""

    bearable = (BusError, PlantedError, PassedOverError)

    def core(self, partition: str) -> Core:
        return FRAGILE[partition]()

    def replay(self, partition: str, until: int) -> Core:
        stream, _, make = PARTITIONS[partition]
        core = make()
        for each in self.broker.messages(stream)[:until]:
            if (message := decode(each.payload)) not in BAD:
                core.handle(message, Cause(stream, each.sequence, each.time_ms))
        return core


async def life(seed: int, place: Path) -> System:
    """Live, and be told of, all by the same clock: an executor's inbox ages."""
    system = Poisoned(seed)
    async with beset(system) as (cluster, client):
        asked = [asyncio.create_task(rollout(system, cluster, number)) for number in range(4)]
        for partition, (subject, message) in POISON.items():
            await asyncio.sleep(system.random.uniform(0, 5))
            await client.publish(subject, encode(message), f"poison for {partition}")
        found = await asyncio.gather(*asked)
    for _, n, outcomes in found:
        assert sorted(outcome.index for outcome in outcomes) == list(range(n))
        assert {outcome.reason for outcome in outcomes} == {"succeeded"}
    await system.settle()
    await system.check()
    await system.stop()
    put_aside(system)
    await recorded(system, place)
    return system


def put_aside(system: System) -> None:
    """Each core's poison is passed over, with a letter, and nothing else is."""
    values = system.broker.bucket(streams.CLUSTER_BUCKET)
    for partition, (_, message) in POISON.items():
        record = decoded(values[streams.passed_key(partition)].value, partition)
        (passed,) = record.passed
        assert record.noted is None
        found = system.broker.messages(PARTITIONS[partition][0])[passed.sequence - 1]
        assert decode(found.payload) == message
    letters = Counter[str]()
    for each in system.broker.messages("SHOAL_DEAD"):
        letter = decode(each.payload)
        assert isinstance(letter, m.DeadLetter)
        assert decode(letter.payload) in BAD
        letters[letter.reader] += 1
    assert letters == dict.fromkeys(POISON, 1)


def fragile() -> dict[str, Service]:
    """Return the services with cores that fail."""
    return {
        name: dataclasses.replace(service, make=partial(_made, service)) for name, service in services().items()
    }  # fmt: skip


def _made(service: Service, cell: int, _cells: int) -> Core:
    return FRAGILE[service.partition(cell)]()


async def told_alike(history: History, system: System) -> None:
    """Whoever folds what is recorded comes to what the services came to, with cores that fail on poison or do not."""
    for known in (services(), fragile()):
        found = await verify(history, known)
        assert found.divergence is None, found.divergence.what
        assert sum(found.compared.values()) > 15
        for (partition, _), shell in system.shells.items():
            service, _, cell = partition.partition(".")
            for checkpoints in (False, True):
                built = await rebuild(
                    history, known[service], int(cell or 0), sequence=shell.position, checkpoints=checkpoints
                )
                assert built.core.dump() == shell._core.dump()


async def recorded(system: System, place: Path) -> None:
    history = LiveHistory(system.broker.connect())
    await told_alike(history, system)
    path = place / "log.shoal"
    await export(history, path)
    series = series_of(path)
    assert (await verify_archive(series)).whole
    archived = await ArchiveHistory.open(path)
    await told_alike(archived, system)
    await forgotten(system.broker, history)


async def forgotten(broker: MemoryBroker, history: LiveHistory) -> None:
    """Without the word that they were passed over, the same logs are told differently, or not at all."""
    bus = broker.connect()
    for partition in POISON:
        await bus.delete(streams.CLUSTER_BUCKET, streams.passed_key(partition))
    found = await verify(history, services())
    assert found.divergence is not None or found.unfinished
    with pytest.raises(ArchiveError, match=r"this version fails on it \(PlantedError at "):
        await verify(history, fragile())


@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_is_lost_but_what_a_core_fails_on(seed: int, tmp_path: Path) -> None:
    simulated(life(seed, tmp_path))
