"""What has become of each sandbox of a rollout, folded from its reports.

The scheduler and every trainer fold the same log with this same code, so they agree on every sandbox without asking
each other: a report counts only for the sandbox's present attempt and only until the sandbox has ended. Six bytes a
sandbox, whatever happened to it. A sandbox that sleeps is one that will be started again when it is wanted: its next
attempt has begun, and asks for nothing yet. One that is hedged is being started in two attempts at once: the first to
be ready is the present one from then on, and the other one's reports mean nothing any more.
"""

from array import array
from collections.abc import Iterable
from typing import Final

from shoal.machine import ranges
from shoal.wire.messages import CommandResult, EndReason, OnLost, Ranges, RolloutSpec, SandboxResult

_PENDING: Final = 0
_READY: Final = 1
_ASLEEP: Final = 2
_ENDED: Final = 3  # and the reason's number on top
_REASONS: Final = tuple(EndReason)
_ENDED_BY: Final = {reason: _ENDED + number for number, reason in enumerate(_REASONS)}

_ALL_READY: Final = bytes([_READY])
_SUCCEEDED: Final = _ENDED_BY[EndReason.SUCCEEDED]

HEDGE: Final = 1 << 20
"""Added to an attempt's number, this is the number of its hedge."""


def next_attempt(attempt: int) -> int:
    """Return the number of the attempt after this one, which may be a hedge."""
    return (attempt & (HEDGE - 1)) + 1


def reason_of(result: CommandResult) -> EndReason:
    """Return how a sandbox ended whose one command gave this result."""
    if result.exit_code == 0 and not result.timed_out:
        return EndReason.SUCCEEDED
    if result.timed_out:
        return EndReason.TIMED_OUT
    if result.out_of_memory:
        return EndReason.OUT_OF_MEMORY
    return EndReason.DISK_FULL if result.disk_full else EndReason.COMMAND_FAILED


Dumped = tuple[bytes, list[int], bytes, list[int], list[tuple[int, int]]]
"""Of each sandbox its state, its attempt (none at all where nobody had a second), how often it failed; the hedged, and
those that ever were."""


