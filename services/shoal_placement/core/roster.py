"""Executors as they come and go, and their nodes as they are drained: what a cell has, told to its scheduler."""

from abc import ABC, abstractmethod
from typing import Final

from shoal.machine import ranges
from shoal.machine.core import Effect, LawBrokenError, Publish
from shoal.wire import messages as m, subjects
from shoal.wire.quantities import BadValueError
from shoal_placement.core.capacity import capacity_of
from shoal_placement.core.fleet import Fleet
from shoal_placement.core.nodes import Executor, Node
from shoal_placement.core.records import Record

SILENCE_MS: Final = 10_000
_BOOTS_KEPT: Final = 16
_TELL_MS: Final = 1_000
"""What is held on drained nodes is told at most so often: they are emptied by hundreds of messages."""
_SLOWEST, _FASTEST = 0.001, 1e6
"""Starts a second that an executor may say it carries out."""
_MOST: Final = 2**53
"""Of anything that a node may say it has."""


class Roster(ABC):
    """See the module. What a silent executor held stays reserved, in case the same boot comes back."""

    def __init__(self, cell: int) -> None:
        self._cell = cell
        self._fleet = Fleet()
        self._boots: dict[str, list[str]] = {}  # past boots, whose late messages mean nothing
        self._rollouts: dict[str, Record] = {}
        self._drained: dict[str, None] = {}
        self._told: m.CellCapacity | None = None
        self._fleet_changed = True

    @property
    def _executors(self) -> dict[str, Executor]:
        return self._fleet.executors

    @abstractmethod
    def _wake_by(self, when_ms: int) -> None: ...

    @abstractmethod
    def _place_waiting(self, now: int, effects: list[Effect]) -> None: ...

    def _join(self, message: m.ExecutorJoined, now: int, effects: list[Effect]) -> None:
        _lawful(message)
        known = self._executors.get(message.executor)
        if known is not None and known.boot == message.boot:
            known.heard(now)
            if not known.alive:
                known.alive = True
                self._fleet.gained(known)
                self._fleet_changed = True
                self._wake_by(now + SILENCE_MS + 1)
                for node in known.nodes.values():
                    for (rollout, _), held in node.held.items():
                        destroy = m.DestroySandboxes(known.boot, rollout, held.indices, m.EndReason.NODE_LOST)
                        effects.append(Publish(subjects.executor_control(known.name), destroy))
                self._place_waiting(now, effects)
            self._dismiss(known, effects)
            return
        if self._replaced(message.executor, message.boot, effects):
            return
        if known is not None:
            self._lose(known, "its executor restarted", effects)
            self._forget(known)
            self._replaced(known.name, known.boot, effects)  # if it lives still: before it hears what is not for it
        nodes = {spec.node: Node(spec, number) for number, spec in enumerate(message.nodes)}
        for node in nodes.values():
            node.drained = node.spec.node in self._drained
        pace_ms = 1000 / message.starts_per_s
        self._fleet.joined += 1
        self._fleet.add(
            Executor(message.executor, message.boot, message.isolation, pace_ms, now, nodes, self._fleet.joined)
        )
        self._fleet_changed = True
        self._wake_by(now + SILENCE_MS + 1)
        self._place_waiting(now, effects)
        self._dismiss(self._executors[message.executor], effects)

    def _replaced(self, executor: str, boot: str, effects: list[Effect]) -> bool:
        """Return whether a boot is a past one, which is told so: should it live, nobody knows of what it holds."""
        past = boot in self._boots.get(executor, ())
        if past:
            effects.append(Publish(subjects.executor_control(executor), m.ExecutorReplaced(boot)))
        return past

    def _dismiss(self, executor: Executor, effects: list[Effect]) -> None:
        """Let an executor leave whose nodes are all drained and empty. Said again at each sign of life until it has."""
        if executor.alive and all(node.drained and not node.held for node in executor.by_number):
            control = subjects.executor_control(executor.name)
            effects.append(Publish(control, m.ExecutorDismissed(executor.boot)))

    def _lose(self, executor: Executor, why: str, effects: list[Effect]) -> None:
        if not executor.alive:
            return
        executor.alive = False
        self._fleet.lost(executor)
        self._fleet_changed = True
        for node in executor.nodes.values():
            for (rollout, attempt), held in node.held.items():
                record = self._rollouts.get(rollout)
                if record is not None and record.tenant:  # else it is over, and the scheduler knows
                    lost = m.EndReason.NODE_LOST
                    self._end(record, rollout, attempt, held.indices, node.spec.node, lost, why, effects)

    def _forget(self, executor: Executor) -> None:
        self._fleet.remove(executor)
        past = self._boots.setdefault(executor.name, [])
        past.append(executor.boot)
        del past[:-_BOOTS_KEPT]

    def _drain(self, message: m.NodeDrained, now: int, effects: list[Effect]) -> None:
        if message.drained:
            self._drained[message.node] = None
        else:
            self._drained.pop(message.node, None)
        for executor in self._executors.values():
            node = executor.nodes.get(message.node)
            if node is None:
                continue
            self._fleet_changed |= node.drained != message.drained
            node.drained = message.drained
            if not node.drained:
                executor.gained(node)
                self._fleet.gained(executor)
                continue
            for (rollout, attempt), held in node.held.items() if message.hibernate and executor.alive else ():
                how = m.OnPreempted.HIBERNATE
                order = m.PreemptSandboxes(executor.boot, rollout, attempt, held.indices, how)
                effects.append(Publish(subjects.executor_control(executor.name), order))
            self._dismiss(executor, effects)
        self._place_waiting(now, effects)

    def _free(self, message: m.SlotsReleased, now: int, effects: list[Effect]) -> None:
        if not ranges.valid(message.indices, 2**31):
            raise LawBrokenError(f"indices {message.indices} are not sorted and disjoint")
        executor = self._executors.get(message.executor)
        node = executor.nodes.get(message.node) if executor and executor.boot == message.boot else None
        if executor is None or node is None:
            return
        freed = executor.release(node, (message.rollout, message.attempt), message.indices)
        if not freed:
            return
        self._fleet.gained(executor)
        if node.drained:
            self._wake_by(now + _TELL_MS)
            self._dismiss(executor, effects)

    def _end(
        self, record: Record, rollout: str, attempt: int, indices: m.Ranges, node: str, reason: m.EndReason,
        detail: str, effects: list[Effect],
    ) -> None:  # fmt: skip
        subject = subjects.rollout_sandbox(record.cell, record.tenant, record.run)
        effects.append(Publish(subject, m.SandboxesEnded(rollout, attempt, indices, node, reason, detail)))

    def _tell(self, effects: list[Effect]) -> None:
        if not self._fleet_changed:
            return
        self._fleet_changed = False
        capacity = capacity_of(self._executors.values())
        if capacity != self._told and (self._told is not None or capacity.nodes):
            self._told = capacity
            # Before all else: what ended because of it is asked for again, and that depends on what there is now.
            effects.insert(0, Publish(subjects.rollout_system(self._cell), capacity))


def _lawful(message: m.ExecutorJoined) -> None:
    """Raise LawBrokenError for an offer that makes no sense."""
    names = [node.node for node in message.nodes]
    if len(dict.fromkeys(names)) != len(names):
        raise LawBrokenError("an executor names each of its nodes once")
    if not _SLOWEST <= message.starts_per_s <= _FASTEST:
        raise LawBrokenError(f"an executor starts {_SLOWEST} to {_FASTEST:g} a second, not {message.starts_per_s}")
    for node in message.nodes:
        amounts = (node.slots, node.memory, node.cpu_milli, node.disk)
        if min(amounts) < 0 or max(amounts) > _MOST:
            raise LawBrokenError(f"a node has 0 to 2**53 slots, bytes and thousandths of a cpu, not {amounts}")
    try:
        subjects.executor_control(message.executor)
    except BadValueError as error:
        raise LawBrokenError(f"an executor's name is a part of subjects: {error}") from error
