"""What an executor holds, and what follows from each thing that happens to it. Pure; `service` carries it out.

A group is what one `StartSandboxes` names: sandboxes of one rollout, in one attempt, on one node. Each of its sandboxes
goes STARTING > LIVE > ENDING > gone; in job mode it goes from LIVE to ENDING by itself, when its command is done.
"""

from collections.abc import Sequence

import msgspec

from shoal.machine import ranges
from shoal.wire.asked import Asked
from shoal.wire.messages import (
    DestroySandboxes,
    EndReason,
    GiveUp,
    OnPreempted,
    PreemptSandboxes,
    Ranges,
    SandboxResult,
    Snapshot,
    StartSandboxes,
)
from shoal_executor.core.effects import (
    CarryOut,
    CutShort,
    Destroy,
    Effect,
    Key,
    LetSleep,
    Refuse,
    ReportEnded,
    ReportFinished,
    ReportReady,
    ReportReleased,
    ReportSlept,
    RunJobs,
    Start,
)
from shoal_executor.core.ended import Ended
from shoal_executor.core.group import DumpedGroup, Group, dumped


class _State(msgspec.Struct, frozen=True, array_like=True):
    """The whole state. Orders are kept, so that equal states are equal bytes."""

    boot: str
    groups: list[DumpedGroup]
    ended: list[tuple[str, int, list[tuple[EndReason | None, Ranges]]]]


