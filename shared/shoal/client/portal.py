"""An event loop in a thread of its own, for callers without one: they wait for what is awaited there."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, Final, Generic, TypeVar

from shoal.client.belonging import CLOSED, Process
from shoal.client.errors import NotConnected

R = TypeVar("R")

_OWN_THREAD: Final = (
    "this is called in the connection's own thread, as from on_output, and would wait for itself: do it when the call"
    " has returned, or in another thread"
)


class Portal:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._calls: set[_Call[Any]] = set()
        self._left: set[asyncio.Task[None]] = set()  # iterations nobody goes on with, until they have ended
        self._process = Process()
        self._refusing = False
        # Both are taken once more by a thread that has them, where a signal or a collection of garbage comes between.
        self._entrance = threading.RLock()
        self._closing = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="shoal", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def call(self, work: Awaitable[R]) -> R:
        """Return what the awaited work gives; interrupted, it is cancelled.

        Raises NotConnected once this is closed, and in another process; RuntimeError in its own thread.
        """
        call = _Call(self._loop, work)
        try:
            self._admit(call)
            return call.outcome.result()
        except CancelledError:
            if self._refusing:
                raise NotConnected("", CLOSED) from None
            raise
        except BaseException:  # interrupted anywhere: perhaps it is known there already
            if not call.outcome.done():
                self._tell(call.give_up)
            raise
        finally:
            self._calls.discard(call)

    def each(self, found: AsyncGenerator[R, None]) -> Iterator[R]:
        """Yield what an asynchronous generator yields; left early, it is ended there, and not waited for."""
        turn = asyncio.Lock()

        async def following() -> R:
            async with turn:
                return await anext(found)

        async def end() -> None:
            async with turn:  # one that was interrupted takes a while
                await found.aclose()

        try:
            while True:
                try:
                    item = self.call(following())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            # Perhaps as garbage, which is collected in any thread and in the middle of anything: nothing is waited for.
            self._leave(end)

    def close(self, last: Callable[[], Awaitable[None]] | None = None) -> None:
        """Do what is to be done last, then end the loop and its thread. Idempotent.

        In a process that was forked from the one that has the thread it does nothing: all of it is that one's.
        """
        if not self._process.here:
            return
        self._elsewhere()
        with self._closing:  # whoever closes it at the same time returns when it is
            if self._refusing:
                return
            try:
                self.call(self._leaving(last))
            finally:
                self._end()

    # ---

    def _admit(self, call: "_Call[Any]") -> None:
        try:
            self._process.check()  # before any lock: whoever held that is not in this process
            self._elsewhere()
            with self._entrance:  # what is let in is there before the loop begins to end
                if self._refusing:
                    raise NotConnected("", CLOSED)
                self._calls.add(call)
                self._loop.call_soon_threadsafe(call.begin)
        except RuntimeError as error:
            call.refuse(error)
            raise

    def _tell(self, what: Callable[[], None]) -> None:
        if not self._process.here:  # it would wake the loop of the other process
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it what this is about
            self._loop.call_soon_threadsafe(what)

    def _elsewhere(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(_OWN_THREAD)

    def _leave(self, end: Callable[[], Awaitable[None]]) -> None:
        def begin() -> None:
            task = self._loop.create_task(_coroutine(end()))
            self._left.add(task)
            task.add_done_callback(self._left.discard)

        self._tell(begin)

    async def _leaving(self, last: Callable[[], Awaitable[None]] | None) -> None:
        while self._left:
            await asyncio.wait(self._left)
        if last is not None:
            await last()

    def _end(self) -> None:
        with self._entrance:
            if self._refusing:
                return
            self._refusing = True
        try:
            asyncio.run_coroutine_threadsafe(_end_all(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            for call in list(self._calls):  # what would not end
                call.refuse(NotConnected("", CLOSED))


class _Call(Generic[R]):
    """Something that is awaited in a loop, and its outcome for the thread that waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Awaitable[R]) -> None:
        self.outcome: Future[R] = Future()
        self._loop = loop
        self._work = _coroutine(work)
        self._task: asyncio.Task[R] | None = None

    def begin(self) -> None:
        """In the loop: begin."""
        self._task = self._loop.create_task(self._working())
        self._task.add_done_callback(self._ended)

    async def _working(self) -> R:
        try:
            return await self._work
        except (SystemExit, KeyboardInterrupt) as error:  # a task that ends so ends its loop: the others' as well
            with contextlib.suppress(InvalidStateError):
                self.outcome.set_exception(error)
            raise asyncio.CancelledError from error

    def give_up(self) -> None:
        """In the loop, after `begin` if that was ever asked for: nobody waits any more."""
        if self._task is None:
            self._work.close()
        else:
            self._task.cancel()

    def refuse(self, error: Exception) -> None:
        """Fail it where no loop will, or did not."""
        with contextlib.suppress(InvalidStateError):
            self.outcome.set_exception(error)
        if self._task is None:
            self._work.close()

    def _ended(self, task: "asyncio.Task[R]") -> None:
        self._work.close()  # it may have been given up before its first step
        error = None if task.cancelled() else task.exception()
        with contextlib.suppress(InvalidStateError):  # it was refused meanwhile
            if task.cancelled():
                self.outcome.cancel()
            elif error is not None:
                self.outcome.set_exception(error)
            else:
                self.outcome.set_result(task.result())


def _coroutine(work: Awaitable[R]) -> Coroutine[Any, Any, R]:
    async def awaited() -> R:
        return await work

    return work if asyncio.iscoroutine(work) else awaited()


async def _end_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
