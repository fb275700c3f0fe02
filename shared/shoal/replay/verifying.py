"""Verifying: the recorded inboxes through the present code, and every effect compared with what was recorded.

An effect's id is its cause, so what a service said stands in the log under the name of the message it followed from.
All streams are read once, merged by time; what was computed and what was recorded wait for each other for as long as a
message takes, so memory stays small however long the recording is.
"""

from array import array
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from shoal.archive.source import ArchiveError, History, merged
from shoal.bus.protocol import Delivery
from shoal.machine.checkpoint import Checkpoint
from shoal.machine.core import Cause, Core, LawBrokenError, Publish, cause_of
from shoal.machine.passing import PassedOver
from shoal.machine.service import Service
from shoal.replay.folding import fold, passed_over
from shoal.replay.rebuilding import cells_of
from shoal.wire import streams
from shoal.wire.codec import UndecodableError, decode, encode
from shoal.wire.messages import AnyMessage, SettingsChanged

TELL_EVERY: Final = 8192
_TAIL_MS: Final = 120_000
"""What was not recorded of a cause's effects within so long of it never will be: a shell repeats until it is."""


@dataclass(frozen=True, slots=True)
class Said:
    """An effect, as it was recorded or as the present code has it."""

    subject: str
    payload: bytes

    @property
    def message(self) -> AnyMessage | None:
        """What it says; None where this version cannot read it."""
        try:
            return decode(self.payload)
        except UndecodableError:
            return None


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place where the present code says something else than was recorded; None: it says nothing there."""

    partition: str
    sequence: int
    time_ms: int
    cause: Delivery
    number: int
    recorded: Said | None
    computed: Said | None

    @property
    def what(self) -> str:
        """Return it as a sentence."""
        where = f"{self.partition}, message {self.sequence}"
        if self.recorded is None:
            return f"{where}: effect {self.number} was never recorded"
        if self.computed is None:
            return f"{where}: effect {self.number} was recorded, and nothing of the kind follows now"
        return f"{where}: effect {self.number} is another one than was recorded"


@dataclass(slots=True)
class Verified:
    """What came of it: how many messages were folded and effects compared by partition, and where they first differ.

    `unfinished`: effects of the last messages, which were not yet stored when the recording ended.
    """

    folded: dict[str, int] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)
    unfinished: int = 0
    divergence: Divergence | None = None


@dataclass(slots=True)
class _Waiting:
    """What follows from one message, and was not recorded yet."""

    cause: Delivery
    said: dict[int, Said]


class _Partition:
    """One core, and what is to be compared of it. It begins after the message `begun`."""

    def __init__(
        self,
        name: str,
        stream: str,
        core: Core,
        begun: int,
        passed: PassedOver,
        kept: Mapping[str, int],
        overrides: Mapping[str, str],
    ) -> None:
        """`kept`: the streams there are, and since when (ms) nothing is missing of each."""
        self.name = name
        self.stream = stream
        self.core = core
        self.at = self._begun = begun
        self.folded = 0
        self.compared = 0
        self._passed = passed
        self._kept = kept
        self._overrides = overrides
        self._computed: dict[int, _Waiting] = {}
        self._recorded: dict[int, dict[int, Said]] = {}
        self._counts = array("H")  # of each message that was folded, how many effects it has
        if overrides:
            try:
                core.handle(SettingsChanged(tuple(overrides.items())), Cause(stream, begun, 0))
            except LawBrokenError as error:
                raise ArchiveError(str(error)) from error

    def fold(self, delivery: Delivery) -> Divergence | None:
        """Fold a message of the inbox. Raises ArchiveError where the present code fails on it."""
        cause = Cause(self.stream, delivery.sequence, delivery.time_ms)
        # a dead letter has an id of its own
        effects = fold(self.core, self.name, self._passed, delivery, cause, self._payload(delivery))
        self._counts.extend([0] * (delivery.sequence - self.at - 1))
        self._counts.append(len(effects))
        self.at = delivery.sequence
        self.folded += 1
        said: dict[int, Said] = {}
        for number, effect in enumerate(effects):
            if isinstance(effect, Publish):
                said[number] = Said(effect.subject, encode(effect.message))
        for number, recorded in sorted(self._recorded.pop(delivery.sequence, {}).items()):
            found = self._compare(delivery, number, recorded, said.pop(number, None))
            if found is not None:
                return found
        expected = {number: each for number, each in said.items() if self._is_kept(each.subject, delivery.time_ms)}
        if expected:
            self._computed[delivery.sequence] = _Waiting(delivery, expected)
        return self._overdue(delivery.time_ms)

    def _payload(self, delivery: Delivery) -> bytes:
        if not self._overrides:
            return delivery.payload
        try:
            message = decode(delivery.payload)
        except UndecodableError:
            return delivery.payload
        if not isinstance(message, SettingsChanged):
            return delivery.payload
        return encode(SettingsChanged(tuple({**dict(message.settings), **self._overrides}.items())))

    def _is_kept(self, subject: str, time_ms: int) -> bool:
        since_ms = self._kept.get(streams.stream_of(subject))
        return since_ms is not None and time_ms >= since_ms

    def _compare(self, cause: Delivery, number: int, recorded: Said, computed: Said | None) -> Divergence | None:
        self.compared += 1
        if recorded == computed:
            return None
        return Divergence(self.name, cause.sequence, cause.time_ms, cause, number, recorded, computed)

    def hear(self, sequence: int, number: int, recorded: Said) -> Divergence | None:
        """Take note of an effect that was recorded; a copy of one that was compared already says nothing new."""
        if sequence <= self._begun:
            return None
        if sequence > self.at:
            self._recorded.setdefault(sequence, {})[number] = recorded
            return None
        waiting = self._computed.get(sequence)
        if waiting is not None and number in waiting.said:
            computed = waiting.said.pop(number)
            if not waiting.said:
                del self._computed[sequence]
            return self._compare(waiting.cause, number, recorded, computed)
        if number < self._counts[sequence - self._begun - 1]:
            return None  # it came twice
        return Divergence(self.name, sequence, 0, Delivery("", b"", sequence, 0, ""), number, recorded, None)

    def _overdue(self, now_ms: int) -> Divergence | None:
        for sequence, waiting in self._computed.items():
            if now_ms - waiting.cause.time_ms <= _TAIL_MS:
                return None
            number, computed = next(iter(waiting.said.items()))
            cause = waiting.cause
            return Divergence(self.name, sequence, cause.time_ms, cause, number, None, computed)
        return None

    @property
    def unfinished(self) -> int:
        """How many effects of the last messages were not recorded."""
        return sum(len(waiting.said) for waiting in self._computed.values())


async def verify(
    history: History,
    services: Mapping[str, Service],
    *,
    overrides: Mapping[str, Mapping[str, str]] | None = None,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Verified:
    """Fold every recorded inbox through the present code; stop at the first effect that differs.

    `overrides`: settings by service that take the place of what was recorded, to see where they would first matter.
    `tell` hears how many messages were read, of how many. Raises ArchiveError, DamagedError.
    """
    partitions = await _partitions(history, services, overrides or {})
    names = list(await history.streams())
    of = sum(max(bounds.last - bounds.first + 1, 0) for bounds in [await history.bounds(name) for name in names])
    by_stream = {partition.stream: partition for partition in partitions}
    found = Verified()
    done = 0
    async with aclosing(merged(history, names)) as messages:
        async for name, delivery in messages:
            done += 1
            if not done % TELL_EVERY:
                tell(done, of)
            mine = by_stream.get(name)
            if mine is not None and delivery.sequence > mine.at:
                found.divergence = mine.fold(delivery)
            if found.divergence is None:
                found.divergence = _heard(by_stream, delivery)
            if found.divergence is not None:
                found.divergence = await _with_cause(history, by_stream, found.divergence)
                break
    tell(done, of)
    for partition in partitions:
        found.folded[partition.name] = partition.folded
        found.compared[partition.name] = partition.compared
        found.unfinished += partition.unfinished
    return found


def _heard(by_stream: Mapping[str, _Partition], delivery: Delivery) -> Divergence | None:
    """Compare a message that is a partition's effect."""
    cause = cause_of(delivery.id)
    partition = by_stream.get(cause[0]) if cause is not None else None
    if cause is None or partition is None:
        return None  # somebody else's, or what came of a task at the edge
    return partition.hear(cause[1], cause[2], Said(delivery.subject, delivery.payload))


