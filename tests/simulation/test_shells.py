"""The real processes on simulated time: shells with standbys, executors, and the client, over a bus that misbehaves."""

import asyncio
import contextlib
import itertools
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest

import shoal
from shoal.bus.memory import MemoryBroker
from shoal.bus.protocol import BusError, Delivery
from shoal.machine.core import Cause, Core, Inspect, Publish, Task
from shoal.runtime.cluster import ensure_cluster
from shoal.runtime.lease import Owner
from shoal.runtime.shell import Shell
from shoal.testing import virtual
from shoal.testing.faulty import FaultyBus, Trouble
from shoal.wire import streams, subjects
from shoal.wire.codec import decode
from shoal.wire.messages import DeadLetter, NodeSpec, RolloutConcluded
from shoal_executor.drivers.protocol import DriverReport, ExitSink, Started, StartFailed, StartSpec
from shoal_executor.drivers.simulated import Profile, SimulatedDriver
from shoal_executor.service import ExecutorService, Offer
from shoal_placement.core.placement import PlacementCore
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_snapshot.core.snapshot import SnapshotCore
from shoal_snapshot.inspecting import Inspector

R = TypeVar("R")

SEEDS = 24
BEGAN_S = 1_700_000_000
"""What every clock shows at the beginning, in seconds since the epoch."""

SLOTS = 24
LONGEST_S = 900
"""Simulated seconds within which all rollouts are over."""
SETTLING_S = 60

PARTITIONS: dict[str, tuple[str, str | None, Callable[[], Core]]] = {
    "scheduler.0": (streams.rollout(0).name, subjects.rollout_system(0), lambda: SchedulerCore(0)),
    "placement.0": (streams.placement(0).name, subjects.placement_tick(0), lambda: PlacementCore(0)),
    "snapshot": (streams.snapshot().name, None, SnapshotCore),
}
"""Each with its stream, where its Ticks go, and its core."""

Life = Callable[[FaultyBus, int], Awaitable[None]]


async def look_at(task: Task) -> Sequence[Publish]:
    assert isinstance(task, Inspect)
    return await Inspector().perform(task)


class Process:
    """Something that runs, is killed and started again, or stopped for a while."""

    def __init__(self, system: "System", life: Life) -> None:
        self._system = system
        self._life = life
        self._lives = 0
        self.bus: FaultyBus | None = None
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._lives += 1
        self.bus = FaultyBus(self._system.broker, self._system.random, self._system.trouble, self._died)
        self.task = asyncio.create_task(self._run(self.bus, self._lives))

    async def _run(self, bus: FaultyBus, life: int) -> None:
        while True:
            try:
                await self._life(bus, life)
                return
            except self._system.bearable:
                await asyncio.sleep(0.5)  # as its supervisor does

    async def kill(self) -> None:
        assert self.bus is not None
        assert self.task is not None
        self.bus.die()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if not self.task.cancelled() and (error := self.task.exception()) is not None:
            raise error

    async def live_again(self) -> None:
        """Be killed, and started a while later."""
        await self.kill()
        await asyncio.sleep(self._system.random.uniform(0, 2))
        assert self.task is not None
        if self.task.done():
            self.start()

    def _died(self) -> None:
        self._system.reborn.append(asyncio.create_task(self.live_again()))


