"""Commands that queue for one process which keeps its state between them: the shell session, the interpreter."""

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from shoal.wire.values import CommandResult
from shoal_executor.drivers.agent.commands import Call, not_started
from shoal_executor.drivers.agent.interpreter import Interpreter
from shoal_executor.drivers.agent.session import Session

_READ: Final = 65_536
_PIPE: Final = 1 << 20  # as much as any pipe holds
_ATTEMPTS: Final = 3
"""How many processes are asked for one call, one after the other, where one ends before it has begun."""
PATIENCE_S: Final = 20.0
"""How long a call waits for its turn beyond its own timeout: less than the 30 s for which its client still listens."""


class Host(Protocol):
    """What the agent lends."""

    def watch(self, fd: int, events: int, react: Callable[[], None]) -> None:
        """Call react whenever the descriptor is ready."""
        ...

    def unwatch(self, fd: int) -> None:
        """Watch it no longer. May come twice."""
        ...

    def done(self, call: Call, result: CommandResult) -> None:
        """A call has its result."""
        ...

    def not_run(self, call: Call, before: Call | None = None, seconds: float = 0.0) -> None:
        """Nothing was run of a call: nobody wants it, or the one before it has been running for so long."""
        ...

    def output(self, call: Call, channel: int, data: bytes) -> None:
        """A call wrote something."""
        ...


class Serial:
    """One such process: made when it is first needed, and made anew after it ended."""

    def __init__(self, host: Host, make: Callable[[], Session | Interpreter]) -> None:
        self._host = host
        self._make = make
        self._fed: Session | Interpreter | None = None
        self._waiting: dict[Call, float] = {}  # in their order, until when each waits
        self._since = 0.0
        self._in_vain = 0  # so many ended before they began
        self.asked = False

    @property
    def deadline(self) -> float | None:
        """When the call under way has had its time, or one that waits has had its patience (monotonic seconds)."""
        under_way = self._fed.deadline if self._fed is not None else None
        first = min(self._waiting.values(), default=math.inf)
        return under_way if first == math.inf else first if under_way is None else min(under_way, first)

    @property
    def ours(self) -> int:
        """The process to be reaped, or 0."""
        return self._fed.ours if self._fed is not None else 0

    def ask(self, call: Call) -> None:
        """Give it a call, after those that wait."""
        self.asked = True
        timeout = call.command.timeout_ms
        self._waiting[call] = time.monotonic() + timeout / 1000 + PATIENCE_S if timeout else math.inf
        self._next()

    def open(self) -> None:
        """Make the process now. Raises OSError."""
        if self._fed is not None:
            return
        fed = self._fed = self._make()
        for channel, fd in fed.outputs.items():
            self._host.watch(fd, select.POLLIN, partial(self._heard, channel))
        if isinstance(fed, Interpreter):
            self._host.watch(fed.control.fileno(), select.POLLIN, self._answered)

    def expire(self) -> None:
        """The time of the call under way is up."""
        if self._fed is not None:
            self._fed.expire()

    def look(self, now: float) -> None:
        """End the call under way if its time is up, and the waiting of those whose patience is."""
        if self._fed is not None and self._fed.deadline is not None and now >= self._fed.deadline:
            self.expire()
        for call in [call for call, until in self._waiting.items() if now >= until]:
            del self._waiting[call]
            self._host.not_run(call, self._fed.call if self._fed is not None else None, now - self._since)

    def give_up(self, key: str) -> None:
        """Nobody wants this call any more, ever."""
        for call in [call for call in self._waiting if call.key == key]:
            del self._waiting[call]
            self._host.not_run(call)
        if self._fed is not None and self._fed.call is not None and self._fed.call.key == key:
            self._fed.give_up()

    def cancel(self, id: int) -> None:
        """Nobody wants this call any more: where it has begun, as if its time were up."""
        for call in [call for call in self._waiting if call.id == id]:
            del self._waiting[call]
            self._host.not_run(call)
        if self._fed is not None and self._fed.call is not None and self._fed.call.id == id:
            self._fed.expire()

    def gone(self, code: int) -> None:
        """The process has ended, and was reaped where it was ours."""
        fed = self._fed
        assert fed is not None
        self._drain()
        for fd in (*fed.outputs.values(), *((fed.control.fileno(),) if isinstance(fed, Interpreter) else ())):
            self._host.unwatch(fd)
        unbegun = fed.unbegun
        self._in_vain = self._in_vain + 1 if unbegun is not None else 0
        answer = fed.gone(code)
        self._fed = None
        if unbegun is not None and self._in_vain < _ATTEMPTS:
            self._waiting = {unbegun: math.inf, **self._waiting}
        elif answer is not None:
            self._in_vain = 0
            self._host.done(*answer)
        self._next()

    def _next(self) -> None:
        while self._waiting and (self._fed is None or self._fed.call is None):
            call = next(iter(self._waiting))
            del self._waiting[call]
            try:
                self.open()
            except OSError as error:
                self._host.done(call, not_started(call.command, error))
                continue
            assert self._fed is not None
            self._since = time.monotonic()
            self._fed.begin(call)
            if isinstance(self._fed, Interpreter) and self._fed.say():
                self._host.unwatch(self._fed.control.fileno())
                both = select.POLLIN | select.POLLOUT
                self._host.watch(self._fed.control.fileno(), both, self._answered)

    def _heard(self, channel: int) -> None:
        fed = self._fed
        if fed is None:
            return
        try:
            data = os.read(fed.outputs[channel], _READ)
        except BlockingIOError:
            return
        if not data:
            self._host.unwatch(fed.outputs[channel])
            return
        call = fed.call
        kept = fed.take(channel, data)
        if call is not None:
            self._host.output(call, channel, kept)
        if isinstance(fed, Session):
            self._finish(fed)

    def _answered(self) -> None:
        fed = self._fed
        if not isinstance(fed, Interpreter):
            return
        if not fed.say():
            self._host.unwatch(fed.control.fileno())
            self._host.watch(fed.control.fileno(), select.POLLIN, self._answered)
        if fed.listen():
            self._finish(fed)
            return
        code = 128 + signal.SIGKILL
        if fed.ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(fed.ours, signal.SIGKILL)  # it may only have closed its socket
            status = os.waitstatus_to_exitcode(os.waitpid(fed.ours, 0)[1])
            code = status if status >= 0 else 128 - status
        self.gone(code)

    def _finish(self, fed: Session | Interpreter) -> None:
        if fed.complete():
            self._drain()
            self._host.done(*fed.finish())
            self._next()

    def _drain(self) -> None:
        """Take what is there by now; what is written in the background may come without end."""
        fed = self._fed
        assert fed is not None
        for channel, fd in fed.outputs.items():
            with contextlib.suppress(BlockingIOError):
                for _ in range(_PIPE // _READ):
                    if not (data := os.read(fd, _READ)):
                        break
                    kept = fed.take(channel, data)
                    if fed.call is not None and kept:
                        self._host.output(fed.call, channel, kept)
