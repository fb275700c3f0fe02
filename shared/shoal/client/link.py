"""One trainer's connection: what it publishes, what it follows, and who waits for which answer.

One reader per cell and run for reports, one for answers; each message is handed to whom it concerns in the turn of the
event loop in which it came.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Final, Protocol, TypeVar
from weakref import WeakValueDictionary

from shoal.bus.protocol import (
    Bus,
    BusError,
    Delivery,
    NoStreamError,
    PublishTimeoutError,
    Stored,
    StreamAnewError,
    StreamFullError,
    TooLargeError,
)
from shoal.client.belonging import CLOSED, Belonging
from shoal.client.errors import (
    BadRequest,
    LogGone,
    NotConnected,
    PlatformTimeout,
    ShoalError,
    StreamFull,
    Unreachable,
    without_answer,
)
from shoal.client.feed import Feed
from shoal.client.givenup import GivenUp
from shoal.client.pending import OutputSink, Pending
from shoal.client.record import Memory, Record
from shoal.wire import streams, subjects
from shoal.wire.asked import Answer, Asked, giving_up
from shoal.wire.codec import encode
from shoal.wire.messages import (
    AnyMessage,
    BlobRead,
    CommandFinished,
    CommandOutput,
    CommandRefused,
    FileManaged,
    FileRead,
    FileWritten,
    Hibernated,
    RolledBack,
    RunCommand,
    SnapshotTaken,
)

ANSWER_GRACE_S: Final = 30.0
"""How long an answer may take beyond the command's own timeout."""

T = TypeVar("T")


class Follower(Protocol):
    """A rollout, as the connection sees it."""

    def handle(self, message: AnyMessage, time_ms: int) -> None:
        """Take a message of the rollout log."""
        ...

    def answered(self, message: CommandFinished, time_ms: int) -> None:
        """Take note of a command that is done."""
        ...

    def broken(self, error: ShoalError) -> None:
        """Take note that nothing more will come."""
        ...