class ExecutorCore:
    """The roster of one executor under one `boot`, which lasts for as long as its sandboxes can be found again."""

    state_version = 6

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.groups: dict[Key, Group] = {}
        self._by_rollout: dict[str, list[Key]] = {}
        self._ended = Ended()
        self.live = 0
        self.starting = 0

    # --- what placement says

    def start(self, order: StartSandboxes, due_ms: int = 0) -> list[Effect]:
        """Accept a start order. Orders for another life of this executor, and repeats, come to nothing.

        `due_ms`: its deadline as this machine counts time; the order's own times are by the broker's clock.
        """
        if order.boot != self.boot:
            return []
        key = (order.rollout, order.attempt, order.node)
        group = self.groups.get(key)
        wanted = ranges.mask(order.indices) & ~self._ended.of(order.rollout, order.attempt)
        if group is not None:
            wanted &= ~group.here
        if not wanted:
            return []
        if group is None:
            group = self.groups[key] = Group(order, due_ms=due_ms)
            self._by_rollout.setdefault(order.rollout, []).append(key)
        group.accept(order, wanted)  # placement may find room for more of a rollout on the same node
        self.starting += wanted.bit_count()
        return [Start(key, order, ranges.unmask(wanted))]

    def destroy(self, order: DestroySandboxes) -> list[Effect]:
        """Accept an order to end sandboxes; those not here, or ending already, are passed over.

        Their end is no news: whoever orders it does because the log says so. That they are gone will be.
        """
        if order.boot != self.boot:
            return []
        effects: list[Effect] = []
        for key in tuple(self._by_rollout.get(order.rollout, ())):
            if order.attempt in (-1, key[1]):
                asked = ranges.mask(order.indices) if order.indices else self.groups[key].here
                effects += self._end(key, asked, order.reason)
        return effects

    def preempt(self, order: PreemptSandboxes) -> list[Effect]:
        """Accept an order to make room; those not here, or ending already, are passed over.

        Of those that are to sleep, what has not started is ended: nothing is lost. A command that travelled with its
        rollout cannot be put to sleep: such a sandbox stays.
        """
        if order.boot != self.boot:
            return []
        effects: list[Effect] = []
        for key in tuple(self._by_rollout.get(order.rollout, ())):
            if key[1] != order.attempt:
                continue
            group, asked = self.groups[key], ranges.mask(order.indices)
            ending, asleep = asked & group.starting, asked & group.live
            if order.how is OnPreempted.RESTART:
                ending |= asleep
            elif order.how is OnPreempted.HIBERNATE and not group.runs_jobs:
                effects += [LetSleep(key, index) for index in ranges.indices(ranges.unmask(asleep))]
            why = "it made room for what goes before it"
            effects += self._end_and_tell(key, ending, EndReason.PREEMPTED, why)
        return effects

    def expire(self, key: Key) -> list[Effect]:
        """End what is left of a group whose rollout's time is up: a verdict for those that had half of it."""
        group = self.groups.get(key)
        if group is None:
            return []
        late, why = group.late_at_its_end(), "most of its rollout's time was up before it was ready"
        effects = self._end_and_tell(key, late, EndReason.DEADLINE, why)
        return effects + self._end_and_tell(key, group.here & ~late, EndReason.TIMED_OUT, "the rollout's time was up")

    # --- what trainers say

    def command(self, asked: Asked) -> list[Effect]:
        """Route a trainer's command to its sandbox, or refuse it: another tenant's sandbox is nobody's business."""
        key = self._taking(asked)
        if key is not None:
            return [CarryOut(key, asked)]
        known, reason = self._ended.reason(asked.rollout, asked.index, asked.attempt)
        return [Refuse(asked, reason, asleep=known and reason is None)]

    def give_up(self, told: GiveUp) -> list[Effect]:
        """Route it to the command's sandbox; where that is not here, or another tenant's, it is nobody's business."""
        key = self._taking(told)
        return [] if key is None else [CutShort(key, told.index, told.id)]

    def _taking(self, asked: Asked | GiveUp) -> Key | None:
        """Return the group of the sandbox that this is said to, if it takes commands of this tenant."""
        key = self.find(asked.rollout, asked.index, asked.attempt)
        if key is None:
            return None
        group = self.groups[key]
        return key if group.live >> asked.index & 1 and group.order.tenant == asked.tenant else None

    # --- what the driver says

    def started(self, key: Key, indices: Ranges, since_ms: int = 0) -> list[Effect]:
        """Sandboxes take commands; one whose end was ordered while it started is ended now, and never reported."""
        group = self.groups.get(key)
        if group is None:
            return []
        asked = ranges.mask(indices)
        up, late = asked & group.starting, asked & group.ending
        effects: list[Effect] = []
        if up:
            group.starting ^= up
            group.live |= up
            self.starting -= up.bit_count()
            self.live += up.bit_count()
            group.came(up, since_ms)
            if group.order.lifetime_ms:
                group.since_ms.update(dict.fromkeys(ranges.indices(ranges.unmask(up)), since_ms))
            for order, part in group.orders_of(up):
                effects.append(ReportReady(key, order, part, group.runs_jobs))
            if group.runs_jobs:
                effects.append(RunJobs(key, ranges.unmask(up), group.commands_of(up)))
        if late:
            effects.append(Destroy(key, ranges.unmask(late)))
        return effects

    def start_failed(
        self, key: Key, indices: Ranges, detail: str, reason: EndReason = EndReason.START_FAILED
    ) -> list[Effect]:
        """Sandboxes could not be started; nothing of them is left."""
        group = self.groups.get(key)
        gone = ranges.mask(indices) & group.here if group is not None else 0
        if group is None or not gone:
            return []
        effects: list[Effect] = []
        news = gone & ~group.ending
        if news:
            effects.append(ReportEnded(key, group.order, ranges.unmask(news), reason, detail))
            self._ended.add(key[0], key[1], news, reason)
        self._forget(key, gone)
        return [*effects, ReportReleased(key, group.order, ranges.unmask(gone), bool(group.here))]

    def jobs_done(self, key: Key, results: Sequence[SandboxResult]) -> list[Effect]:
        """The one command of each of these is done: report it, then end the sandboxes."""
        group = self.groups.get(key)
        if group is None:
            return []
        told, done = tuple(results), ranges.mask(ranges.collect([result.index for result in results]))
        if done & ~group.live or done.bit_count() < len(results):  # some are told of twice, or ended meanwhile
            live = {result.index: result for result in results if group.live >> result.index & 1}
            told, done = tuple(live.values()), done & group.live
        if not told:
            return []
        self._to_ending(key, group, done, EndReason.RELEASED)
        more, indices = bool(group.starting | group.live), ranges.unmask(done)
        return [ReportFinished(key, group.order, indices, told, more), Destroy(key, indices)]

    def exited(self, key: Key, index: int, reason: EndReason, detail: str) -> list[Effect]:
        """A sandbox ended and nobody asked for it; what is left of it is cleared away."""
        group = self.groups.get(key)
        if group is None or not group.live >> index & 1:
            return []
        return self._end_and_tell(key, 1 << index, reason, detail)

    def slept(self, key: Key, index: int, snapshot: Snapshot, *, preempted: bool = False) -> list[Effect]:
        """All of a sandbox is kept, and it stands still: it sleeps, and what is left of it here is cleared away."""
        group = self.groups.get(key)
        if group is None or not group.live >> index & 1:
            return []
        self._to_ending(key, group, 1 << index, None)
        return [ReportSlept(key, group.order, index, snapshot, preempted), Destroy(key, ((index, 1),))]

    def destroyed(self, key: Key, indices: Ranges) -> list[Effect]:
        """Nothing is left of these sandboxes."""
        group = self.groups.get(key)
        gone = ranges.mask(indices) & group.here if group is not None else 0
        if group is None or not gone:
            return []
        self._forget(key, gone)
        return [ReportReleased(key, group.order, ranges.unmask(gone), bool(group.here))]

    def find(self, rollout: str, index: int, attempt: int) -> Key | None:
        """Return the group of a sandbox that is not gone yet."""
        for key in self._by_rollout.get(rollout, ()):
            if key[1] == attempt and self.groups[key].here >> index & 1:
                return key
        return None

    # ---

    def _end_and_tell(self, key: Key, asked: int, reason: EndReason, detail: str) -> list[Effect]:
        """End what nobody else knows the end of."""
        group = self.groups[key]
        ends = asked & (group.live | group.starting)
        if not ends:
            return []
        told = ReportEnded(key, group.order, ranges.unmask(ends), reason, detail)
        return [told, *self._end(key, ends, reason)]

    def _end(self, key: Key, asked: int, reason: EndReason) -> list[Effect]:
        """Destroy what is live; what is still starting cannot be ended yet: `started` does it."""
        group = self.groups[key]
        live = asked & group.live
        if ends := live | asked & group.starting:
            self._to_ending(key, group, ends, reason)
        return [Destroy(key, ranges.unmask(live))] if live else []

    def _to_ending(self, key: Key, group: Group, bits: int, reason: EndReason | None) -> None:
        self.live -= (bits & group.live).bit_count()
        self.starting -= (bits & group.starting).bit_count()
        group.live &= ~bits
        group.starting &= ~bits
        group.ending |= bits
        self._ended.add(key[0], key[1], bits, reason)

    def _forget(self, key: Key, gone: int) -> None:
        group = self.groups[key]
        self.live -= (gone & group.live).bit_count()
        self.starting -= (gone & group.starting).bit_count()
        group.forget(gone)
        if not group.here:
            del self.groups[key]
            keys = self._by_rollout[key[0]]
            keys.remove(key)
            if not keys:
                del self._by_rollout[key[0]]

    def dump(self) -> bytes:
        """Return the whole state; equal states give equal bytes."""
        groups = [dumped(group) for group in self.groups.values()]
        return msgspec.msgpack.encode(_State(self.boot, groups, self._ended.dump()))

    def load(self, state: bytes) -> None:
        """Take over a dumped state. Raises ValueError."""
        found = msgspec.msgpack.decode(state, type=_State)
        self.boot = found.boot
        for each in found.groups:
            group, order = each.load(), each.order
            key = (order.rollout, order.attempt, order.node)
            self.groups[key] = group
            self._by_rollout.setdefault(order.rollout, []).append(key)
            self.starting += group.starting.bit_count()
            self.live += group.live.bit_count()
        self._ended.load(found.ended)

    def check(self) -> None:
        """Assert the roster's invariants."""
        groups = self.groups.values()
        assert self.starting == sum(group.starting.bit_count() for group in groups)
        assert self.live == sum(group.live.bit_count() for group in groups)
        assert sorted(key for keys in self._by_rollout.values() for key in keys) == sorted(self.groups)
        for group in groups:
            assert group.here.bit_count() == sum(
                bits.bit_count() for bits in (group.starting, group.live, group.ending)
            ), "a sandbox is in one phase"
            assert group.here
            assert not group.late & ~group.here
            for kept in (group.commands, group.snapshots, group.since_ms, group.ready_by_ms):
                assert not ranges.mask(ranges.collect(kept)) & ~group.here
        self._ended.check()
