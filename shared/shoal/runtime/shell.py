"""The shell around a pure core: reads its inbox in order, folds, lets the effects out, then acknowledges.

An input is acknowledged only when every effect it caused is stored, so a crash at any point repeats effects, with the
ids they had, and loses none. Batches overlap: while the effects of one are on their way the next is folded.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import structlog

from shoal.bus.ending import end
from shoal.bus.protocol import Bus, BusError, Delivery, Reader, Stored, TooLargeError
from shoal.machine.core import Cause, Core, Effect, Inspect, LawBrokenError, Publish, effect_id
from shoal.wire import subjects
from shoal.wire.codec import UndecodableError, decode, encode
from shoal.wire.messages import DeadLetter, Tick

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_BATCH: Final = 512
_BATCHES_AHEAD: Final = 8
"""How many folded batches may wait for their effects to be stored before no more is read."""
_PAYLOAD_KEPT: Final = 256 * 1024
"""Bytes of a dead message's payload that its dead letter keeps, so that the letter itself can be stored."""

_FAREWELL_S: Final = 5.0

log = structlog.get_logger()

Perform = Callable[[Inspect], Awaitable[Sequence[Publish]]]
"""Does what an Inspect effect asks and returns what to publish about it. Its errors are tried again."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def dead_letter_of(delivery: Delivery, cause: Cause, reader: str, reason: str) -> tuple[str, bytes, str]:
    """Return subject, payload and id of the dead letter for a message a reader cannot use."""
    letter = DeadLetter(
        cause.stream, cause.sequence, delivery.subject, reader, reason, delivery.payload[:_PAYLOAD_KEPT]
    )
    return subjects.dead(cause.stream), encode(letter), f"dead:{cause.stream}:{cause.sequence}:{reader}"


async def dead_letter(bus: Bus, delivery: Delivery, cause: Cause, reader: str, reason: str) -> None:
    """Keep a message this reader cannot use where operators find it; returns when it is stored."""
    log.error("message put aside", stream=cause.stream, sequence=cause.sequence, reader=reader, reason=reason)
    subject, payload, id = dead_letter_of(delivery, cause, reader, reason)
    await store(bus, subject, payload, id)


async def store(bus: Bus, subject: str, payload: bytes, id: str) -> Stored:
    """Publish until the broker has it. Raises only what no waiting mends: TooLargeError."""
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return await bus.publish(subject, payload, id)
        except TooLargeError:
            raise
        except BusError as error:
            log.error("publishing again", subject=subject, id=id, error=str(error), after_s=pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)


@dataclass(frozen=True, slots=True)
class _Leaving:
    """One effect on its way to the broker."""

    future: "asyncio.Future[Stored]"
    subject: str
    payload: bytes
    id: str
    cause: Cause


class Shell:
    """Runs one core over one stream. The counters say what it did since it started."""

    def __init__(
        self,
        bus: Bus,
        core: Core,
        *,
        name: str,
        stream: str,
        tick_subject: str | None = None,
        perform: Perform | None = None,
        now_ms: Callable[[], int] = _now_ms,
    ) -> None:
        """`name` is the reader's, `tick_subject` one of the stream's; `now_ms` only decides when to publish ticks."""
        self._bus = bus
        self._core = core
        self._name = name
        self._stream = stream
        self._tick_subject = tick_subject
        self._perform = perform
        self._now_ms = now_ms
        self._nonce = uuid4().hex
        self._performing: set[asyncio.Task[None]] = set()
        self._leaving: deque[tuple[int, list[_Leaving]]] = deque()
        self._folded_some = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._room = asyncio.Event()
        self._room.set()
        self._retime = asyncio.Event()
        self._ready = asyncio.Event()
        self.position = 0  # the last sequence folded
        self.acknowledged = 0
        self.replayed = 0
        self.folded = 0
        self.published = 0
        self.dead = 0

    async def ready(self) -> None:
        """Wait until the recorded past is folded and new messages are being handled."""
        await self._ready.wait()

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Recover, then serve until stop is set or this is cancelled. On stop, what was folded is acknowledged first.

        Raises what the core raises beyond LawBrokenError: its state is then not to be trusted.
        """
        self.acknowledged = await self._bus.acknowledged(self._name)
        reader = await self._bus.reader(self._stream)
        tasks: list[asyncio.Task[None]] = []
        try:
            tasks.append(asyncio.create_task(self._follow(reader), name=f"{self._name} follows"))
            tasks.append(asyncio.create_task(self._acknowledge(), name=f"{self._name} acknowledges"))
            if self._tick_subject is not None:
                tasks.append(asyncio.create_task(self._tick(self._tick_subject), name=f"{self._name} ticks"))
            await self._until(stop, tasks)
            await self._finish(tasks)
        finally:
            await end(*tasks, *self._performing)
            await reader.close()

    async def _until(self, stop: asyncio.Event | None, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Wait for stop, or raise what one of the tasks raised: none of them ends by itself."""
        stopped = asyncio.create_task((stop or asyncio.Event()).wait())
        try:
            done, _ = await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task in done:
                    task.result()
        finally:
            stopped.cancel()

    async def _finish(self, tasks: list[asyncio.Task[None]]) -> None:
        """Let what was folded be stored and acknowledged, for a short while; the rest is repeated by the next life."""
        follow, acknowledge, *ticks = tasks
        await end(follow, *ticks)

        settled = asyncio.create_task(self._settled.wait())
        await asyncio.wait({settled, acknowledge}, timeout=_FAREWELL_S, return_when=asyncio.FIRST_COMPLETED)
        settled.cancel()

    # --- folding

    async def _follow(self, reader: Reader) -> None:
        started = time.monotonic()
        done = min(self.acknowledged, await self._bus.last_sequence(self._stream))
        if await self._bus.first_sequence(self._stream) > done:
            done = 0  # what was done with is no longer kept: there is nothing to fold in silence
        live = done == 0
        if live:
            self._go_live(started)
        while True:
            for delivery in (batch := await reader.batch(_BATCH)):
                if delivery.sequence > done and not live:
                    live = True
                    self._go_live(started)
                if delivery.sequence <= done:
                    self._replay(delivery)
            if not live and batch[-1].sequence >= done:
                live = True
                self._go_live(started)
            fresh = [delivery for delivery in batch if delivery.sequence > done]
            if fresh:
                await self._room.wait()
                self._fold(fresh)
            self._retime.set()

    def _go_live(self, started: float) -> None:
        """The past is folded: ask again for what is still unanswered, and begin to let effects out."""
        for number, effect in enumerate(self._core.outstanding()):
            if isinstance(effect, Inspect):
                self._start_performing(effect, f"{self._stream}:outstanding:{number}")
        seconds = round(time.monotonic() - started, 3)
        log.info("serving", reader=self._name, stream=self._stream, replayed=self.replayed, recovery_s=seconds)
        self._ready.set()
        self._retime.set()

    def _replay(self, delivery: Delivery) -> None:
        """Fold a message whose effects are out, dead letter included."""
        self.position = delivery.sequence
        try:
            self._core.handle(decode(delivery.payload), self._cause(delivery))
        except (UndecodableError, LawBrokenError):
            return
        finally:
            self.replayed += 1

    def _fold(self, batch: Sequence[Delivery]) -> None:
        """Fold messages and let their effects out, in order."""
        leaving: list[_Leaving] = []
        for delivery in batch:
            cause = self._cause(delivery)
            self.position = delivery.sequence
            self.folded += 1
            try:
                effects: Sequence[Effect] = self._core.handle(decode(delivery.payload), cause)
            except (UndecodableError, LawBrokenError) as error:
                leaving.append(self._bury(delivery, cause, str(error)))
                continue
            except Exception:
                log.critical("the core failed", reader=self._name, sequence=delivery.sequence, subject=delivery.subject)
                raise
            for number, effect in enumerate(effects):
                id = effect_id(cause, number)
                match effect:
                    case Publish(subject=subject, message=message):
                        leaving.append(self._send(subject, encode(message), id, cause))
                    case Inspect():
                        self._start_performing(effect, id)
        self._leaving.append((self.position, leaving))
        self._folded_some.set()
        self._settled.clear()
        if len(self._leaving) >= _BATCHES_AHEAD:
            self._room.clear()

    def _cause(self, delivery: Delivery) -> Cause:
        return Cause(self._stream, delivery.sequence, delivery.time_ms)

    def _send(self, subject: str, payload: bytes, id: str, cause: Cause) -> _Leaving:
        future = self._bus.publish(subject, payload, id)
        future.add_done_callback(_retrieve)
        return _Leaving(future, subject, payload, id, cause)

    def _bury(self, delivery: Delivery, cause: Cause, reason: str) -> _Leaving:
        self.dead += 1
        log.error("message put aside", reader=self._name, sequence=cause.sequence, reason=reason)
        return self._send(*dead_letter_of(delivery, cause, self._name, reason), cause)

    # --- storing and acknowledging

    async def _acknowledge(self) -> None:
        """See every effect stored, in order; then write down how far that is."""
        while True:
            while not self._leaving:
                self._folded_some.clear()
                await self._folded_some.wait()
            position = 0
            while self._leaving and (position == 0 or all(each.future.done() for each in self._leaving[0][1])):
                position, leaving = self._leaving[0]
                for each in leaving:
                    await self._see_stored(each)
                self._leaving.popleft()
                if len(self._leaving) < _BATCHES_AHEAD:
                    self._room.set()
            await self._write_position(position)
            if not self._leaving:
                self._settled.set()

    async def _see_stored(self, each: _Leaving) -> None:
        try:
            try:
                await each.future
            except TooLargeError:
                raise
            except BusError as error:
                log.error("an effect is not stored yet", reader=self._name, id=each.id, error=str(error))
                await store(self._bus, each.subject, each.payload, each.id)
            self.published += 1
        except TooLargeError as error:
            whole = Delivery(each.subject, each.payload, each.cause.sequence, each.cause.time_ms, each.id)
            self.dead += 1
            await dead_letter(self._bus, whole, each.cause, f"{self._name}:{each.id}", str(error))

    async def _write_position(self, position: int) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                await self._bus.acknowledge(self._name, position)
            except BusError as error:
                log.error("the position is not stored yet", reader=self._name, position=position, error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
            else:
                self.acknowledged = position
                return

    # --- what is not a message: looking at the world, and time

    def _start_performing(self, effect: Inspect, id: str) -> None:
        if self._perform is None:
            raise TypeError(f"{self._name} cannot perform {effect}: it was given nothing to perform it with")
        task = asyncio.create_task(self._performed(self._perform, effect, id), name=f"{self._name} performs {id}")
        self._performing.add(task)
        task.add_done_callback(self._performing.discard)

    async def _performed(self, perform: Perform, effect: Inspect, id: str) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                answers = await perform(effect)
                break
            except Exception:
                log.exception("an effect failed and is tried again", reader=self._name, effect=str(effect))
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
        # The world may have changed since an earlier life looked at it, so an answer is never a copy of that one's.
        for number, answer in enumerate(answers):
            await store(self._bus, answer.subject, encode(answer.message), f"{id}:{self._nonce}:{number}")

    async def _tick(self, subject: str) -> None:
        """Publish a Tick when the core is due.

        The broker's clock may be behind ours, and then the core is still due after it: the next Tick has another id.
        """
        await self._ready.wait()
        due: int | None = None
        repeats = 0
        while True:
            self._retime.clear()
            wake = self._core.wake_at_ms()
            if wake != due:
                due, repeats = wake, 0
            now = self._now_ms()
            if due is None or due > now:
                await self._sleep(None if due is None else (due - now) / 1000)
                continue
            id = f"tick:{self._stream}:{due}" + (f":{self._nonce}:{repeats}" if repeats else "")
            await store(self._bus, subject, encode(Tick(due)), id)
            await self._sleep_while_due(due, min(0.05 * 2**repeats, 1.0))
            repeats = min(repeats + 1, 1_000_000)

    async def _sleep_while_due(self, due: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._core.wake_at_ms() == due and (left := until - time.monotonic()) > 0:
            self._retime.clear()
            await self._sleep(left)

    async def _sleep(self, seconds: float | None) -> None:
        """Sleep, at most until the core's state changes."""
        try:
            async with asyncio.timeout(seconds):
                await self._retime.wait()
        except TimeoutError:
            return


def _retrieve(future: "asyncio.Future[Stored]") -> None:
    """Note that a failure is dealt with in `_see_stored`; a crash before that is no news."""
    if not future.cancelled():
        future.exception()
