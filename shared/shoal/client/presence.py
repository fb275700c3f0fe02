"""Where a sandbox is, as its trainer's handle knows: live somewhere, asleep, or on its way back after a loss."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from shoal.client.errors import PlatformTimeout, SandboxResumed, ShoalError
from shoal.client.fold import Ready
from shoal.client.pending import Pending
from shoal.client.requests import shown
from shoal.machine import ranges
from shoal.machine.ledger import HEDGE, next_attempt
from shoal.wire.asked import changes
from shoal.wire.messages import CommandFinished, CommandRefused, EndReason, FileManaged, FileWritten, Ranges

_KEPT: Final = 1000
"""Commands since the last snapshot that a loss can name; of more than that, the last are named and all are counted."""


class _Gate:
    """Open or not; who waits is woken whenever that may have changed, and looks again.

    It costs nothing until somebody waits: most sandboxes are never waited for.
    """

    __slots__ = ("_event", "open")

    def __init__(self) -> None:
        self.open = False
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        self.open = True
        self.wake()

    def wake(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None

    def clear(self) -> None:
        self.open = False

    async def change(self) -> None:
        if self._event is None:
            self._event = asyncio.Event()
        await self._event.wait()


class Presence:
    """A sandbox's present attempt, and who waits for it to be there again.

    `wake` asks the cluster for it when it sleeps. What was done in it since its last snapshot is noted, so that its
    trainer can be told what a loss took.
    """

    def __init__(self, name: str, where: Ready, wake: Callable[[int], asyncio.Future[None]]) -> None:
        self.name = name
        self.attempt = where.attempt
        self.node = where.node
        self.executor = where.executor
        self.pending: set[Pending] = set()
        self.asleep = where.asleep
        self._wake = wake
        self._back = _Gate()
        self._logged = _Gate()
        self._error: Callable[[], ShoalError] | None = None
        self._unheard: ShoalError | None = None  # why nobody will tell what becomes of it
        self._told: SandboxResumed | None = None
        self._loss: SandboxResumed | None = None
        self._done: dict[int, str] = {}  # by the number of its step
        self._forgotten = 0  # the numbers of those let go, as bits
        self._kept: Ranges = ()  # the numbers of all that its last snapshot has, whoever asked for it
        self._unnumbered = 0
        (self._logged if where.asleep else self._back).set()

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self._error is None

    @property
    def away(self) -> bool:
        """Whether it runs nowhere now, and may come back."""
        return not self._back.open and self._error is None

    async def here(self) -> None:
        """Wait until it takes commands; one that sleeps is woken.

        Raises why it ended, once what a loss took, and why nobody would hear its answers.
        """
        while True:
            if self._error is not None:
                raise self._error()
            if self._told is not None:
                told, self._told = self._told, None
                raise told
            if self._unheard is not None:
                raise self._unheard.with_traceback(None)
            if self._back.open:
                return
            if self.asleep and not self._logged.open:
                # Whoever hears of a wish for what does not sleep yet, does nothing: the log must have it before.
                await self._logged.change()
                continue
            attempt = self.attempt
            if self.asleep:
                await self._wake(attempt)
            if self.away and self.attempt == attempt and self._unheard is None:
                await self._back.change()

    async def end(self, attempt: int, within_s: float) -> None:
        """Wait until the log says what became of an attempt, so long at most. Raises why nobody would hear that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.lives and self.attempt == attempt and self._unheard is None:
                    await self._back.change()
        if self._unheard is not None:
            raise self._unheard.with_traceback(None)

    def done(self, number: int, what: str) -> None:
        """Note that the step of this number was done in it, once; 0: its executor is old, and does not number them."""
        if self.away:
            return  # it was done before the loss, and counted there
        if not number:
            self._unnumbered = number = self._unnumbered + 1
        if number in self._done or self._forgotten >> number & 1:
            return
        self._done[number] = what
        if len(self._done) > 2 * _KEPT:
            for oldest in list(self._done)[:-_KEPT]:
                self._forgotten |= 1 << oldest
                del self._done[oldest]

    def kept(self, attempt: int, steps: Ranges) -> None:
        """Note that its last snapshot has the steps of these numbers."""
        if attempt == self.attempt:
            self._kept = steps

    def slept(self, attempt: int, within_s: float, *, logged: bool = False) -> None:
        """Note that this attempt sleeps. Commands under way were answered before, or are refused: within that time.

        `logged`: the log says so.
        """
        if logged and next_attempt(attempt) >= self.attempt & (HEDGE - 1):
            self._logged.set()
        if attempt != self.attempt or self.asleep or self._error is not None:
            return
        self.attempt = next_attempt(attempt)
        self.node = self.executor = ""
        self.asleep = True
        self._anew()
        waiting = set(self.pending)
        if waiting:
            asyncio.get_running_loop().call_later(within_s, self._give_up, waiting)

    def lost(self, reason: EndReason, detail: str, *, told: bool = False, attempt: int | None = None) -> SandboxResumed:
        """Note that it was lost, and comes back as its last snapshot has it; returns what its trainer is to be told.

        `told`: the caller tells, for an operation of its own that was cut off, in that attempt. The log may have told
        of the same loss before.
        """
        if self._loss is not None and (self.away or attempt not in (None, self.attempt)):
            return self._loss  # or it could not be started there, and is tried elsewhere
        under_way = self._under_way() + told
        undone = tuple(what for number, what in self._done.items() if not ranges.holds(self._kept, number))
        count = len(undone) + (self._forgotten & ~ranges.mask(self._kept)).bit_count()
        error = SandboxResumed(self.name, reason, detail, undone, count, under_way)
        if self.away:
            return error  # it was asleep, and could not be woken there: nothing was undone
        self._loss = error
        for pending in list(self.pending):
            pending.fail(error)
        if count and not under_way:
            self._told = error
        self.node = self.executor = ""
        self._anew()
        return error

    def back(self, where: Ready) -> None:
        """Note that it takes commands again."""
        self.attempt, self.node, self.executor = where.attempt, where.node, where.executor
        self.asleep = False
        self._logged.clear()
        self._back.set()

    def ended(self, error: Callable[[], ShoalError]) -> None:
        """Note that it is gone for good; what is under way fails."""
        self._error = error
        for pending in list(self.pending):
            pending.fail(error())
        self._back.set()
        self._logged.set()

    def broken(self, error: ShoalError) -> None:
        """Note that nobody will tell what becomes of it, nor its answers; who asks, or waits for it, hears that."""
        self._unheard = error
        self._back.wake()
        self._logged.wake()

    def _anew(self) -> None:
        self._back.clear()
        self._done.clear()
        self._forgotten = self._unnumbered = 0
        self._kept = ()

    def _under_way(self) -> int:
        """Return how many operations will hear of a loss; what has its answer is noted, though nobody has seen that."""
        under_way = 0
        for pending in self.pending:
            answer = pending.told
            if answer is not None and changes(answer) and answer.attempt == self.attempt:
                self.done(answer.step.number, _shown(answer))
            gone = isinstance(answer, CommandRefused) and answer.code == "sandbox_gone"
            under_way += gone or not pending.answer.done()
        return under_way

    def _give_up(self, waiting: set[Pending]) -> None:
        for pending in waiting & self.pending:
            text = f"sandbox {self.name} went to sleep, and its executor has not said whether this was done before"
            pending.fail(PlatformTimeout(text))


def _shown(answer: CommandFinished | FileWritten | FileManaged) -> str:
    if isinstance(answer, FileManaged):
        return f"{answer.op} {answer.path}"
    return f"writing {answer.path}" if isinstance(answer, FileWritten) else shown(answer.command)