class Ledger:
    """The sandboxes of one rollout: each pending, ready or ended, in its present attempt."""

    __slots__ = (
        "_attempts",
        "_ended",
        "_failures",
        "_hedged",
        "_limit",
        "_on_lost",
        "_retried",
        "_states",
        "_tried",
        "n",
    )

    def __init__(self, spec: RolloutSpec) -> None:
        self.n = spec.n
        self._states = bytearray(spec.n)
        self._attempts = array("I", bytes(4 * spec.n))
        self._failures = bytearray(spec.n)
        self._on_lost = spec.on_lost
        self._limit = min(max(spec.max_attempts, 1), 255)
        self._ended = 0
        self._retried = False  # whether any sandbox is in another attempt than the first
        self._hedged: dict[int, None] = {}
        self._tried: dict[int, int] = {}  # the last attempt that was hedged: once is enough

    def dump(self) -> "Dumped":
        """Return the whole state beyond the spec: of each sandbox what it is, its attempt, and how often it failed."""
        attempts = list(self._attempts) if self._retried and any(self._attempts) else []
        return bytes(self._states), attempts, bytes(self._failures), sorted(self._hedged), sorted(self._tried.items())

    @classmethod
    def load(cls, spec: RolloutSpec, dumped: "Dumped") -> "Ledger":
        """Return the ledger that was dumped. Raises ValueError where it is not one of this spec."""
        ledger = cls(spec)
        states, attempts, failures, hedged, tried = dumped
        ledger._tried = dict(tried)
        ledger._hedged = dict.fromkeys(hedged)
        ledger._states, ledger._failures = bytearray(states), bytearray(failures)
        ledger._attempts = array("I", attempts or bytes(4 * spec.n))
        ledger._retried = any(attempts)
        if not len(ledger._states) == len(ledger._attempts) == len(ledger._failures) == spec.n:
            raise ValueError(f"a ledger of {len(ledger._states)} for a rollout of {spec.n}")
        ledger._ended = sum(state >= _ENDED for state in ledger._states)
        return ledger

    @property
    def concluded(self) -> bool:
        """Whether every sandbox has ended."""
        return self._ended == self.n

    @property
    def live(self) -> int:
        """How many have not ended."""
        return self.n - self._ended

    def attempt(self, index: int) -> int:
        """Return the sandbox's present attempt, from 0."""
        return self._attempts[index]

    def is_ready(self, index: int) -> bool:
        """Return whether the sandbox takes commands."""
        return self._states[index] == _READY

    def reason(self, index: int) -> EndReason | None:
        """Return why the sandbox ended, or None while it has not."""
        state = self._states[index]
        return _REASONS[state - _ENDED] if state >= _ENDED else None

    def starts(self, index: int) -> int:
        """Return how often a sandbox was started, of which `max_attempts` is the most."""
        return self._failures[index] + 1

    def ready_count(self) -> int:
        """Return how many take commands now."""
        return self._states.count(_READY)

    def asleep(self, among: Ranges) -> Ranges:
        """Return those of these indices that sleep: they are kept, and run nowhere."""
        parts = ((first, self._states[first : first + count]) for first, count in among)
        return ranges.collect(
            first + at for first, part in parts if _ASLEEP in part for at, state in enumerate(part) if state == _ASLEEP
        )

    def asleep_count(self) -> int:
        """Return how many sleep."""
        return self._states.count(_ASLEEP)

    def open(self, among: Ranges = ()) -> Ranges:
        """Return the indices (of those given; none given means all) that have not ended."""
        asked, states = among or ranges.whole(self.n), self._states
        if len(asked) == 1 and (not self._ended or max(states[asked[0][0] : sum(asked[0])]) < _ENDED):
            return asked
        return ranges.collect(index for index in ranges.indices(asked) if states[index] < _ENDED)

    def counts(self) -> tuple[tuple[EndReason, int], ...]:
        """Return how many ended for which reason, in the reasons' order."""
        counted = ((reason, self._states.count(state)) for reason, state in _ENDED_BY.items())
        return tuple((reason, count) for reason, count in counted if count)

    def pending(self, attempt: int, among: Ranges) -> Ranges:
        """Return those of these indices that are being started in this attempt, which was not hedged."""
        return ranges.collect(
            i
            for i in ranges.indices(among)
            if self._attempts[i] == attempt and self._states[i] == _PENDING and self._tried.get(i) != attempt
        )

    def hedged(self, among: Ranges) -> Ranges:
        """Return those of these indices that are being started in two attempts."""
        return ranges.collect(i for i in self._hedged if ranges.holds(among, i)) if self._hedged else ()

    def hedged_count(self) -> int:
        """Return how many are being started in two attempts."""
        return len(self._hedged)

    def hedge(self, attempt: int, indices: Ranges) -> Ranges:
        """Note that these sandboxes are started in a second attempt, too; returns those it is news for."""
        news = self.pending(attempt, indices) if attempt < HEDGE else ()
        self._hedged.update(dict.fromkeys(ranges.indices(news)))
        self._tried.update(dict.fromkeys(ranges.indices(news), attempt))
        return news

    def _present(self, attempt: int, index: int) -> bool:
        """Return whether an attempt is the present one of a sandbox; of two, the one that is heard of first."""
        if self._attempts[index] != attempt:
            if index not in self._hedged or self._attempts[index] + HEDGE != attempt:
                return False
            self._attempts[index] = attempt
            self._retried = True
        self._hedged.pop(index, None)
        return True

    def ready(self, attempt: int, indices: Ranges) -> Ranges:
        """Note readiness; returns the indices for which this is news."""
        if not attempt and not self._retried and not self._hedged:
            parts = [(first, first + count) for first, count in indices]
            if all(self._states.count(_PENDING, begin, end) == end - begin for begin, end in parts):
                for begin, end in parts:
                    self._states[begin:end] = _ALL_READY * (end - begin)
                return indices
        news = [i for i in ranges.indices(indices) if self._states[i] == _PENDING and self._present(attempt, i)]
        for index in news:
            self._states[index] = _READY
        return ranges.collect(news)

    def finish(self, attempt: int, results: Iterable[SandboxResult]) -> list[int]:
        """Note the results of sandboxes' one command each; returns the indices for which they count, in that order."""
        states, plain = self._states, not attempt and not self._retried and not self._hedged
        ended = []
        for done in results:
            index, result = done.index, done.result
            if states[index] >= _ASLEEP or not (plain or self._present(attempt, index)):
                continue
            if result.exit_code == 0 and not result.timed_out:
                states[index] = _SUCCEEDED
            else:
                states[index] = _ENDED_BY[reason_of(result)]
            ended.append(index)
        self._ended += len(ended)
        return ended

    def end(self, attempt: int, indices: Ranges, reason: EndReason) -> tuple[Ranges, Ranges]:
        """Note ends without a result; returns the indices that ended for good, and those to be started again.

        A sandbox that failed to start holds nothing yet, so it is always tried again; one that was lost is by the
        rollout's policy. Both within its `max_attempts`, which what made room for others does not count for. Of two
        attempts, the other one goes on.
        """
        gone: list[int] = []
        again: list[int] = []
        made_room = reason is EndReason.PREEMPTED
        retried = reason is EndReason.START_FAILED or (reason.lost and self._on_lost is not OnLost.FAIL)
        for index in ranges.indices(indices):
            if self._states[index] >= _ASLEEP or self._hedge_ended(attempt, index) or self._attempts[index] != attempt:
                continue
            if made_room or (retried and self._failures[index] + 1 < self._limit):
                self._attempts[index] = next_attempt(attempt)
                self._retried = True
                self._failures[index] += not made_room
                self._states[index] = _PENDING
                again.append(index)
            else:
                self._end(index, reason)
                gone.append(index)
        return ranges.collect(gone), ranges.collect(again)

    def _hedge_ended(self, attempt: int, index: int) -> bool:
        """Note that one of two attempts is over; returns whether the other one goes on."""
        present = self._attempts[index]
        if index not in self._hedged or attempt not in (present, present + HEDGE):
            return False
        del self._hedged[index]
        if attempt == present:
            self._attempts[index] = present + HEDGE
            self._retried = True
        return True

    def sleep(self, attempt: int, index: int) -> bool:
        """Note that a sandbox sleeps; its next attempt begins when it is wanted. Returns whether it is news."""
        if self._states[index] >= _ASLEEP or not self._present(attempt, index):
            return False
        self._attempts[index] = next_attempt(attempt)
        self._retried = True
        self._states[index] = _ASLEEP
        return True

    def wake(self, indices: Ranges) -> Ranges:
        """Note that these sandboxes are wanted; returns those that slept, which are pending now."""
        news = [index for index in ranges.indices(indices) if self._states[index] == _ASLEEP]
        for index in news:
            self._states[index] = _PENDING
        return ranges.collect(news)

    def close(self, indices: Ranges, reason: EndReason) -> Ranges:
        """End these sandboxes whatever their attempt (release, cancel, time out); returns those it is news for."""
        news = self.open(indices) if indices else ()
        for index in [index for index in self._hedged if ranges.holds(news, index)]:
            del self._hedged[index]
        for first, count in news:
            self._states[first : first + count] = bytes([_ENDED_BY[reason]]) * count
            self._ended += count
        return news

    def by_attempt(self, indices: Iterable[int]) -> list[tuple[int, Ranges]]:
        """Return these indices grouped by their present attempt, ascending."""
        groups: dict[int, list[int]] = {}
        for index in indices:
            groups.setdefault(self._attempts[index], []).append(index)
        return [(attempt, ranges.collect(groups[attempt])) for attempt in sorted(groups)]

    def _end(self, index: int, reason: EndReason) -> None:
        self._hedged.pop(index, None)
        self._states[index] = _ENDED_BY[reason]
        self._ended += 1

    def check(self) -> None:
        """Assert the ledger's invariants."""
        assert self._ended == sum(state >= _ENDED for state in self._states)
        assert all(failures < self._limit for failures in self._failures)
        assert self._retried or not any(self._attempts)
        assert all(self._states[index] == _PENDING and self._attempts[index] < HEDGE for index in self._hedged)
