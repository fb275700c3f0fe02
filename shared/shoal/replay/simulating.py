"""Demand through the real cores on simulated time, with machines that only take time.

Schedulers and placements of all cells fold what is said to them as they would at a broker, in the same order, with the
same effects; a message takes `hop_ms`. What stands for the rest of the world is here: trainers that submit, use and
release, executors that start and end. The seed draws every latency, so a course of events can be repeated.
"""

import heapq
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from shoal.machine import ranges
from shoal.machine.core import Cause, Core, LawBrokenError, Publish
from shoal.machine.service import Service
from shoal.replay.course import Course, Rejected, Seen
from shoal.replay.demand import HOST, Demand, Group
from shoal.replay.fleet import Fleet, Sandbox
from shoal.wire import messages as m, streams, subjects
from shoal.wire.quantities import BadValueError

_NEVER: Final = 2**62
_AT_ONCE: Final = 1024
_SILENT: Final = (m.RolloutQueued, m.RolloutDispatched)
"""What a scheduler says to trainers alone: reading it back changes nothing."""


class Simulation:
    """See the module. `run` goes on until every rollout is over; `course` says how it went."""

    def __init__(
        self,
        demand: Demand,
        services: Mapping[str, Service],
        seed: int = 0,
        tell: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        """`tell` hears now and then of how many sandboxes are done, of how many. Raises BadValueError."""
        self.demand = demand
        self.now = 0
        self.messages = 0
        self.random = random.Random(seed)
        self.course = Course(demand.slots)
        self._tell = tell
        self._groups = {group.rollout: group for group in demand.groups}
        if len(self._groups) < len(demand.groups):
            raise ValueError("two rollouts of a demand have one name: neither would ever be over")
        self._cores: dict[str, Core] = {}
        self._sequences: dict[str, int] = {}
        self._wakes: dict[str, int] = {}
        self._ticks: dict[str, str] = {}
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._left = sum(group.spec.n for group in demand.groups)
        self._of = self._left
        self._finished: dict[tuple[str, int, str, str], list[m.SandboxResult]] = {}
        self._slept: dict[tuple[str, int], int] = {}  # what is left of how long a sandbox is busy, since it fell asleep
        for cell in range(demand.cells):
            self._partition(services["scheduler"], cell, subjects.rollout_system(cell))
            self._partition(services["placement"], cell, subjects.placement_tick(cell))
        self.fleet = Fleet(self, demand.machines)
        for at_ms, service, message in demand.told:
            for cell in range(demand.cells):
                subject = subjects.rollout_system(cell) if service == "scheduler" else subjects.placement_node(cell)
                self.at(at_ms, self.publish, subject, message)
        for group in demand.groups:
            self.at(group.at_ms, self._submit, group)

    def _partition(self, service: Service, cell: int, tick: str) -> None:
        stream, core = service.stream(cell), service.make(cell, self.demand.cells)
        self._cores[stream], self._ticks[stream], self._sequences[stream] = core, tick, 0
        settings = self.demand.settings.get(service.name)
        if settings:
            try:
                core.handle(m.SettingsChanged(tuple(settings.items())), Cause(stream, 0, 0))
            except LawBrokenError as error:
                raise BadValueError("set", str(error)) from error

    def run(self) -> Course:
        """Go through all of it."""
        while self.advance(_AT_ONCE):
            pass
        return self.course

    def advance(self, most: int = _AT_ONCE) -> bool:
        """Go on by at most so many events; returns whether there is more: a loop has other things to do meanwhile."""
        for _ in range(most):
            if not (self._left and self._events):
                self._tell(self._of - self._left, self._of)
                return False
            self.now, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)
        return True

    def at(self, when_ms: float, call: Callable[..., None], *arguments: Any) -> None:
        """Do something at a moment."""
        self._count += 1
        heapq.heappush(self._events, (max(int(when_ms), self.now), self._count, call, arguments))

    def say(self, subject: str, message: m.AnyMessage) -> None:
        """Publish something: it is there after a hop."""
        self.at(self.now + self.demand.hop_ms, self.publish, subject, message)

    # --- the services

    def publish(self, subject: str, message: m.AnyMessage) -> None:
        """Let whoever reads a subject have a message."""
        stream = streams.stream_of(subject)
        if isinstance(message, m.RolloutRejected):
            self._reject(message)
        elif isinstance(message, m.RolloutConcluded):
            if message.rollout in self.course.seen:  # what is not done by now never will be
                self._expire(self._groups[message.rollout])
        elif stream in self._cores:
            if not isinstance(message, _SILENT):
                self._fold(stream, message)
        elif isinstance(message, m.ResolveTemplate):
            snapshot = self.demand.snapshots.get((message.tenant, message.template), HOST)
            answer = m.TemplateResolved(message.tenant, message.template, snapshot)
            self.say(subjects.rollout_system(message.cell), answer)
        else:
            self.fleet.hear(stream, message)

    def _fold(self, stream: str, message: m.AnyMessage) -> None:
        core = self._cores[stream]
        self._sequences[stream] += 1
        self.messages += 1
        # Times are of the recording: a core may ask what day it is.
        cause = Cause(stream, self._sequences[stream], self.demand.began_ms + self.now)
        for effect in core.handle(message, cause):
            if isinstance(effect, Publish):
                self.say(effect.subject, effect.message)
        wake = core.wake_at_ms()
        due = _NEVER if wake is None else wake - self.demand.began_ms
        if due < self._wakes.get(stream, _NEVER):
            self._wakes[stream] = due
            self.at(max(due, self.now + 1), self._tick, stream, due)

    def _tick(self, stream: str, due: int) -> None:
        if self._wakes.get(stream) == due:
            del self._wakes[stream]
            self._fold(stream, m.Tick(self.demand.began_ms + due))

    # --- trainers

    def _submit(self, group: Group) -> None:
        self.course.seen[group.rollout] = Seen(self.now, group.tenant, group.spec.n)
        request = m.RolloutSubmitted(group.rollout, group.tenant, group.run, group.spec)
        subject = subjects.rollout_request(group.cell, group.tenant, group.run)
        self.publish(subject, request)
        if group.cancelled_ms >= 0:
            self.at(self.now + group.cancelled_ms, self._cancel, group)
        self.at(self.now + group.spec.timeout_ms + 1, self._expire, group)

    def _cancel(self, group: Group) -> None:
        subject = subjects.rollout_request(group.cell, group.tenant, group.run)
        self.publish(subject, m.RolloutCancelled(group.rollout))
        self._expire(group)

    def _expire(self, group: Group) -> None:
        """What is not done by now never will be."""
        seen = self.course.seen.get(group.rollout)  # None: it was rejected
        for index in range(group.spec.n):
            if seen is not None and index not in seen.done:
                self._done(seen, index)

    def _reject(self, message: m.RolloutRejected) -> None:
        seen = self.course.seen.pop(message.rollout, None)
        if seen is not None:
            self.course.rejected[message.rollout] = Rejected(seen.n, message.detail)
            self._left -= seen.n - len(seen.done)

    def _done(self, seen: Seen, index: int) -> None:
        seen.done[index] = self.now
        self._left -= 1
        if not self._left % 1024:
            self._tell(self._of - self._left, self._of)

    # --- what machines tell

    def ready(self, group: Group, indices: m.Ranges, attempt: int, node: str, executor: str) -> None:
        """Sandboxes are ready: their trainer, or their command, is busy in them from now on."""
        seen = self.course.seen.get(group.rollout)
        if seen is None:
            return
        report = m.SandboxesReady(group.rollout, attempt, indices, node, executor, "simulated")
        self.say(subjects.rollout_sandbox(group.cell, group.tenant, group.run), report)
        for index in ranges.indices(indices):
            seen.ready.setdefault(index, self.now)
            busy = self._slept.pop((group.rollout, index), group.busy_ms[index])
            self.at(self.now + busy, self._used, group, (group.rollout, attempt, index))

    def slept(self, group: Group, index: int, since_ms: int) -> None:
        """A sandbox was put to sleep, which has been busy since then: it goes on where it was."""
        busy = self._slept.get((group.rollout, index), group.busy_ms[index])
        self._slept[group.rollout, index] = max(busy - (self.now - since_ms), 0)

    def _used(self, group: Group, sandbox: Sandbox) -> None:
        """A sandbox has been of use: its command is done, or its trainer lets it go."""
        name, attempt, index = sandbox
        seen = self.course.seen.get(name)
        place = self.fleet.live.get(sandbox)
        if seen is None or place is None or index in seen.done or (name, index) in self._slept:
            return
        self._done(seen, index)
        if not group.spec.commands:
            subject = subjects.rollout_request(group.cell, group.tenant, group.run)
            self.publish(subject, m.RolloutReleased(name, ((index, 1),)))
            return
        code = dict(group.codes).get(index, 0)
        result = m.SandboxResult(index, m.CommandResult(code), group.busy_ms[index] * 1000)
        key = (name, attempt, place.node, place.executor)
        if key not in self._finished:
            self.at(self.now + self.demand.hop_ms, self._report, group, key)
        self._finished.setdefault(key, []).append(result)
        self.fleet.clear(sandbox)

    def _report(self, group: Group, key: tuple[str, int, str, str]) -> None:
        name, attempt, node, executor = key
        finished = m.SandboxesFinished(name, attempt, node, executor, "simulated", tuple(self._finished.pop(key)))
        self.publish(subjects.rollout_sandbox(group.cell, group.tenant, group.run), finished)

    def group(self, rollout: str) -> Group:
        """Return a rollout."""
        return self._groups[rollout]


def plain(spec: m.RolloutSpec, *, job: bool) -> m.RolloutSpec:
    """Return what a spec asks for, without what would run in it: nothing does, here."""
    commands = (m.Command(("true",)),) if job else ()
    return msgspec.structs.replace(
        spec,
        commands=commands,
        files=(),
        env=(),
        warm="",
        checkpoint_every_ms=0,
        checkpoint_commands=0,
        idle_after_ms=0,
    )