class Machine(SimulatedDriver):
    """A node, which knows what really runs on it, whatever placement thinks."""

    def __init__(self, system: "System", profile: Profile) -> None:
        super().__init__(profile)
        self._system = system

    async def open(self, on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
        return replace(await super().open(on_exit, keep), starts_at_once=self._system.random.choice((0, 1, 8)))

    async def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
        async for outcome in super().start(names, spec):
            self._system.started.update(outcome.names if isinstance(outcome, Started) else ())
            self._system.most = max(self._system.most, len(await self.list()))
            yield outcome


class System:
    """A cluster of real processes but for the broker, the sandboxes and the clock."""

    bearable: tuple[type[Exception], ...] = (BusError,)
    """What a process may end with, to be started again."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.trouble = Trouble.draw(self.random)
        self.broker = MemoryBroker()
        self.replicas = self.random.choice((1, 2, 3))
        self.checkpoint_every = self.random.choice((1, 20, 1_000_000))
        self.processes: dict[str, Process] = {}
        self.shells: dict[tuple[str, int], Shell] = {}
        self.machines: dict[str, Machine] = {}
        self.reborn: list[asyncio.Task[None]] = []
        self.started: Counter[str] = Counter()
        self.most = 0

    async def start(self) -> None:
        await ensure_cluster(self.broker.connect())
        for partition in PARTITIONS:
            for number in range(self.replicas):
                self.processes[f"{partition}#{number}"] = Process(self, partial(self._serve, partition, number))
        for name in ("e1", "e2"):
            self.processes[name] = Process(self, partial(self._execute, name))
        for process in self.processes.values():
            process.start()

    async def _serve(self, partition: str, number: int, bus: FaultyBus, life: int) -> None:
        stream, tick, _ = PARTITIONS[partition]
        shell = Shell(
            bus, self.core(partition), name=partition, stream=stream, tick_subject=tick, perform=look_at,
            owner=Owner(f"{partition}-{number}-{life}"), checkpoint_every=self.checkpoint_every,
        )  # fmt: skip
        self.shells[partition, number] = shell
        await shell.run()

    def core(self, partition: str) -> Core:
        """Return what serves a partition."""
        return PARTITIONS[partition][2]()

    async def _execute(self, name: str, bus: FaultyBus, life: int) -> None:
        machine = self.machines[name] = Machine(self, Profile(self.random.randrange(100), start_ms=20, command_ms=300))
        offer = Offer(name, 0, (NodeSpec(f"n{name}", SLOTS, 2**40),))
        await ExecutorService(bus, machine, offer, f"b{life}").run(asyncio.Event())

    async def misfortune(self) -> None:
        """Kill and stop processes, for ever."""
        while True:
            await asyncio.sleep(self.random.uniform(0.5, 6))
            process = self.processes[self.random.choice(sorted(self.processes))]
            if self.random.random() < 0.6:
                await process.live_again()
            else:
                assert process.bus is not None
                process.bus.freeze()
                await asyncio.sleep(self.random.choice((0.5, 3, 5)))
                process.bus.thaw()

    async def settle(self) -> None:
        """Let nothing go wrong any more, and what is on its way arrive."""
        self.trouble = Trouble()
        for process in self.processes.values():
            assert process.bus is not None
            process.bus.thaw()
            process.bus.trouble = self.trouble
        await asyncio.gather(*self.reborn)
        for process in self.processes.values():
            assert process.task is not None
            if process.task.done():
                process.start()
        await asyncio.sleep(SETTLING_S)
        async with asyncio.timeout(SETTLING_S):  # executors go on beating, so there is often one more message
            while not all(
                shell.position == len(self.broker.messages(PARTITIONS[partition][0]))
                for (partition, _), shell in self.shells.items()
            ):
                await asyncio.sleep(0.01)

    async def check(self) -> None:
        """Every law but those of the rollouts, which their trainer knows."""
        assert self.most <= SLOTS, f"{self.most} sandboxes on a node of {SLOTS} slots"
        assert not (twice := [name for name, count in self.started.items() if count > 1]), f"started twice: {twice}"
        for machine in self.machines.values():
            assert await machine.list() == [], "these run, and nobody owns them"
        for (partition, number), shell in self.shells.items():
            core = self.replay(partition, shell.position)
            assert shell._core.dump() == core.dump(), f"{partition}#{number} has another state than its log"
            if isinstance(core, PlacementCore):
                held = [node.held for executor in core._executors.values() for node in executor.by_number if node.held]
                assert not held, f"placement still holds {held}"
            if isinstance(core, SchedulerCore):
                assert not core.books.rollouts
                assert not core.books.rooms.given

    def replay(self, partition: str, until: int) -> Core:
        """Fold a partition's log from its beginning, up to and with a sequence."""
        stream, _, make = PARTITIONS[partition]
        core = make()
        for number, each in enumerate(self.broker.messages(stream)[:until], 1):
            assert each.sequence == number
            core.handle(decode(each.payload), Cause(stream, each.sequence, each.time_ms))
        core.check()
        return core

    async def stop(self) -> None:
        for process in self.processes.values():
            await process.kill()


async def rollout(system: System, cluster: shoal.Cluster, number: int) -> tuple[str, int, list[shoal.SandboxOutcome]]:
    await asyncio.sleep(system.random.uniform(0, 20))
    n = system.random.choice((1, 7, 40))
    asked = await cluster.rollout(
        "host", n=n, command=f"work {number}", timeout="1h", on_lost="restart", max_attempts=200
    )
    outcomes = [outcome async for outcome in asked.outcomes()]
    await asked.wait()
    return asked.id, n, outcomes


@contextlib.asynccontextmanager
async def beset(system: System) -> AsyncIterator[tuple[shoal.Cluster, FaultyBus]]:
    """Start it and connect to it, with misfortune all the while; what is done meanwhile has to come to its end."""
    await system.start()
    client = FaultyBus(system.broker, system.random, Trouble(delay_s=system.trouble.delay_s))
    while await client.get(streams.CLUSTER_BUCKET, "cells") is None:
        await asyncio.sleep(0.1)
    async with shoal.connect("nats://simulated", bus=client) as cluster:
        misfortune = asyncio.create_task(system.misfortune())
        async with asyncio.timeout(LONGEST_S):
            yield cluster, client
        misfortune.cancel()
        await asyncio.gather(misfortune, return_exceptions=True)


async def whole_life(seed: int) -> System:
    system = System(seed)
    async with beset(system) as (cluster, _):
        found = await asyncio.gather(*(rollout(system, cluster, number) for number in range(5)))
    concluded = Counter(
        message.rollout
        for each in system.broker.messages(streams.rollout(0).name)
        if isinstance(message := decode(each.payload), RolloutConcluded)
    )
    for id, n, outcomes in found:
        assert sorted(outcome.index for outcome in outcomes) == list(range(n))
        assert {outcome.reason for outcome in outcomes} == {"succeeded"}
        assert concluded[id] == 1
    letters = [decode(each.payload) for each in system.broker.messages("SHOAL_DEAD")]
    assert letters == [], [each.reason for each in letters if isinstance(each, DeadLetter)]
    await system.settle()
    await system.check()
    await system.stop()
    return system


def simulate(seed: int) -> System:
    """Run a whole life of a cluster, each time the same for a seed."""
    return simulated(whole_life(seed))


def simulated(life: Coroutine[Any, Any, R]) -> R:
    """Run it, each time the same: ids that would be random are counted, and every clock is the loop's."""
    numbers = itertools.count()

    def count() -> uuid.UUID:
        return uuid.UUID(int=next(numbers))

    def nanoseconds(began_s: int = 0) -> int:
        return began_s * 10**9 + int(asyncio.get_running_loop().time() * 1e9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shoal.client.cluster.new_id", lambda: f"r{next(numbers):015d}")
        patch.setattr("shoal.runtime.performer.uuid4", count)
        patch.setattr("shoal.runtime.ticker.uuid4", count)
        patch.setattr("secrets.token_hex", lambda n=8: f"{next(numbers):0{2 * n}x}")
        patch.setattr("time.monotonic", lambda: nanoseconds() / 1e9)
        patch.setattr("time.monotonic_ns", nanoseconds)
        patch.setattr("time.time", lambda: nanoseconds(BEGAN_S) / 1e9)
        patch.setattr("time.time_ns", lambda: nanoseconds(BEGAN_S))
        patch.setattr("time.clock_gettime_ns", lambda _: nanoseconds())
        return virtual.run(life)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_rollout_comes_through(seed: int) -> None:
    simulate(seed)


def test_a_seed_repeats_itself() -> None:
    def logs() -> list[list[Delivery]]:
        broker = simulate(SEEDS).broker
        return [list(broker.messages(name)) for name in broker.names()]

    assert logs() == logs()


def test_time_passes_only_where_somebody_waits() -> None:
    async def wait() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(1800))
        assert await asyncio.to_thread(lambda: 7) == 7
        return loop.time() - began

    assert virtual.run(wait()) == pytest.approx(3600)


def test_a_wait_without_end_is_an_error() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(virtual.StuckError):
        virtual.run(wait())
