"""Reports, gathered: what happens to many sandboxes at once is said once.

While the broker keeps up, a report leaves in the same turn of the event loop; while it does not, reports gather and
leave as few large ones. Two kinds wait besides. The readiness of a job's sandbox is news to no one but a progress bar,
so it waits for one to two moments and is dropped when the result comes first. And a result that others of its group
will follow waits for them, for a tenth of the time that the group has taken so far and never long: each message costs
every service that reads it, and the group's last result waits for nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from shoal.machine import ranges
from shoal.wire import subjects
from shoal.wire.messages import (
    AnyMessage,
    EndReason,
    Ranges,
    SandboxesBegan,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesReady,
    SandboxResult,
    SandboxSlept,
    SlotsReleased,
    Snapshot,
    StartSandboxes,
)
from shoal_executor.core import Key, ReportEnded, ReportFinished, ReportReady, ReportReleased, ReportSlept
from shoal_executor.service.outgoing import Outgoing

Report = ReportReady | ReportFinished | ReportEnded | ReportSlept | ReportReleased

_IN_FLIGHT: Final = 16
"""Reports under way to a rollout's log beyond which those for it gather. What else is under way does not count: a log
that takes nothing must not silence what goes to others."""
_JOB_READY_PAUSE_S: Final = 0.05
_WAIT_PART: Final = 0.1
_LONGEST_WAIT_S: Final = 0.05
"""How long a result waits for others of its group: so much of the time since its first sandbox was ready. Each reported
by itself, 256 real sandboxes on 2 cores came through at 0.76 of the bare loop's rate, and so at 0.92 to 0.96
(`loadtest floor --only runtime`); a twentieth is slower, for bursts of 32 to their middle result, too."""
_MESSAGE_BYTES: Final = 512 * 1024
"""Results in one message: half of what a broker takes by default."""


class Reports:
    """Gathers reports by group and publishes them, from `go` on when it is time, before that when it is told.

    `flushing` is called before what was gathered is put into messages, with whether the readiness of jobs is added;
    `freeing` before slots are given back, with the groups whose they are. Slots are given back only when the broker has
    what became of their sandboxes: whoever places something there takes it that the rest is known.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        executor: str,
        isolation: str,
        cell: int,
        flushing: Callable[[bool], None],
        freeing: Callable[[tuple[Key, ...]], None],
    ) -> None:
        self._outgoing = outgoing
        self._executor = executor
        self._flushing = flushing
        self._freeing = freeing
        self._held: dict[Key, Ranges] = {}
        self._telling: dict[Key, set[int]] = {}  # the numbers of messages that tell of a group, on their way
        self._awaited: dict[int, list[Key]] = {}  # and the groups that wait for a number
        self._logs: dict[int, int] = {}  # by the number of a report under way, the cell whose log it goes to
        self._under_way: dict[int, int] = {}  # and by that, how many of them
        self._cells: set[int] = set()  # those that what was gathered goes to
        self._going = False
        self.boot = ""
        self._isolation = isolation
        self._cell = cell
        self._orders: dict[Key, StartSandboxes] = {}
        self._ready: dict[Key, Ranges] = {}
        self._began: dict[tuple[Key, str], Ranges] = {}  # and the digest of what they began as
        self._job_ready: dict[Key, Ranges] = {}  # since the last look, and since the one before it
        self._job_ready_long: dict[Key, Ranges] = {}
        self._finished: dict[Key, list[SandboxResult]] = {}
        self._ended: dict[tuple[Key, EndReason, str], Ranges] = {}
        self._slept: dict[Key, list[tuple[int, Snapshot, bool]]] = {}
        self._released: dict[Key, Ranges] = {}
        self._since: dict[Key, float] = {}  # when the first of a job group was ready; by the event loop's clock
        self._urgent = False
        self._waiting: asyncio.TimerHandle | None = None
        self._flush_due = False
        self._job_flush_due = False

    def go(self) -> None:
        """From now on publish by itself."""
        self._going = True
        for number in list(self._logs):
            if self._outgoing.is_stored(number):
                self._arrived(number)
        self._awaited.clear()
        for key, numbers in list(self._telling.items()):
            self._await(key, {number for number in numbers if not self._outgoing.is_stored(number)})
        self._free_told(tuple(self._held))
        if self._gathered:
            self._schedule()

    def add(self, report: Report) -> None:
        """Take a report."""
        key = report.group
        self._orders[key] = report.order
        self._cells.add(report.order.cell)
        wait_s = 0.0
        match report:
            case ReportReady(indices=indices, job=True):
                _add(self._job_ready, key, indices)
                if self._going:
                    self._since.setdefault(key, asyncio.get_running_loop().time())
                    if not self._job_flush_due:
                        self._job_flush_due = True
                        asyncio.get_running_loop().call_later(_JOB_READY_PAUSE_S, self._promote_job_ready)
                return
            case ReportReady(indices=indices, order=order):
                _add(self._ready, key, indices)
                if order.attempt:
                    _add(self._began, (key, order.snapshot.digest), indices)
            case ReportFinished(indices=done, results=results, more=more):
                wait_s = self._wait_s(key) if more else 0.0
                for waiting in (self._job_ready, self._job_ready_long):
                    if key in waiting:
                        _remove(waiting, key, done)
                self._finished.setdefault(key, []).extend(results)
            case ReportEnded(indices=indices, reason=reason, detail=detail):
                _add(self._ended, (key, reason, detail), indices)
            case ReportSlept(index=index, snapshot=snapshot, preempted=preempted):
                self._slept.setdefault(key, []).append((index, snapshot, preempted))
            case ReportReleased(indices=indices, more=more):
                wait_s = self._wait_s(key) if more else 0.0
                if not more:
                    self._since.pop(key, None)
                _add(self._released, key, indices)
        if wait_s:
            self._wait(wait_s)
        else:
            self._schedule()

    def _wait_s(self, key: Key) -> float:
        """Return how long what others of its group follow may wait for them."""
        since = self._since.get(key)
        if since is None:
            return 0.0
        return min(_WAIT_PART * (asyncio.get_running_loop().time() - since), _LONGEST_WAIT_S)

    def _wait(self, wait_s: float) -> None:
        if self._waiting is None and not self._urgent:
            self._waiting = asyncio.get_running_loop().call_later(wait_s, self._schedule)

    def flush(self, promoted: bool = False) -> None:
        """Publish all that was gathered; `promoted`: what jobs were ready at the last such look, and are still, too."""
        self._flush_due = False
        if not promoted and not self._gathered:
            return
        self._urgent = False
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._flushing(promoted)
        if promoted:
            for key, waiting in self._job_ready_long.items():
                _add(self._ready, key, waiting)
            self._job_ready_long, self._job_ready = self._job_ready, {}
        if not self._gathered:
            return
        for (key, digest), indices in self._began.items():
            rollout, attempt, node = key
            them = (rollout, attempt, indices, node, self._executor, self._isolation)
            self._outgoing.send(self._story(key), SandboxesBegan(*them, digest))
        for key, indices in self._ready.items():
            rollout, attempt, node = key
            digest = "" if attempt else self._orders[key].snapshot.digest
            ready = SandboxesReady(rollout, attempt, indices, node, self._executor, self._isolation, digest)
            self._report(key, ready)
        for key, results in self._finished.items():
            rollout, attempt, node = key
            for part in _parts(results):
                finished = SandboxesFinished(rollout, attempt, node, self._executor, self._isolation, part)
                self._tell(key, self._report(key, finished))
        for (key, reason, detail), indices in self._ended.items():
            rollout, attempt, node = key
            ended = SandboxesEnded(rollout, attempt, indices, node, reason, detail)
            self._tell(key, self._report(key, ended))
        for key, sleepers in self._slept.items():
            rollout, attempt, node = key
            for index, snapshot, preempted in sleepers:
                slept = SandboxSlept(rollout, attempt, index, node, snapshot, preempted)
                self._outgoing.send(self._story(key), slept)
                self._tell(key, self._report(key, slept))
        released = tuple(self._released)
        for key, indices in self._released.items():
            _add(self._held, key, indices)
        self._ready.clear()
        self._began.clear()
        self._finished.clear()
        self._ended.clear()
        self._slept.clear()
        self._released.clear()
        self._cells.clear()
        kept = self._job_ready.keys() | self._job_ready_long.keys()
        self._orders = {key: self._orders[key] for key in kept}
        self._free_told(released)

    def _report(self, key: Key, message: AnyMessage) -> int:
        order = self._orders[key]
        number = self._outgoing.send(subjects.rollout_sandbox(order.cell, order.tenant, order.run), message)
        self._logs[number] = order.cell
        self._under_way[order.cell] = self._under_way.get(order.cell, 0) + 1
        return number

    def _arrived(self, number: int) -> None:
        cell = self._logs.pop(number, None)
        if cell is not None:
            self._under_way[cell] -= 1

    def _tell(self, key: Key, number: int) -> None:
        """A message tells of a group: its slots wait until the broker has it, for it may take a later one before it."""
        self._telling.setdefault(key, set()).add(number)
        self._awaited.setdefault(number, []).append(key)

    def _await(self, key: Key, numbers: set[int]) -> None:
        self._telling.pop(key, None)
        for number in sorted(numbers):
            self._tell(key, number)

    def _free_told(self, groups: Sequence[Key]) -> None:
        told = tuple(key for key in groups if key in self._held and key not in self._telling)
        if self._going and told:
            self._freeing(told)
            self.free(told)

    def free(self, groups: Sequence[Key]) -> None:
        """Give back the slots of these groups' sandboxes that are gone."""
        for key in groups:
            rollout, attempt, node = key
            self._telling.pop(key, None)
            indices = self._held.pop(key, ())
            if indices:
                released = SlotsReleased(self._executor, self.boot, node, rollout, attempt, indices)
                self._outgoing.send(subjects.placement_release(self._cell), released)

    @property
    def held(self) -> tuple[tuple[Key, Ranges], ...]:
        """The slots that wait to be given back."""
        return tuple(self._held.items())

    def hold(self, held: Sequence[tuple[Key, Ranges]], numbers: Sequence[int]) -> None:
        """Go on with what an earlier process held back, until the broker has the messages of these numbers."""
        for key, indices in held:
            self._held[key] = indices
            self._await(key, set(numbers))

    def _story(self, key: Key) -> str:
        order = self._orders[key]
        return subjects.trajectory(order.cell, order.tenant, order.run)

    @property
    def _gathered(self) -> bool:
        return bool(self._ready or self._finished or self._ended or self._slept or self._released)

    def _schedule(self) -> None:
        """Have what was gathered leave as soon as one of the logs that it goes to keeps up."""
        self._urgent = True
        if self._going and not self._flush_due and self._keeps_up:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    @property
    def _keeps_up(self) -> bool:
        return any(self._under_way.get(cell, 0) < _IN_FLIGHT for cell in self._cells)

    def stored(self, number: int) -> None:
        """The broker has the message of this number: there may be room for more, and slots may be free now."""
        self._arrived(number)
        groups = self._awaited.pop(number, ())
        for key in groups:
            waiting = self._telling.get(key)
            if waiting is not None:
                waiting.discard(number)
                if not waiting:
                    del self._telling[key]
        self._free_told(groups)
        if self._urgent and self._gathered:
            self._schedule()

    def _promote_job_ready(self) -> None:
        self._job_flush_due = bool(self._job_ready or self._job_ready_long)
        if self._job_flush_due:
            self.flush(promoted=True)
            asyncio.get_running_loop().call_later(_JOB_READY_PAUSE_S, self._promote_job_ready)


_K = TypeVar("_K")


def _add(gathered: dict[_K, Ranges], key: _K, indices: Ranges) -> None:
    gathered[key] = ranges.union(gathered.get(key, ()), indices)


def _remove(gathered: dict[_K, Ranges], key: _K, indices: Ranges) -> None:
    left = ranges.without(gathered[key], indices)
    if left:
        gathered[key] = left
    else:
        del gathered[key]


def _parts(results: list[SandboxResult]) -> list[tuple[SandboxResult, ...]]:
    if sum([64 + len(each.result.stdout) + len(each.result.stderr) for each in results]) <= _MESSAGE_BYTES:
        return [tuple(results)]
    parts: list[tuple[SandboxResult, ...]] = []
    part: list[SandboxResult] = []
    size = 0
    for result in results:
        weight = 64 + len(result.result.stdout) + len(result.result.stderr)
        if part and size + weight > _MESSAGE_BYTES:
            parts.append(tuple(part))
            part, size = [], 0
        part.append(result)
        size += weight
    parts.append(tuple(part))
    return parts
