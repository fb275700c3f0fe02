"""The shell around a pure core: folds its inbox in order, lets the effects out, and says how far it is.

A shell is a *standby* or the *leader* of its partition; both fold alike. A standby keeps what follows from messages the
leader is not done with, so that it can take over without folding anything again: it sends exactly what is not known to
be stored, with the ids the leader would have used. A crash at any point repeats effects, and loses none.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from shoal.bus.ending import end
from shoal.bus.protocol import Bus, BusError, Delivery, Reader, StreamAnewError
from shoal.machine.checkpoint import Checkpoint
from shoal.machine.core import Cause, Core, Effect, Publish, Task, effect_id, respond
from shoal.runtime.checkpoints import Checkpoints, dump
from shoal.runtime.dead import dead_letter_of, store
from shoal.runtime.lease import TTL_S, Lease, LeaseLostError, Owner, Turns
from shoal.runtime.outlet import Folded, Outgoing, Outlet
from shoal.runtime.performer import Perform, Performer
from shoal.runtime.recovery import recover
from shoal.runtime.retention import retain
from shoal.runtime.ticker import Ticker, wait
from shoal.runtime.wall import Wall
from shoal.wire.codec import encode
from shoal.wire.messages import SettingsChanged

_BATCH: Final = 512
_HELD: Final = 200_000
"""Messages a standby keeps the effects of; a leader that is further behind is waited for."""
_FAREWELL_S: Final = 5.0
_LAST_SAVE_S: Final = 10.0
_POSITION_S: Final = 0.1
"""How often a leader's position is written while it moves."""
CHECKPOINT_EVERY: Final = 50_000
_CHECKPOINT_S: Final = 60.0
_SHARE: Final = 20
"""A checkpoint that stopped the core for so long is followed by at least this many times as long without one."""

