"""What an executor holds, and what follows from each thing that happens to it. Pure; `service` carries it out.

A group is what one `StartSandboxes` names: sandboxes of one rollout, in one attempt, on one node. Each of its sandboxes
goes STARTING > LIVE > ENDING > gone; in job mode it goes from LIVE to ENDING by itself, when its command is done.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from shoal.machine import ranges
from shoal.wire.asked import Asked
from shoal.wire.messages import (
    Command,
    CommandResult,
    DestroySandboxes,
    EndReason,
    OnPreempted,
    PreemptSandboxes,
    Ranges,
    Snapshot,
    StartSandboxes,
)
from shoal_executor.core.effects import (
    CarryOut,
    Destroy,
    Effect,
    Key,
    LetSleep,
    Phase,
    Refuse,
    ReportEnded,
    ReportFinished,
    ReportReady,
    ReportReleased,
    ReportSlept,
    RunJob,
    Start,
)

REMEMBERED_ENDS: Final = 65_536
"""How many ended sandboxes keep their reason, so that a late command learns why it is refused."""


@dataclass(slots=True)
class Group:
    """The sandboxes of one start order that are not gone yet, and of later ones that differ in what they start from.

    `snapshots`: what those start from, where that is not the first order's.
    """

    order: StartSandboxes
    commands: dict[int, Command]
    phases: dict[int, Phase]
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    since_ms: dict[int, int] = field(default_factory=dict)  # when they became ready, where their lifetime is limited

    def order_of(self, index: int) -> StartSandboxes:
        """Return the order as it is for one sandbox."""
        snapshot = self.snapshots.get(index)
        return self.order if snapshot is None else msgspec.structs.replace(self.order, snapshot=snapshot)


class _DumpedGroup(msgspec.Struct, frozen=True, array_like=True):
    order: StartSandboxes
    commands: list[tuple[int, Command]]
    phases: list[tuple[int, Phase]]
    snapshots: list[tuple[int, Snapshot]]
    since_ms: list[tuple[int, int]]

    def load(self) -> Group:
        return Group(
            self.order, dict(self.commands), dict(self.phases), dict(self.snapshots), dict(self.since_ms)
        )  # fmt: skip


class _State(msgspec.Struct, frozen=True, array_like=True):
    """The whole state. Orders are kept, so that equal states are equal bytes."""

    boot: str
    groups: list["_DumpedGroup"]
    ended: list[tuple[str, int, int, EndReason | None]]


class ExecutorCore:
    """The roster of one executor under one `boot`, which lasts for as long as its sandboxes can be found again."""

    state_version = 3

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.groups: dict[Key, Group] = {}
        self._by_rollout: dict[str, list[Key]] = {}
        self._ended: dict[tuple[str, int, int], EndReason | None] = {}  # None: it sleeps
        self.live = 0
        self.starting = 0

    # --- what placement says

    def start(self, order: StartSandboxes) -> list[Effect]:
        """Accept a start order. Orders for another life of this executor, and repeats, come to nothing."""
        key = (order.rollout, order.attempt, order.node)
        known = self.groups.get(key)
        wanted = {
            index: None
            for index in ranges.indices(order.indices)
            if not (known and index in known.phases) and (order.rollout, index, order.attempt) not in self._ended
        }
        if order.boot != self.boot or not wanted:
            return []
        commands: dict[int, Command] = {}
        if len(order.commands) == 1:
            commands = dict.fromkeys(wanted, order.commands[0])
        elif order.commands:
            paired = zip(ranges.indices(order.indices), order.commands, strict=True)
            commands = {index: command for index, command in paired if index in wanted}
        if known is None:
            self.groups[key] = Group(order, commands, dict.fromkeys(wanted, Phase.STARTING))
            self._by_rollout.setdefault(order.rollout, []).append(key)
        else:  # placement found room for more of the same rollout on the same node
            known.commands.update(commands)
            known.phases.update(dict.fromkeys(wanted, Phase.STARTING))
            if order.snapshot != known.order.snapshot:
                known.snapshots.update(dict.fromkeys(wanted, order.snapshot))
        self.starting += len(wanted)
        return [Start(key, order, ranges.collect(wanted))]

    def destroy(self, order: DestroySandboxes) -> list[Effect]:
        """Accept an order to end sandboxes; those not here, or ending already, are passed over."""
        if order.boot != self.boot:
            return []
        effects: list[Effect] = []
        for key in tuple(self._by_rollout.get(order.rollout, ())):
            if order.attempt in (-1, key[1]):
                effects += self._end(key, order.indices, order.reason, "")
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
            group, ending = self.groups[key], []
            for index in ranges.indices(order.indices):
                phase = group.phases.get(index, Phase.ENDING)
                if phase is Phase.ENDING:
                    continue
                if order.how is OnPreempted.RESTART or phase is Phase.STARTING:
                    ending.append(index)
                elif order.how is OnPreempted.HIBERNATE and index not in group.commands:
                    effects.append(LetSleep(key, index))
            if ending:
                why = "it made room for what goes before it"
                effects += self._end(key, ranges.collect(ending), EndReason.PREEMPTED, why)
        return effects

    def expire(self, key: Key) -> list[Effect]:
        """End what is left of a group whose rollout's time is up."""
        if key not in self.groups:
            return []
        return self._end(key, (), EndReason.TIMED_OUT, "the rollout's time was up")

    # --- what trainers say

    def command(self, asked: Asked) -> list[Effect]:
        """Route a trainer's command to its sandbox, or refuse it: another tenant's sandbox is nobody's business."""
        key = self.find(asked.rollout, asked.index, asked.attempt)
        if key is not None:
            group = self.groups[key]
            if group.phases[asked.index] is Phase.LIVE and group.order.tenant == asked.tenant:
                return [CarryOut(key, asked)]
        sandbox = (asked.rollout, asked.index, asked.attempt)
        reason = self._ended.get(sandbox)
        return [Refuse(asked, reason, asleep=reason is None and sandbox in self._ended)]

    # --- what the driver says

    def started(self, key: Key, index: int, since_ms: int = 0) -> list[Effect]:
        """A sandbox takes commands; one whose end was ordered while it started is ended now, and never reported."""
        group = self.groups.get(key)
        phase = group.phases.get(index) if group else None
        if group is None or phase is None or phase is Phase.LIVE:
            return []
        if phase is Phase.ENDING:
            return [Destroy(key, ((index, 1),))]
        group.phases[index] = Phase.LIVE
        self.starting -= 1
        self.live += 1
        if group.order.lifetime_ms:
            group.since_ms[index] = since_ms
        command = group.commands.get(index)
        effects: list[Effect] = [ReportReady(key, group.order_of(index), index, command is not None)]
        if command is not None:
            effects.append(RunJob(key, index, command))
        return effects

    def start_failed(self, key: Key, index: int, detail: str) -> list[Effect]:
        """A sandbox could not be started; nothing of it is left."""
        group = self.groups.get(key)
        if group is None or index not in group.phases:
            return []
        one: Ranges = ((index, 1),)
        effects: list[Effect] = []
        if group.phases[index] is not Phase.ENDING:
            effects.append(ReportEnded(key, group.order, one, EndReason.START_FAILED, detail))
            self._ended_by(key, index, EndReason.START_FAILED)
        self._forget(key, one)
        return [*effects, ReportReleased(key, group.order, one)]

    def job_done(self, key: Key, index: int, result: CommandResult, run_us: int) -> list[Effect]:
        """A sandbox's one command is done: report it, then end the sandbox."""
        group = self.groups.get(key)
        if group is None or group.phases.get(index) is not Phase.LIVE:
            return []
        self._move_to_ending(group, index)
        self._ended_by(key, index, EndReason.RELEASED)
        return [ReportFinished(key, group.order, index, result, run_us), Destroy(key, ((index, 1),))]

    def exited(self, key: Key, index: int, reason: EndReason, detail: str) -> list[Effect]:
        """A sandbox ended and nobody asked for it; what is left of it is cleared away."""
        group = self.groups.get(key)
        if group is None or group.phases.get(index) is not Phase.LIVE:
            return []
        return self._end(key, ((index, 1),), reason, detail)

    def slept(self, key: Key, index: int, snapshot: Snapshot, *, preempted: bool = False) -> list[Effect]:
        """All of a sandbox is kept, and it stands still: it sleeps, and what is left of it here is cleared away."""
        group = self.groups.get(key)
        if group is None or group.phases.get(index) is not Phase.LIVE:
            return []
        self._move_to_ending(group, index)
        self._ended_by(key, index, None)
        return [ReportSlept(key, group.order, index, snapshot, preempted), Destroy(key, ((index, 1),))]

    def destroyed(self, key: Key, indices: Ranges) -> list[Effect]:
        """Nothing is left of these sandboxes."""
        group = self.groups.get(key)
        if group is None:
            return []
        gone = ranges.collect(index for index in ranges.indices(indices) if index in group.phases)
        self._forget(key, gone)
        return [ReportReleased(key, group.order, gone)] if gone else []

    def find(self, rollout: str, index: int, attempt: int) -> Key | None:
        """Return the group of a sandbox that is not gone yet."""
        for key in self._by_rollout.get(rollout, ()):
            if key[1] == attempt and index in self.groups[key].phases:
                return key
        return None

    # ---

    def _end(self, key: Key, among: Ranges, reason: EndReason, detail: str) -> list[Effect]:
        group = self.groups[key]
        asked: Iterable[int] = ranges.indices(among) if among else tuple(group.phases)
        ending = [i for i in asked if group.phases.get(i, Phase.ENDING) is not Phase.ENDING]
        if not ending:
            return []
        live = ranges.collect(index for index in ending if group.phases[index] is Phase.LIVE)
        for index in ending:
            self._move_to_ending(group, index)
            self._ended_by(key, index, reason)
        effects: list[Effect] = [ReportEnded(key, group.order, ranges.collect(ending), reason, detail)]
        # What is still starting cannot be ended yet: `started` does it.
        return [*effects, Destroy(key, live)] if live else effects

    def _move_to_ending(self, group: Group, index: int) -> None:
        if group.phases[index] is Phase.STARTING:
            self.starting -= 1
        else:
            self.live -= 1
        group.phases[index] = Phase.ENDING

    def _ended_by(self, key: Key, index: int, reason: EndReason | None) -> None:
        self._ended[key[0], index, key[1]] = reason
        if len(self._ended) > REMEMBERED_ENDS:
            del self._ended[next(iter(self._ended))]

    def _forget(self, key: Key, indices: Ranges) -> None:
        group = self.groups[key]
        for index in ranges.indices(indices):
            phase = group.phases.pop(index)
            group.commands.pop(index, None)
            group.snapshots.pop(index, None)
            group.since_ms.pop(index, None)
            if phase is Phase.STARTING:
                self.starting -= 1
            elif phase is Phase.LIVE:
                self.live -= 1
        if not group.phases:
            del self.groups[key]
            keys = self._by_rollout[key[0]]
            keys.remove(key)
            if not keys:
                del self._by_rollout[key[0]]

    def dump(self) -> bytes:
        """Return the whole state; equal states give equal bytes."""
        groups = [
            _DumpedGroup(
                group.order, list(group.commands.items()), list(group.phases.items()), list(group.snapshots.items()),
                list(group.since_ms.items()),
            )
            for group in self.groups.values()
        ]  # fmt: skip
        ended = [(*sandbox, reason) for sandbox, reason in self._ended.items()]
        return msgspec.msgpack.encode(_State(self.boot, groups, ended))

    def load(self, state: bytes) -> None:
        """Take over a dumped state. Raises ValueError."""
        found = msgspec.msgpack.decode(state, type=_State)
        self.boot = found.boot
        for each in found.groups:
            group, order = each.load(), each.order
            key = (order.rollout, order.attempt, order.node)
            self.groups[key] = group
            self._by_rollout.setdefault(order.rollout, []).append(key)
            phases = list(group.phases.values())
            self.starting += phases.count(Phase.STARTING)
            self.live += phases.count(Phase.LIVE)
        self._ended = {(rollout, index, attempt): reason for rollout, index, attempt, reason in found.ended}

    def check(self) -> None:
        """Assert the roster's invariants."""
        phases = [phase for group in self.groups.values() for phase in group.phases.values()]
        assert self.starting == phases.count(Phase.STARTING)
        assert self.live == phases.count(Phase.LIVE)
        assert sorted(key for keys in self._by_rollout.values() for key in keys) == sorted(self.groups)
        assert all(group.phases for group in self.groups.values())
