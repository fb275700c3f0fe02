"""A cluster's streams in memory, with what rollouts leave there."""

import itertools

from shoal.archive.live import LiveHistory
from shoal.archive.source import History
from shoal.bus.memory import MemoryBroker
from shoal.bus.protocol import Delivery
from shoal.wire import streams, subjects
from shoal.wire.codec import encode
from shoal.wire.messages import (
    AnyMessage,
    Command,
    DeadLetter,
    DestroySandboxes,
    EndReason,
    ExecutorBeat,
    PlaceRequested,
    ReleaseRequested,
    Resources,
    RolloutSpec,
    RolloutSubmitted,
    RunCommand,
    SandboxesReady,
    Snapshot,
    SnapshotAdded,
    StartSandboxes,
    Tick,
)

SNAPSHOT = Snapshot("d", "host")


class Cluster:
    """A broker on which two tenants' runs have left something in every stream; a second passes between messages."""

    def __init__(self, cells: int = 1) -> None:
        self.now = 1_700_000_000_000
        self.broker = MemoryBroker(lambda: self.now)
        self.cells = cells
        for stream in streams.cluster(cells):
            self.broker.ensure(stream)
        for cell in range(cells):
            self.broker.ensure(streams.executor(f"e{cell}"))
        self.broker.put(streams.CLUSTER_BUCKET, "cells", str(cells).encode())
        self.broker.put(streams.CLUSTER_BUCKET, "id", b"c1")
        self._ids = itertools.count()

    @property
    def history(self) -> LiveHistory:
        return LiveHistory(self.broker.connect())

    def say(self, subject: str, message: AnyMessage) -> None:
        self.now += 1000
        self.broker.store(subject, encode(message), f"said:{next(self._ids)}")

    def run(self, tenant: str, run: str, rollout: str, cell: int = 0) -> None:
        """Have one rollout of 4 happen."""
        spec, executor, indices = RolloutSpec("host", 4), f"e{cell}", ((0, 4),)
        self.say(subjects.rollout_request(cell, tenant, run), RolloutSubmitted(rollout, tenant, run, spec))
        placing = PlaceRequested(rollout, tenant, run, cell, 0, indices, spec, SNAPSHOT, 0)
        self.say(subjects.placement_request(cell), placing)
        started = StartSandboxes(
            "boot", f"n{cell}", rollout, tenant, run, cell, 0, indices, SNAPSHOT, Resources(), (), (), (), "", 0
        )
        self.say(subjects.executor_control(executor), started)
        ready = SandboxesReady(rollout, 0, indices, f"n{cell}", executor, "simulated")
        self.say(subjects.rollout_sandbox(cell, tenant, run), ready)
        command = RunCommand(f"{rollout}.c", tenant, run, cell, rollout, 1, 0, Command(line="true"))
        self.say(subjects.executor_command(executor, tenant), command)
        added = SnapshotAdded(tenant, SNAPSHOT, origin=f"{rollout}-1")
        self.say(subjects.snapshot(tenant, "added"), added)
        self.say(subjects.placement_request(cell), ReleaseRequested(rollout, (), EndReason.RELEASED))
        self.say(subjects.executor_control(executor), DestroySandboxes("boot", rollout, (), EndReason.RELEASED))
        letter = DeadLetter(
            "SHOAL_EXECUTOR_e0", 9, subjects.executor_command(executor, tenant), "e", "no", encode(command)
        )
        self.say(subjects.dead("SHOAL_EXECUTOR_e0"), letter)
        self.say(subjects.placement_node(cell), ExecutorBeat(executor, "boot"))
        self.say(subjects.rollout_system(cell), Tick(self.now))


async def everything(history: History) -> dict[str, list[Delivery]]:
    """Return all messages of a history, by stream."""
    return {name: [each async for each in history.read(name)] for name in await history.streams()}
