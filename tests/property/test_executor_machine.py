"""The executor's roster under any order of what it is told and what happens: each sandbox is started, reported and

given back once, and a copy from a checkpoint goes on alike.
"""

from collections import Counter
from collections.abc import Callable

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.machine import ranges
from shoal.wire import messages as m
from shoal_executor import core as x

rollouts = st.sampled_from(["r1", "r2"])
indices = st.sets(st.integers(0, 3), min_size=1).map(ranges.collect)
index = st.integers(0, 3)
Sandbox = tuple[str, int]


def command_of(rollout: str, index: int) -> m.Command:
    return m.Command(("true", f"{index % 2 if rollout == 'r2' else 'all'}"))


class Roster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.twin = x.ExecutorCore("b"), x.ExecutorCore("b")
        self.started: Counter[Sandbox] = Counter()
        self.told: Counter[Sandbox] = Counter()
        self.freed: Counter[Sandbox] = Counter()
        self.ran: Counter[Sandbox] = Counter()
        self.to_destroy: set[Sandbox] = set()

    def do(self, work: Callable[[x.ExecutorCore], list[x.Effect]]) -> None:
        effects = work(self.core)
        assert work(self.twin) == effects
        for effect in effects:
            match effect:
                case x.Start(group=key, indices=part):
                    self.started.update((key[0], each) for each in ranges.indices(part))
                case x.RunJobs(group=key, indices=part, commands=commands):
                    given = commands * ranges.count(part) if len(commands) == 1 else commands
                    for each, command in zip(ranges.indices(part), given, strict=True):
                        assert command == command_of(key[0], each)
                        self.ran[key[0], each] += 1
                case x.Destroy(group=key, indices=part):
                    self.to_destroy.update((key[0], each) for each in ranges.indices(part))
                case x.ReportFinished(group=key, results=results):
                    self.told.update((key[0], each.index) for each in results)
                case x.ReportEnded(group=key, indices=part):
                    self.told.update((key[0], each) for each in ranges.indices(part))
                case x.ReportReleased(group=key, indices=part):
                    self.freed.update((key[0], each) for each in ranges.indices(part))

    @staticmethod
    def key(rollout: str) -> x.Key:
        return (rollout, 0, "n")

    @initialize(jobs=st.sets(rollouts), up=indices)
    def begin(self, jobs: set[str], up: m.Ranges) -> None:
        """Begin where a sandbox lives: chance alone seldom gets there."""
        self.jobs = jobs  # a rollout's sandboxes all have a command, or none has
        self.order("r1", ((0, 4),), "b")
        self.up("r1", up)

    @rule(rollout=rollouts, part=indices, boot=st.sampled_from(["b", "b", "b", "older"]))
    def order(self, rollout: str, part: m.Ranges, boot: str) -> None:
        commands: tuple[m.Command, ...] = ()
        if rollout in self.jobs:  # r1's sandboxes have one command, r2's have one each
            each = [command_of(rollout, index) for index in ranges.indices(part)]
            commands = tuple(each) if rollout == "r2" else tuple(each[:1])
        order = m.StartSandboxes(
            boot, "n", rollout, "t", "u", 0, 0, part, m.Snapshot("host", "host"), m.Resources(), commands, (), (), "", 9
        )  # fmt: skip
        self.do(lambda core: core.start(order))

    @rule(rollout=rollouts, part=st.one_of(st.just(()), indices), reason=st.sampled_from(m.EndReason))
    def destroy(self, rollout: str, part: m.Ranges, reason: m.EndReason) -> None:
        group = self.core.groups.get(self.key(rollout))
        known = ranges.unmask(group.starting | group.live) if group is not None else ()
        self.told.update((rollout, each) for each in ranges.indices(ranges.intersect(known, part or known)))
        self.do(lambda core: core.destroy(m.DestroySandboxes("b", rollout, part, reason)))

    @rule(rollout=rollouts, part=indices)
    def up(self, rollout: str, part: m.Ranges) -> None:
        self.do(lambda core: core.started(self.key(rollout), part))

    @rule(rollout=rollouts, part=indices)
    def failed(self, rollout: str, part: m.Ranges) -> None:
        group = self.core.groups.get(self.key(rollout))
        if group is not None:  # a driver says this of what is being started, and of nothing else
            failed = ranges.intersect(part, ranges.unmask(group.starting))
            self.do(lambda core: core.start_failed(self.key(rollout), failed, "no"))

    @rule(rollout=rollouts, part=st.lists(index, min_size=1), code=st.integers(0, 1))
    def done(self, rollout: str, part: list[int], code: int) -> None:
        if rollout in self.jobs:
            results = [m.SandboxResult(each, m.CommandResult(code), 1) for each in part]
            self.do(lambda core: core.jobs_done(self.key(rollout), results))

    @rule(rollout=rollouts, index=index)
    def exited(self, rollout: str, index: int) -> None:
        self.do(lambda core: core.exited(self.key(rollout), index, m.EndReason.DIED, ""))

    @rule(rollout=rollouts, part=indices)
    def destroyed(self, rollout: str, part: m.Ranges) -> None:
        ending = [each for each in ranges.indices(part) if (rollout, each) in self.to_destroy]
        self.to_destroy.difference_update((rollout, each) for each in ending)
        if ending:  # a driver says this of what it was told to destroy, and of nothing else
            self.do(lambda core: core.destroyed(self.key(rollout), ranges.collect(ending)))

    @rule(rollout=rollouts)
    def expire(self, rollout: str) -> None:
        self.do(lambda core: core.expire(self.key(rollout)))

    @rule(rollout=rollouts, index=index, tenant=st.sampled_from(["t", "stranger"]))
    def command(self, rollout: str, index: int, tenant: str) -> None:
        asked = m.RunCommand("c", tenant, "u", 0, rollout, index, 0, m.Command(("true",)))
        carried_out = isinstance(self.core.command(asked)[0], x.CarryOut)
        group = self.core.groups.get(self.key(rollout))
        live = group is not None and group.phase(index) is x.Phase.LIVE
        assert carried_out == (live and tenant == "t")

    @rule()
    def restart(self) -> None:
        dump = self.core.dump()
        self.twin = x.ExecutorCore("")
        self.twin.load(dump)

    @invariant()
    def lawful(self) -> None:
        self.core.check()
        self.twin.check()
        assert self.core.dump() == self.twin.dump()
        for counted in (self.started, self.told, self.freed, self.ran):
            assert all(count == 1 for count in counted.values())
        for sandbox in self.freed:
            assert self.told[sandbox] == 1  # nothing is given back that nobody heard of
        here = {(key[0], each) for key, group in self.core.groups.items() for each, _ in group.phases()}
        assert here == set(self.started) - set(self.freed)

    def teardown(self) -> None:
        """When all is over and the driver has answered, nothing is left, and everybody was told."""
        for rollout in ("r1", "r2"):
            self.destroy(rollout, (), m.EndReason.RELEASED)
            for key, group in list(self.core.groups.items()):
                self.up(key[0], ranges.unmask(group.here))  # one that was ending already stays so, and is destroyed
            self.destroyed(rollout, ((0, 4),))
        self.lawful()
        assert not self.core.groups
        assert set(self.told) == set(self.freed) == set(self.started)


TestRoster = Roster.TestCase
TestRoster.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
