"""The three cores and a toy executor on a seeded heap of events: duplicates, delays, lost executors."""

import heapq
import random
from typing import Any

import pytest

from shoal.machine import ranges
from shoal.machine.core import Cause, Inspect, LawBrokenError
from shoal.wire import messages as m
from shoal_placement.core.placement import PlacementCore
from shoal_scheduler.core.scheduler import SchedulerCore
from shoal_snapshot.core import SnapshotCore

HOST = m.Snapshot("host", "host")
LIMIT = 20_000


class World:
    def __init__(self, seed: int, placement: type[PlacementCore] = PlacementCore) -> None:
        self.random = random.Random(seed)
        self.cores: dict[str, Any] = {
            "rollout": SchedulerCore(0),
            "placement": placement(0),
            "snapshot": SnapshotCore(),
        }
        self.heap: list[tuple[int, int, str, Any]] = []
        self.number = self.now = 0
        self.boots = {f"e{i}": 0 for i in range(3)}
        self.asked: dict[str, int] = {}
        self.concluded: dict[str, int] = {}
        self.started: list[tuple[str, int, int]] = []
        for name in self.boots:
            self.join(name)
        for i in range(4):
            n = self.random.randint(1, 12)
            on_lost = self.random.choice(list(m.OnLost))
            spec = m.RolloutSpec("host", n, (m.Command(("true",)),), timeout_ms=60_000, on_lost=on_lost)
            self.asked[f"r{i}"] = n
            self.send("rollout", m.RolloutSubmitted(f"r{i}", f"t{i % 2}", "run", spec), copies=2)
        if self.random.random() < 0.5:
            self.send("rollout", m.RolloutCancelled("r0"), copies=2)

    def send(self, inbox: str, message: Any, copies: int = 1) -> None:
        for _ in range(copies):
            self.number += 1
            heapq.heappush(self.heap, (self.now + self.random.randint(1, 300), self.number, inbox, message))

    def join(self, name: str) -> None:
        joined = m.ExecutorJoined(name, f"b{self.boots[name]}", "zygote", (m.NodeSpec(f"n{name}", 4, 2**40),))
        self.send("placement", joined, copies=2)

    def run(self) -> None:
        for _ in range(LIMIT):
            if len(self.concluded) == len(self.asked):
                return
            wakes = [(w, i) for i in ("rollout", "placement") if (w := self.cores[i].wake_at_ms()) is not None]
            if wakes and (not self.heap or min(wakes)[0] < self.heap[0][0]):
                due, inbox = min(wakes)
                self.now = max(self.now, due)
                self.fold(inbox, m.Tick(due))
                continue
            self.now, _, inbox, message = heapq.heappop(self.heap)
            if inbox.startswith("e"):
                self.execute(inbox, message)
            else:
                self.fold(inbox, message)
        raise AssertionError("rollouts do not conclude")

    def fold(self, inbox: str, message: Any) -> None:
        self.number += 1
        core = self.cores[inbox]
        effects = core.handle(message, Cause(inbox, self.number, self.now))
        core.check()
        for effect in effects:
            if isinstance(effect, Inspect):
                self.send("snapshot", m.TemplateInspected(effect.template, HOST), copies=2)
                continue
            if isinstance(effect.message, m.RolloutConcluded):
                name = effect.message.rollout
                assert name not in self.concluded
                self.concluded[name] = sum(count for _, count in effect.message.counts)
            part = effect.subject.split(".")
            self.send(part[2] if part[1] == "executor" else part[1], effect.message, self.random.randint(1, 2))

    def execute(self, name: str, message: Any) -> None:
        boot = f"b{self.boots[name]}"
        if not isinstance(message, m.StartSandboxes) or message.boot != boot:
            return
        if self.random.random() < 0.1:
            self.boots[name] += 1
            self.join(name)
            return
        ids = [(message.rollout, message.attempt, i) for i in ranges.indices(message.indices)]
        new = [i for each in ids if each not in self.started for i in (each[2],)]
        self.started += ids
        node = f"n{name}"
        results = tuple(m.SandboxResult(i, m.CommandResult(0), 1) for i in new)
        if not results:
            return
        done = m.SandboxesFinished(message.rollout, message.attempt, node, name, "zygote", results)
        self.send("rollout", done, copies=2)
        freed = m.SlotsReleased(name, boot, node, message.rollout, message.attempt, ranges.collect(new))
        self.send("placement", freed, copies=2)


def test_every_rollout_concludes_and_each_index_once() -> None:
    for seed in range(200):
        world = World(seed)
        try:
            world.run()
            assert world.concluded == world.asked
        except (AssertionError, LawBrokenError) as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error


class Forgetful(PlacementCore):
    """Planted: frees slots twice when told twice."""

    def _free(self, message: m.SlotsReleased) -> None:
        super()._free(message)
        for node in self._executors[message.executor].nodes.values():
            node.slots += 1


def test_a_planted_bug_is_found() -> None:
    with pytest.raises(AssertionError):
        World(1, Forgetful).run()
