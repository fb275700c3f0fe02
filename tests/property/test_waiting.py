"""What waits in lines comes to the same as if all of it stood in one list that is gone through from its beginning."""

from typing import Any

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal.machine.core import Cause, Effect, Publish
from shoal.wire import messages as m
from shoal_placement.core.nodes import Demand, demand_of
from shoal_placement.core.placement import PARKED_MS, PlacementCore
from shoal_placement.core.records import narrowed
from shoal_placement.core.waiting import Waiting

rollouts = st.sampled_from([f"r{number}" for number in range(8)])
parts = st.sampled_from([((0, 4),), ((0, 2),), ((1, 1), (3, 1))])
executors = st.sampled_from(["a", "b"])
HOST = m.Snapshot("host", "host")


class OneList(PlacementCore):
    """The plain way, which looks at all that waits whenever something changes."""

    def _place_waiting(self, now: int, effects: list[Effect]) -> None:
        blocked: dict[Demand, int | None] = {}
        left: list[tuple[m.PlaceRequested, int]] = []
        for request, since in list(self._waiting):
            demand, rest = demand_of(request.spec), request.indices
            if demand not in blocked:
                rest, again_ms = self._place(request, now, effects)
                if rest:
                    blocked[demand] = again_ms
            if not rest:
                continue
            if (again_ms := blocked[demand]) is not None:
                self._wake_by(max(again_ms, now + 1))
            elif now >= since + PARKED_MS:
                self._give_back(narrowed(request, rest), "there was no room for it after all", effects)
                continue
            else:
                self._wake_by(since + PARKED_MS)
            left.append((narrowed(request, rest), since))
        self._waiting = Waiting(left)


class Full(RuleBasedStateMachine):
    """A fleet of a few slots that everybody wants."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.plain = PlacementCore(0), OneList(0)
        self.now = 0
        self.started: list[m.StartSandboxes] = []
        self.asked: dict[str, m.RolloutSpec] = {}
        for name in ("a", "b"):
            nodes = tuple(m.NodeSpec(f"{name}{n}", 2, 6, labels=(("zone", f"{name}{n}"),)) for n in range(2))
            self.fold(m.ExecutorJoined(name, f"boot-{name}", "zygote", nodes, 1.0))

    def fold(self, message: Any, later: int = 1) -> None:
        self.now += later
        cause = Cause("S", self.now, self.now)
        effects = self.core.handle(message, cause)
        assert effects == self.plain.handle(message, cause)
        for effect in effects:
            if isinstance(effect, Publish) and isinstance(effect.message, m.StartSandboxes):
                self.started.append(effect.message)

    @rule(
        rollout=rollouts, indices=parts, memory=st.sampled_from([1, 3]), zone=st.sampled_from(["", "", "a0", "b1"]),
        together=st.booleans(),
    )  # fmt: skip
    def request(self, rollout: str, indices: m.Ranges, memory: int, zone: str, together: bool) -> None:
        labels = (("zone", zone),) if zone else ()
        spec = self.asked.setdefault(rollout, m.RolloutSpec("host", 4, (), m.Resources(memory=memory), labels=labels))
        self.fold(m.PlaceRequested(rollout, "t", "u", 0, 0, indices, spec, HOST, 100_000, together=together))

    @rule(rollout=rollouts, indices=st.one_of(st.just(()), parts), attempt=st.sampled_from([-1, 0]))
    def release(self, rollout: str, indices: m.Ranges, attempt: int) -> None:
        self.fold(m.ReleaseRequested(rollout, indices, m.EndReason.RELEASED, attempt))

    @rule(rollout=rollouts, indices=parts)
    def preempt(self, rollout: str, indices: m.Ranges) -> None:
        self.fold(m.PreemptRequested(rollout, 0, indices, m.OnPreempted.RESTART))

    @rule(number=st.integers(0, 30))
    def free(self, number: int) -> None:
        if self.started:
            start = self.started.pop(number % len(self.started))
            self.fold(m.SlotsReleased(start.node[0], start.boot, start.node, start.rollout, 0, start.indices))

    @rule(executor=executors)
    def beat(self, executor: str) -> None:
        self.fold(m.ExecutorBeat(executor, f"boot-{executor}", 0, 0))

    @rule(later=st.sampled_from([1, 500, PARKED_MS, 20_000, 101_000]))
    def tick(self, later: int) -> None:
        self.fold(m.Tick(self.now + later), later)

    @rule()
    def restart(self) -> None:
        dump = self.core.dump()
        self.core = PlacementCore(0)
        self.core.load(dump)

    @invariant()
    def alike(self) -> None:
        self.core.check()
        assert self.core.dump() == self.plain.dump()


TestFull = Full.TestCase
TestFull.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
