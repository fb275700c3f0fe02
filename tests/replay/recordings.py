"""Recordings for tests: what a simulated cluster under faults has left in its logs, as history."""

import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial

from shoal.archive.source import NOTHING, Bounds
from shoal.bus.protocol import Delivery
from shoal.machine.checkpoint import Checkpoint
from shoal.machine.service import Service
from shoal.replay.services import services
from shoal.wire.codec import encode
from shoal_scheduler.core.scheduler import SchedulerCore
from simulation.cluster import Cluster


class Recording:
    """The logs of a simulation; `first` are the streams whose beginnings are gone, and with what they begin."""

    def __init__(self, cluster: Cluster, first: Mapping[str, int] | None = None) -> None:
        self._values = {"cells": str(cluster.shape.cells).encode(), "id": b"c%d" % cluster.seed}
        self._first = first or {}
        self.messages: dict[str, list[Delivery]] = {}
        self._states: dict[str, list[Checkpoint]] = {}
        names = [f"SHOAL_{kind}_{cell}" for cell in range(cluster.shape.cells) for kind in ("ROLLOUT", "PLACEMENT")]
        names += ["SHOAL_SNAPSHOT", *(f"SHOAL_EXECUTOR_{each.name}" for each in cluster.executors)]
        for name in names:
            self.messages[name] = [
                Delivery(entry.subject, encode(entry.message), entry.sequence, entry.time_ms, entry.id)
                for entry in cluster.broker.log(name).entries
            ]
        for each in cluster.partitions:
            version = each.make().state_version
            for sequence, state in sorted(each.checkpoints):
                time_ms = each.log.entries[sequence - 1].time_ms if sequence else 0
                saved = Checkpoint(each.name, version, each.log.name, sequence, time_ms, state)
                self._states.setdefault(each.name, []).append(saved)

    async def streams(self) -> Sequence[str]:
        return sorted(self.messages)

    async def bounds(self, stream: str) -> Bounds:
        messages = self.messages.get(stream)
        return Bounds(self._first.get(stream, 1), len(messages)) if messages else NOTHING

    async def read(
        self, stream: str, *, after: int = 0, since_ms: int | None = None, until: int | None = None
    ) -> AsyncGenerator[Delivery, None]:
        for each in self.messages.get(stream, ()):
            if each.sequence > after and each.sequence >= self._first.get(stream, 1):
                if until is not None and each.sequence > until:
                    return
                if since_ms is None or each.time_ms >= since_ms:
                    yield each

    async def checkpoints(
        self, partition: str, *, version: int | None = None, until_ms: int | None = None, last: int | None = None
    ) -> Sequence[Checkpoint]:
        found = [
            each
            for each in self._states.get(partition, ())
            if version in (None, each.version) and (until_ms is None or each.time_ms <= until_ms)
        ]
        return found if last is None else found[-last:]

    async def states(self, partition: str) -> AsyncGenerator[Checkpoint, None]:
        for each in self._states.get(partition, ()):
            yield each

    async def values(self, bucket: str) -> Mapping[str, bytes]:
        return self._values

    async def close(self) -> None:
        """Nothing is open."""


def recorded(seed: int) -> tuple[Cluster, dict[str, Service]]:
    """Run a cluster under faults; return it, and the services as it had them."""
    cluster = Cluster(seed)
    cluster.run()
    return cluster, as_it_had(cluster)


def as_it_had(cluster: Cluster) -> dict[str, Service]:
    found = dict(services())
    make = partial(_scheduler, cluster.shape.quota)
    found["scheduler"] = dataclasses.replace(found["scheduler"], make=make)
    return found


def _scheduler(quota: int, cell: int, cells: int) -> SchedulerCore:
    return SchedulerCore(cell, quota, cells=cells)
