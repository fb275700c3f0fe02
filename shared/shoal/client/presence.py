"""Where a sandbox is, as its trainer's handle knows: live somewhere, asleep, or on its way back after a loss."""

import asyncio
from collections.abc import Callable
from typing import Final

from shoal.client.errors import SandboxResumed, ShoalError, Timeout
from shoal.client.fold import Ready
from shoal.client.link import Pending
from shoal.machine.ledger import HEDGE, next_attempt
from shoal.wire.messages import EndReason

_KEPT: Final = 1000
"""Commands since the last snapshot that a loss can name; of more than that, the last are named and all are counted."""


class _Gate:
    """An event of the loop's that costs nothing until somebody waits: most sandboxes are never waited for."""

    __slots__ = ("_event", "open")

    def __init__(self) -> None:
        self.open = False
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        self.open = True
        if self._event is not None:
            self._event.set()
            self._event = None

    def clear(self) -> None:
        self.open = False

    async def wait(self) -> None:
        while not self.open:
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
        self._told: SandboxResumed | None = None
        self._loss: SandboxResumed | None = None
        self._since: list[str] = []
        self._forgotten = 0  # how many of `_since` were let go
        self._kept = 0  # how many of them its last snapshot has
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
        """Wait until it takes commands; one that sleeps is woken. Raises why it ended, or once what a loss took."""
        while True:
            if self._error is not None:
                raise self._error()
            if self._told is not None:
                told, self._told = self._told, None
                raise told
            if self._back.open:
                return
            if self.asleep:
                # Whoever hears of a wish for what does not sleep yet, does nothing: the log must have it before.
                await self._logged.wait()
                if self.asleep:
                    await self._wake(self.attempt)
            await self._back.wait()

    def done(self, what: str) -> None:
        """Note that something was done in it."""
        self._since.append(what)
        if len(self._since) > 2 * _KEPT:
            self._forgotten += len(self._since) - _KEPT
            del self._since[:-_KEPT]

    def kept(self, attempt: int, commands: int) -> None:
        """Note that a snapshot of it has its first so many commands."""
        if attempt == self.attempt:
            self._kept = max(self._kept, commands)

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
        under_way = len(self.pending) + told
        since = self._since[max(self._kept - self._forgotten, 0) :]
        count = max(len(self._since) + self._forgotten - self._kept, 0)
        error = SandboxResumed(self.name, reason, detail, tuple(since), count, under_way)
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

    def _anew(self) -> None:
        self._back.clear()
        self._since.clear()
        self._forgotten = self._kept = 0

    def _give_up(self, waiting: set[Pending]) -> None:
        for pending in waiting & self.pending:
            text = f"sandbox {self.name} went to sleep, and its executor has not said whether this was done before"
            pending.fail(Timeout(text))