async def _with_cause(
    history: History, by_stream: Mapping[str, _Partition], found: Divergence
) -> Divergence:  # fmt: skip
    """Return the divergence with its cause as it is in the log."""
    if found.cause.subject:
        return found
    (stream,) = [stream for stream, partition in by_stream.items() if partition.name == found.partition]
    async with aclosing(history.read(stream, after=found.sequence - 1, until=found.sequence)) as messages:
        async for delivery in messages:
            return Divergence(
                found.partition, found.sequence, delivery.time_ms, delivery, found.number, found.recorded,
                found.computed,
            )  # fmt: skip
    return found


async def _partitions(
    history: History, services: Mapping[str, Service], overrides: Mapping[str, Mapping[str, str]]
) -> list[_Partition]:
    cells, kept = await cells_of(history), await _kept(history)
    found: list[_Partition] = []
    for service in services.values():
        for cell in range(cells if service.celled else 1):
            name, stream = service.partition(cell), service.stream(cell)
            if stream not in kept:
                continue
            core, begun = service.make(cell, cells), 0
            if (first := (await history.bounds(stream)).first) > 1:
                # The log's beginning is gone: it is begun with the first state that the recording has.
                known = await _first_state(history, name, core.state_version, stream, first)
                core.load(known.state)
                begun = known.sequence
            passed = await passed_over(history, name)
            found.append(_Partition(name, stream, core, begun, passed, kept, overrides.get(service.name, {})))
    return found


async def _first_state(history: History, name: str, version: int, stream: str, first: int) -> Checkpoint:
    """Return the first state from which all messages that a stream has after it can be folded. Raises ArchiveError."""
    async with aclosing(history.states(name)) as states:
        async for each in states:
            if (each.version, each.stream) == (version, stream) and each.sequence >= first - 1:
                return each
    raise ArchiveError(f"{stream} begins with message {first}, and no state of {name} is at hand")


async def _kept(history: History) -> dict[str, int]:
    """Return the streams there are, and since when nothing is missing of each."""
    found: dict[str, int] = {}
    for name in await history.streams():
        first, last = await history.bounds(name)
        found[name] = 0
        if 1 < first <= last:
            async with aclosing(history.read(name, until=first)) as messages:
                async for delivery in messages:
                    found[name] = delivery.time_ms + 1
    return found