log = structlog.get_logger()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


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
        owner: Owner | None = None,
        ttl_s: float = TTL_S,
        turns: Turns | None = None,
        checkpoint_every: int = CHECKPOINT_EVERY,
        settings: Mapping[str, str] | None = None,
        what_is_left: bool = False,
    ) -> None:
        """`name` is the partition's, `tick_subject` one of the stream's; `now_ms` only decides when to publish ticks.

        `ttl_s`: how long a lease stands that nobody renews, in seconds; `checkpoint_every`: in messages. `settings`:
        what the core is to go by; whoever leads says so in the log where it goes by others. `what_is_left`: begin with
        what is kept of the log where its beginning is gone and no checkpoint can be loaded.
        """
        self._bus = bus
        self._core = core
        self._name = name
        self._stream = stream
        self._tick_subject = tick_subject
        self._performer = Performer(bus, name, perform)
        self._turns = turns or Turns()
        self._checkpoint_every = checkpoint_every
        self._settings = settings
        self._what_is_left = what_is_left
        self._telling: asyncio.Task[object] | None = None
        self._lease = Lease(bus, name, owner or Owner.local(), ttl_s=ttl_s)
        self._wall = Wall(bus, name, self._lease, core.state_version)
        self._checkpoints = Checkpoints(bus, name)
        self._outlet = Outlet(bus, name)
        self._held: deque[Folded] = deque()
        self._ticker = Ticker(bus, core, stream, tick_subject, now_ms) if tick_subject is not None else None
        self._moved = asyncio.Event()
        self._written = asyncio.Event()
        self._leading = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._silent_to = 0  # effects of messages up to here are stored
        self._time_ms = 0
        self._checkpointed = 0
        self.position = 0  # the last sequence folded
        self.replayed = 0
        self.folded = 0
        self.dead = 0

    @property
    def acknowledged(self) -> int:
        """Up to which sequence all effects are stored and the lease says so."""
        return self._lease.record.position

    @property
    def published(self) -> int:
        """How many effects were stored."""
        return self._outlet.published

    @property
    def leading(self) -> bool:
        """Whether effects go out from here."""
        return self._leading.is_set()

    async def ready(self) -> None:
        """Wait until this shell leads and new messages are being handled."""
        await self._leading.wait()

    async def caught_up(self) -> None:
        """Wait until what was in the log at the start is folded: from here on this is a hot standby, or the leader."""
        await self._caught_up.wait()

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Recover, then serve until stop is set or this is cancelled. On stop, what was folded is stored first.

        Raises StateGoneError, and what the core raises beyond LawBrokenError: its state is then not to be trusted. What
        it was raised for is noted and, where that is not the first time, passed over from then on (`Wall`).
        """
        began = asyncio.get_running_loop().time()
        await self._recover()
        reader = await self._bus.reader(self._stream, after=self.position)
        tasks: list[asyncio.Task[None]] = []
        try:
            tasks.append(asyncio.create_task(self._follow(reader, began), name=f"{self._name} follows"))
            tasks.append(asyncio.create_task(self._outlet.run(), name=f"{self._name} sees effects stored"))
            tasks.append(asyncio.create_task(self._lead(), name=f"{self._name} leads"))
            tasks.append(asyncio.create_task(self._checkpoint(), name=f"{self._name} checkpoints"))
            if self._ticker is not None:
                tasks.append(asyncio.create_task(self._ticker.run(self._leading), name=f"{self._name} ticks"))
            await self._until(stop, tasks)
            await self._finish(tasks)
        except StreamAnewError:
            await end(*tasks)
            with contextlib.suppress(BusError):  # then the log's length tells the next life, while it is short
                await self._lease.set_back()
            raise
        except Exception:
            await end(*tasks)
            await self._wall.judge()
            raise
        finally:
            await end(*tasks, *((self._telling,) if self._telling is not None else ()))
            await self._performer.stop()
            self._turns.leads(self._name, False)
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
        """Let what was folded be stored, for a short while, and the lease go; the next life repeats the rest."""
        follow, outlet, *others = tasks
        await end(follow, *others)
        if not self._lease.held:
            return
        try:
            async with asyncio.timeout(_FAREWELL_S):
                while not self._outlet.empty and not outlet.done():
                    self._outlet.progress.clear()
                    await self._outlet.progress.wait()
                await self._lease.release(self._outlet.done, self._outlet.done_ms)
            async with asyncio.timeout(_LAST_SAVE_S):
                # So that the next version of this program folds nothing anew that this one has acted upon.
                if self._outlet.done == self.position > self._checkpointed:
                    await self._save(self._state())
        except (TimeoutError, BusError) as error:
            log.warning("left without a farewell", partition=self._name, error=str(error))

    # --- folding

    async def _recover(self) -> None:
        await self._lease.look()
        await self._wall.begin()
        begin = await recover(
            self._bus, self._core, self._checkpoints, self._lease, name=self._name, stream=self._stream,
            what_is_left=self._what_is_left,
        )  # fmt: skip
        self._silent_to = begin.silent_to
        self.position = self._checkpointed = begin.position
        self._time_ms = begin.time_ms

    async def _follow(self, reader: Reader, began: float) -> None:
        past = self._silent_to
        while True:
            if self.position >= past and not self._caught_up.is_set():
                seconds = round(asyncio.get_running_loop().time() - began, 3)
                log.info("caught up", partition=self._name, replayed=self.replayed, recovery_s=seconds)
                self._caught_up.set()
            batch = await reader.batch(_BATCH)
            await self._room()
            for delivery in batch:
                self._fold(delivery)
            if self.leading:
                self._let_out()
            if self._ticker is not None:
                self._ticker.look()

    async def _room(self) -> None:
        """Wait until more may be folded: what follows from it is kept until it is stored."""
        while len(self._held) >= _HELD or self._outlet.full:
            if self.leading:
                await self._outlet.room()
            else:
                self._moved.clear()
                await self._moved.wait()

    def _fold(self, delivery: Delivery) -> None:
        cause = Cause(self._stream, delivery.sequence, delivery.time_ms)
        self.position, self._time_ms = delivery.sequence, delivery.time_ms
        silent = delivery.sequence <= self._silent_to
        if silent:
            self.replayed += 1
        else:
            self.folded += 1
        out: list[Outgoing] = []
        try:
            effects: Sequence[Effect] = ()
            problem = self._wall.reason(delivery) if delivery.sequence in self._wall.passed else ""
            if not problem:
                effects, problem = respond(self._core, delivery.subject, delivery.payload, cause)
            if silent:
                return
            if problem:
                out.append(self._bury(delivery, cause, problem))
            for number, effect in enumerate(effects):
                if isinstance(effect, Publish):
                    out.append(Outgoing(effect.subject, encode(effect.message), effect_id(cause, number)))
                elif self.leading:  # a standby asks the core what is outstanding when it takes over
                    self._performer.start(effect, effect_id(cause, number))
        except Exception as error:
            self._wall.failed(delivery, error)
            raise
        self._held.append(Folded(cause, tuple(out)))

    def _bury(self, delivery: Delivery, cause: Cause, reason: str) -> Outgoing:
        self.dead += 1
        if self.leading:
            log.error("message put aside", reader=self._name, sequence=cause.sequence, reason=reason)
        return Outgoing(*dead_letter_of(delivery, cause, self._name, reason))

    def _let_out(self) -> None:
        if self._held:
            self._outlet.let_out(list(self._held))
            self._held.clear()

    def _stored_to(self, position: int) -> None:
        """Forget what is stored up to there."""
        self._silent_to = max(self._silent_to, position)
        while self._held and self._held[0].cause.sequence <= position:
            self._held.popleft()
        self._moved.set()

    # --- leading

    async def _lead(self) -> None:
        await self._caught_up.wait()
        while True:
            await self._win()
            self._begin_to_lead()
            try:
                await self._hold()
            except LeaseLostError as error:
                log.warning("leading no longer", partition=self._name, reason=str(error))
            await self._stop_leading()

    async def _win(self) -> None:
        """Wait until the lease is ours. Who has not folded what the last leader did cannot tell what is outstanding."""
        while True:
            try:
                free = await self._lease.look()
                self._stored_to(self._lease.position)
                ripe = free and self.position >= self._lease.position
                if ripe and self._turns.may_take(self._name) and await self._lease.take():
                    await self._wall.claim(lambda: self.position)
                    if not self._wall.fell:  # else others lead as soon as that is judged
                        return
            except BusError as error:
                log.warning("the lease cannot be read", partition=self._name, error=str(error))
            await asyncio.sleep(self._lease.ttl_s / 8)

    def _begin_to_lead(self) -> None:
        record = self._lease.record
        self._stored_to(record.position)
        self._outlet.done, self._outlet.done_ms = record.position, record.time_ms
        for number, effect in enumerate(self._core.outstanding()):
            if isinstance(effect, Task):
                self._performer.start(effect, f"{self._stream}:outstanding:{number}")
        repeated = len(self._held)
        self._let_out()
        self._leading.set()
        self._turns.leads(self._name, True)
        log.info("leading", partition=self._name, epoch=record.epoch, position=self.position, repeated=repeated)

    async def _stop_leading(self) -> None:
        self._leading.clear()
        self._written.set()
        self._turns.leads(self._name, False)
        await self._performer.stop()
        self._held.extendleft(reversed(self._outlet.take_back()))
        self._stored_to(self._lease.record.position)

    async def _hold(self) -> None:
        """Renew the lease and write the position down. Raises LeaseLostError; returns when it was handed on."""
        pause = self._lease.ttl_s / 4
        while True:
            self._tell_settings()
            self._outlet.progress.clear()
            if self._outlet.done <= self._lease.record.position:
                await wait(self._outlet.progress, pause)
            try:
                if self._turns.should_yield(self._name) and self._outlet.empty:
                    await self._lease.release(self._outlet.done, self._outlet.done_ms)
                    log.info("handed on", partition=self._name)
                    return
                await self._lease.renew(self._outlet.done, self._outlet.done_ms)
                self._written.set()
            except BusError as error:
                log.error("the lease is not renewed", partition=self._name, error=str(error))
            await asyncio.sleep(min(_POSITION_S, pause))

    def _tell_settings(self) -> None:
        """Say in the log what the core is to go by, until it does."""
        wanted = self._settings
        if wanted is None or self._tick_subject is None or wanted.items() <= self._core.settings.items():
            return
        if self._telling is None or self._telling.done():
            id = f"settings:{self._name}:{self._lease.record.epoch}:{self.position}"
            message = SettingsChanged(tuple(sorted(wanted.items())))
            telling = store(self._bus, self._tick_subject, encode(message), id)
            self._telling = asyncio.create_task(telling, name=f"{self._name} tells its settings")

    # --- checkpoints

    async def _checkpoint(self) -> None:
        """Save the state now and then while leading, and let go of old messages."""
        loop = asyncio.get_running_loop()
        saved_at = loop.time()
        pause = 0.0
        while True:
            await asyncio.sleep(max(1.0, pause))
            await self._leading.wait()
            news = self.position - self._checkpointed
            if not news or (news < self._checkpoint_every and loop.time() - saved_at < _CHECKPOINT_S):
                continue
            began = loop.time()
            checkpoint = self._state()
            pause = _SHARE * (loop.time() - began)
            try:
                # What follows from the messages a checkpoint covers is never sent again, so it must be stored first.
                while self.leading and self.acknowledged < checkpoint.sequence:
                    self._written.clear()
                    await self._written.wait()
                if self.leading and await self._save(checkpoint):
                    saved_at = loop.time()
                    await retain(self._bus, self._stream, self._checkpoints, checkpoint.time_ms)
            except BusError as error:
                log.error("a checkpoint is not saved", partition=self._name, error=str(error))

    def _state(self) -> Checkpoint:
        version = self._core.state_version
        return Checkpoint(self._name, version, self._stream, self.position, self._time_ms, dump(self._core))

    async def _save(self, checkpoint: Checkpoint) -> bool:
        if not await self._checkpoints.save(checkpoint, self._lease.record.epoch):
            return False
        self._checkpointed, size = checkpoint.sequence, len(checkpoint.state)
        log.info("checkpoint saved", partition=self._name, sequence=checkpoint.sequence, bytes=size)
        return True
