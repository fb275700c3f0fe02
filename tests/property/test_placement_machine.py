from typing import Any

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal.machine.core import Cause
from shoal.wire import messages as m
from shoal_placement.core.placement import PlacementCore

names = st.sampled_from(["a", "b"])
parts = st.sampled_from([((0, 4),), ((0, 2),), ((1, 1), (3, 1))])


class Placement(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.twin = PlacementCore(0), PlacementCore(0)
        self.now = 0

    def fold(self, message: Any, silence: int = 1) -> None:
        self.now += silence
        cause = Cause("S", self.now, self.now)
        assert self.core.handle(message, cause) == self.twin.handle(message, cause)

    @rule(rollout=names, attempt=st.integers(0, 1), indices=parts)
    def request(self, rollout: str, attempt: int, indices: m.Ranges) -> None:
        spec, host = m.RolloutSpec("host", 4), m.Snapshot(rollout, "disk", disks=(m.Blob(rollout, 10_000_000),))
        message = m.PlaceRequested(rollout, "t", "u", 0, attempt, indices, spec, host, 100_000)
        self.fold(message)
        assert not self.core.handle(message, Cause("S", self.now, self.now))
        self.twin.handle(message, Cause("S", self.now, self.now))

    @rule(rollout=names, indices=parts)
    def release(self, rollout: str, indices: m.Ranges) -> None:
        self.fold(m.ReleaseRequested(rollout, indices, m.EndReason.RELEASED))

    @rule(executor=names, boot=names)
    def join(self, executor: str, boot: str) -> None:
        self.fold(m.ExecutorJoined(executor, boot, "zygote", (m.NodeSpec("n" + executor, 3, 2**40),)))

    @rule(executor=names, boot=names, rollout=names, attempt=st.integers(0, 1), indices=parts)
    def free(self, executor: str, boot: str, rollout: str, attempt: int, indices: m.Ranges) -> None:
        self.fold(m.SlotsReleased(executor, boot, "n" + executor, rollout, attempt, indices))

    @rule(executor=names, boot=names, blobs=st.sampled_from([(), ("a",), ("a", "b")]))
    def holds(self, executor: str, boot: str, blobs: tuple[str, ...]) -> None:
        self.fold(m.ExecutorHolds(executor, boot, blobs))

    @rule(silence=st.sampled_from([1, 20_000]))
    def tick(self, silence: int) -> None:
        self.fold(m.Tick(self.now), silence)

    @rule()
    def restart(self) -> None:
        dump = self.core.dump()
        self.twin = PlacementCore(0)
        self.twin.load(dump)

    @invariant()
    def lawful(self) -> None:
        self.core.check()
        self.twin.check()
        assert self.core.dump() == self.twin.dump()
        assert self.core.wake_at_ms() == self.twin.wake_at_ms()


TestPlacement = Placement.TestCase
TestPlacement.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