class Link:
    """A connection with all that waits on it. `address` is for people."""

    def __init__(self, bus: Bus, address: str, tenant: str, cells: int, grace_s: float = ANSWER_GRACE_S) -> None:
        self._bus = bus
        self._belonging = Belonging(address)
        self.address = address
        self.tenant = tenant
        self.cells = cells
        self.grace_s = grace_s
        self.rollouts: dict[str, Follower] = {}
        """Who hears of a rollout by the reader that its run has in common."""
        self.memory = Memory()
        self.given_up = GivenUp(self)
        self.pieces: dict[str, asyncio.Future[BlobRead]] = {}
        """Pieces of blobs that are waited for, by the id they were asked with."""
        self._pending: dict[tuple[str, int], Pending] = {}  # by id and attempt
        self._shared: dict[tuple[str, str], asyncio.Task[Feed]] = {}
        self._own: set[Feed] = set()
        self._apart: dict[str, list[Follower]] = {}  # by rollout, who hears of it by a reader of their own
        self._records: dict[str, list[Record]] = {}
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def bus(self) -> Bus:
        """The broker's connection. Raises NotConnected where it cannot be used."""
        self.check()
        return self._bus

    def check(self) -> None:
        """Raise NotConnected where this connection cannot be used: whatever waits for it asks here before."""
        self._belonging.check()

    # --- publishing

    async def publish(self, subject: str, message: AnyMessage | bytes, id: str) -> None:
        """Publish and wait until it is stored. Raises a ShoalError."""
        payload = message if isinstance(message, bytes) else encode(message)
        try:
            await self.bus.publish(subject, payload, id)
        except BusError as error:
            raise self.explained(error) from error

    def explained(self, error: BusError, id: str = "") -> ShoalError:
        """Return a trouble of the bus as a trainer's error. `id`: of what was asked of a sandbox."""
        if self._belonging.closed:
            return NotConnected(self.address, CLOSED)
        match error:
            case StreamFullError():
                return StreamFull(error.stream, str(error))
            case TooLargeError():
                return BadRequest("request", str(error))
            case PublishTimeoutError():
                again = f" with `id={id!r}`: else it may run twice" if id else ": copies are dropped"
                look = f"look at the broker at {self.address}, whose disk may be full, then try again"
                return PlatformTimeout(f"{error}; {look}{again}", id)
            case StreamAnewError():
                return LogGone(self.address, str(error))
            case NoStreamError():
                return Unreachable(self.address, f"the broker answers, but {error}")
            case _:
                return without_answer(self.address, error)

    # --- following

    async def follow_rollouts(self, cell: int, tenant: str, run: str) -> None:
        """Hear every report on this run's rollouts that comes from now on. Raises a ShoalError, as the two below."""
        await self._follow(streams.rollout(cell).name, subjects.rollout_filter(cell, tenant, run), self._reported)

    async def follow_answers(self, cell: int, tenant: str, run: str) -> None:
        """Hear every answer to this run's commands that comes from now on."""
        await self._follow(streams.trajectory(cell).name, subjects.trajectory(cell, tenant, run), self._answered)

    async def follow_blobs(self, cell: int, tenant: str, run: str) -> None:
        """Hear every piece of a blob that this run asks for from now on."""
        await self._follow(streams.blob(cell).name, subjects.blob(cell, tenant, run), self._read)

    async def follow_from(self, cell: int, tenant: str, run: str, rollout: str, after: int, by: Follower) -> Feed:
        """Have one follower hear the reports on one rollout after a sequence; `finish` what is returned."""

        def report(message: AnyMessage, delivery: Delivery) -> None:
            if getattr(message, "rollout", "") == rollout:
                by.handle(message, delivery.time_ms)

        feed = await self._open(streams.rollout(cell).name, subjects.rollout_filter(cell, tenant, run), report, after)
        self._own.add(feed)
        self._apart.setdefault(rollout, []).append(by)  # only now: one that is not fed is no handle for anybody
        return feed

    def opening(self, rollout: str) -> asyncio.Lock:
        """Return what is held while a handle of a rollout is looked for, or made: whoever comes second gets that."""
        return self._opening.setdefault(rollout, asyncio.Lock())

    def followers(self, rollout: str) -> list[Follower]:
        """Return who follows a rollout here."""
        shared = self.rollouts.get(rollout)
        return [*([] if shared is None else [shared]), *self._apart.get(rollout, ())]

    def leave(self, rollout: str, follower: Follower) -> None:
        """Tell a follower nothing more of its rollout."""
        if self.rollouts.get(rollout) is follower:
            del self.rollouts[rollout]
        _remove(self._apart, rollout, follower)

    def tell(self, record: Record) -> None:
        """Have a record told what comes of its rollout's steps from now on."""
        self._records.setdefault(record.rollout, []).append(record)

    def tell_no_more(self, record: Record) -> None:
        """Tell a record nothing more."""
        _remove(self._records, record.rollout, record)

    def finish(self, feed: Feed) -> None:
        """End what `follow_from` returned, also from within it."""
        self._own.discard(feed)
        ending = asyncio.create_task(feed.close(), name="shoal end of a reader")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _follow(self, stream: str, only: str, handle: Callable[[AnyMessage, Delivery], None]) -> None:
        key = (stream, only)
        known = self._shared.get(key)
        if known is not None and _ended(known):
            del self._shared[key]  # whoever heard by it was told that it broke; whoever comes now hears by another
            self.finish(known.result())
        if key not in self._shared:
            opening = asyncio.create_task(self._open(stream, only, handle, None), name=f"shoal open {only}")
            opening.add_done_callback(lambda done: self._opened(key, done))
            self._shared[key] = opening
        await asyncio.shield(self._shared[key])

    def _opened(self, key: tuple[str, str], opening: "asyncio.Task[Feed]") -> None:
        """Take note of a shared reader that is there, or not: then the next who wants one tries again."""
        # Asked for here, for perhaps nobody waits for it any more.
        if (opening.cancelled() or opening.exception() is not None) and self._shared.get(key) is opening:
            del self._shared[key]

    async def _open(
        self, stream: str, only: str, handle: Callable[[AnyMessage, Delivery], None], after: int | None
    ) -> Feed:
        try:
            reader = await self.bus.reader(stream, after=after, filters=[only])
        except BusError as error:
            raise self.explained(error) from error
        return Feed(reader, only, handle, self._broken)

    def _reported(self, message: AnyMessage, delivery: Delivery) -> None:
        rollout = getattr(message, "rollout", "")
        if rollout in self.rollouts:
            self.rollouts[rollout].handle(message, delivery.time_ms)

    def _answered(self, message: AnyMessage, delivery: Delivery) -> None:
        for record in self._records.get(getattr(message, "rollout", ""), ()):
            record.take(message, delivery.time_ms, delivery.sequence)
        match message:
            case CommandOutput(id=id, attempt=attempt):
                if (id, attempt) in self._pending:
                    self._pending[id, attempt].output(message)
            case (
                CommandFinished() | CommandRefused() | FileRead() | FileWritten() | FileManaged() | SnapshotTaken()
                | RolledBack() | Hibernated()
            ):  # fmt: skip
                if isinstance(message, CommandFinished):
                    if message.rollout in self.rollouts:
                        self.rollouts[message.rollout].answered(message, delivery.time_ms)
                    for follower in self._apart.get(message.rollout, ()):
                        follower.answered(message, delivery.time_ms)
                if (message.id, message.attempt) in self._pending:
                    self._pending[message.id, message.attempt].resolve(message)
            case _:
                pass

    def _read(self, message: AnyMessage, delivery: Delivery) -> None:
        if isinstance(message, BlobRead) and (waiting := self.pieces.get(message.id)) and not waiting.done():
            waiting.set_result(message)

    def _broken(self, error: BusError) -> None:
        """Tell all who wait. None of them is told anything more: a part of it may be missing."""
        gone = isinstance(error, NoStreamError)  # it was there when it was opened
        self._fail(LogGone(self.address, str(error)) if gone else self.explained(error))
        self.rollouts.clear()
        self._apart.clear()
        self._records.clear()
        for feed in list(self._own):
            self.finish(feed)

    def _fail(self, error: ShoalError) -> None:
        for follower in [*self.rollouts.values(), *(each for them in self._apart.values() for each in them)]:
            follower.broken(error)
        for pending in self._pending.values():
            pending.fail(error)
        for piece in self.pieces.values():
            if not piece.done():
                piece.set_exception(error)

    # --- asking a sandbox

    async def ask(
        self,
        subject: str,
        message: Asked,
        within_s: float | None,
        what: str,
        among: set[Pending],
        on_output: OutputSink | None = None,
        *,
        ours: bool = False,
    ) -> Answer:
        """Publish a command and wait for its answer; meanwhile it is in `among`, for its sandbox's end to fail it.

        An id that is awaited already is not published again: both get the one answer. Raises PlatformTimeout after
        within_s seconds; `what` says what was waited for. `ours`: nobody else knows its id, or can ask for it again;
        where nobody waits for a command any more, its executor is told to end it.
        """
        key = (message.id, message.attempt)
        given = message.id.partition(":")[2]  # before it is the sandbox's name
        pending = self._pending.get(key)
        if pending is None:
            # A broker drops a copy of a message, but the executor must hear a repeated command to repeat its answer.
            stored = self.bus.publish(subject, encode(message), f"{message.id}:{secrets.token_hex(6)}")
            pending = self._pending[key] = Pending(on_output)  # only now: nobody would take back what cannot be sent
            among.add(pending)
            stored.add_done_callback(lambda done: self._published(done, pending, given))
        pending.waiters += 1
        try:
            await asyncio.wait({pending.answer}, timeout=within_s)
            if not pending.answer.done():
                how = "give it an id= to ask for its answer again" if ours else (
                    f"try again with `id={given!r}` to get the recorded answer"
                )  # fmt: skip
                raise PlatformTimeout(
                    f"no answer to {what} within {within_s:g} s; its executor may be busy or gone: {how}, or release"
                    " the sandbox",
                    "" if ours else given,
                )
            return pending.answer.result()
        finally:
            pending.waiters -= 1
            if not pending.waiters:
                among.discard(pending)
                self._pending.pop(key, None)
                if ours and isinstance(message, RunCommand) and pending.unheard:
                    told = self._bus.publish(
                        subject, encode(giving_up(message)), f"{message.id}:{secrets.token_hex(6)}"
                    )
                    told.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody is there to hear
                if not pending.answer.cancel() and not pending.answer.cancelled():
                    pending.answer.exception()  # it has been heard, or whoever waited was cancelled

    def _published(self, stored: "asyncio.Future[Stored]", pending: Pending, id: str) -> None:
        if stored.cancelled():
            pending.fail(NotConnected(self.address, CLOSED))
            return
        error = stored.exception()
        if error is not None:
            pending.fail(self.explained(error, id) if isinstance(error, BusError) else error)

    async def close(self) -> None:
        """Stop following, fail whatever still waits, disconnect. Idempotent."""
        if not self._belonging.leave():
            return
        opening = list(self._shared.values())
        self._shared.clear()
        for task in opening:
            if not task.done():
                task.cancel()
        done = await asyncio.gather(*opening, return_exceptions=True)
        feeds = [*self._own, *(feed for feed in done if isinstance(feed, Feed))]
        self._own.clear()
        self._fail(NotConnected(self.address, CLOSED))
        self.rollouts.clear()
        self._apart.clear()
        await asyncio.gather(*self._ending, *(feed.close() for feed in feeds))
        await self._bus.close()


def _ended(opening: "asyncio.Task[Feed]") -> bool:
    """Return whether what was opened has come to its end."""
    return opening.done() and not opening.cancelled() and opening.exception() is None and opening.result().ended


def _remove(them: dict[str, list[T]], key: str, one: T) -> None:
    """Take one out of the list of a key, which goes with its last."""
    left = [each for each in them.get(key, ()) if each is not one]
    if left:
        them[key] = left
    else:
        them.pop(key, None)
