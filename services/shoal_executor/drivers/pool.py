"""Sandboxes started ahead: any driver, with some of the hottest kind kept ready and given away at once.

A sandbox of the pool goes by a name of its own; which one somebody was given is a link in a directory, made before
anybody is told, so the next process of this node knows as well. Those that were given to nobody end with this process.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from shoal.wire.messages import Command, CommandResult, EndReason, FileOp, Snapshot
from shoal_executor.drivers.each import side_by_side, start_one
from shoal_executor.drivers.ground import GONE
from shoal_executor.drivers.heat import Budget, Heat, Kind, kind_of
from shoal_executor.drivers.protocol import (
    Captured,
    Driver,
    DriverError,
    DriverReport,
    ExitSink,
    FileChunk,
    Found,
    NoSuchSandboxError,
    NotEndedError,
    OutputSink,
    Ran,
    SandboxFileError,
    Started,
    StartFailed,
    StartSpec,
)

_QUIET_S: Final = 0.25
"""Nothing is started ahead until nobody has waited for a start for so long."""
_LOOK_S: Final = 15.0
"""How often it is looked whether what was hot still is."""

log = structlog.get_logger()


class Pool:
    """A driver around another one."""

    def __init__(self, driver: Driver, notes: Path, budget: Budget) -> None:
        self._driver = driver
        self._notes = notes
        self._heat = Heat(budget)
        self._ready: dict[Kind, list[str]] = {}  # by kind, those that nobody has
        self._given: dict[str, str] = {}  # what it is called outside, and inside
        self._called: dict[str, str] = {}  # the other way round
        self._on_exit: ExitSink = lambda *_: None
        self._starting = 0
        self._stirred = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def isolation(self) -> str:
        """The driver's."""
        return self._driver.isolation

    @property
    def keeps_memory(self) -> bool:
        """The driver's."""
        return self._driver.keeps_memory

    @property
    def ready(self) -> int:
        """How many are started that nobody has."""
        return sum(map(len, self._ready.values()))

    # --- the node

    async def open(self, on_exit: ExitSink, keep: Collection[str] = ()) -> DriverReport:
        """Open the driver; of an earlier process's sandboxes those are kept that somebody was given."""
        self._on_exit = on_exit
        await asyncio.to_thread(self._look_up, keep)
        report = await self._driver.open(self._exited, [self._given.get(name, name) for name in keep])
        self._keeper = asyncio.create_task(self._keep_ready(), name="pool")
        return report

    def _look_up(self, keep: Collection[str]) -> None:
        self._notes.mkdir(parents=True, exist_ok=True)
        for note in self._notes.iterdir():
            if note.name in keep:
                self._give(note.name, os.readlink(note))
            else:
                note.unlink()

    def _give(self, name: str, inner: str) -> None:
        self._given[name] = inner
        self._called[inner] = name

    def _forget(self, name: str) -> None:
        inner = self._given.pop(name, None)
        if inner is not None:
            self._called.pop(inner, None)
            (self._notes / name).unlink(missing_ok=True)

    def _forget_all(self, names: Collection[str]) -> None:
        for name in names:
            self._forget(name)

    def _exited(self, inner: str, reason: EndReason, detail: str) -> None:
        for kind, names in self._ready.items():
            if inner in names:
                names.remove(inner)
                log.warning("a sandbox of the pool ended by itself", reason=reason, detail=detail)
                self._heat.failed(kind)
                self._destroy_soon(inner)
                return
        self._on_exit(self._called.get(inner, inner), reason, detail)

    def _destroy_soon(self, inner: str) -> None:
        task = asyncio.create_task(self._driver.destroy([inner]))
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception())

    async def prepare(self, snapshot: Snapshot) -> None:
        """As the driver does."""
        await self._driver.prepare(snapshot)

    def warming(self, snapshot: Snapshot) -> bool:
        """As the driver does."""
        return self._driver.warming(snapshot)

    async def close(self) -> None:
        """Close the driver, with what nobody has."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        self._ready.clear()
        await self._driver.close()
        self._given.clear()
        self._called.clear()
        if keeper is not None:  # else it was never opened, and the notes are another's
            await asyncio.to_thread(partial(shutil.rmtree, self._notes, ignore_errors=True))

    # --- starts

    async def start(self, names: Sequence[str], spec: StartSpec) -> AsyncIterator[Started | StartFailed]:
        """Give away what is ready, and have the driver start the rest."""
        kind = kind_of(spec)
        self._heat.asked(kind, spec.snapshot, len(names), asyncio.get_running_loop().time())
        self._starting += 1
        outcomes: asyncio.Queue[Started | StartFailed] = asyncio.Queue()
        ready = self._ready.get(kind, [])
        taken = [(name, ready.pop()) for name in names[: len(ready)]]
        work = [asyncio.create_task(self._hand_out(name, inner, spec, outcomes)) for name, inner in taken]
        if rest := names[len(taken) :]:
            work.append(asyncio.create_task(self._start(rest, spec, outcomes)))
        left = len(names)
        try:
            while left:
                outcome = await outcomes.get()
                left -= len(outcome.names) if isinstance(outcome, Started) else 1
                yield outcome
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            unseen = [outcomes.get_nowait() for _ in range(outcomes.qsize())]
            await self.destroy([name for outcome in unseen if isinstance(outcome, Started) for name in outcome.names])
            self._starting -= 1
            self._stirred.set()

    async def _hand_out(
        self, name: str, inner: str, spec: StartSpec, outcomes: "asyncio.Queue[Started | StartFailed]"
    ) -> None:
        """Give one away that answers; else have another started."""
        try:
            os.symlink(inner, self._notes / name)
            self._give(name, inner)
            if not self._driver.stands(inner):
                raise DriverError(GONE)
            with contextlib.suppress(SandboxFileError):  # an answer, too
                await self._driver.read_file(inner, "/proc/version", limit=1)
            for file in spec.files:
                await self._driver.write_file(inner, file.path, file.data, mode=file.mode)
        except SandboxFileError as error:
            await self._take_back(name, inner)
            outcomes.put_nowait(StartFailed(name, f"input file {error}", EndReason.BAD_INPUT))
        except (DriverError, OSError) as error:
            log.warning("a sandbox of the pool could not be given away", error=str(error))
            await self._take_back(name, inner)
            await self._start((name,), spec, outcomes)
        except BaseException:
            await self._take_back(name, inner)
            raise
        else:
            outcomes.put_nowait(Started((name,)))

    async def _take_back(self, name: str, inner: str) -> None:
        self._forget(name)
        with contextlib.suppress(DriverError):
            await self._driver.destroy([inner])

    async def _start(
        self, names: Sequence[str], spec: StartSpec, outcomes: "asyncio.Queue[Started | StartFailed]"
    ) -> None:
        starting = self._driver.start(names, spec)
        try:
            async for outcome in starting:
                outcomes.put_nowait(outcome)
        except Exception as error:
            log.exception("the driver broke its protocol while starting")
            for name in names:
                outcomes.put_nowait(StartFailed(name, f"the driver failed: {error!r}"))
        finally:
            await starting.aclose()  # type: ignore[attr-defined] # it is a generator in every driver

    # --- what is kept ready

    async def _keep_ready(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._stirred.wait()
            await asyncio.sleep(_QUIET_S)
            wanted = self._heat.wanted(loop.time())
            for kind, names in list(self._ready.items()):
                surplus = names[wanted.get(kind, 0) :]
                del names[wanted.get(kind, 0) :]
                if surplus:
                    with contextlib.suppress(DriverError):
                        await self._driver.destroy(surplus)
            self._ready = {kind: names for kind, names in self._ready.items() if names}
            for kind, number in wanted.items():
                while not self._starting and len(self._ready.setdefault(kind, [])) < number:
                    if not await self._start_ahead(kind):
                        break

    async def _start_ahead(self, kind: Kind) -> bool:
        snapshot = self._heat.snapshot(kind)
        if snapshot is None:
            return False  # one of them ended by itself meanwhile: the next orders decide anew
        name = f"pool-{secrets.token_hex(8)}"
        spec = StartSpec(snapshot, kind.resources, (), kind.env, kind.user)
        try:
            await start_one(self._driver, name, spec)
        except DriverError as error:
            log.warning("no sandbox can be started ahead", snapshot=kind.snapshot[:12], error=str(error))
            self._heat.failed(kind)
            return False
        self._ready[kind].append(name)
        return True

    # --- under the name outside

    @contextlib.contextmanager
    def _within(self, name: str) -> Iterator[str]:
        inner = self._given.get(name, name)
        try:
            yield inner
        except NoSuchSandboxError as error:
            if inner == name:
                raise
            raise NoSuchSandboxError(name, error.reason) from error

    async def run(
        self, name: str, command: Command, output: OutputSink | None = None, *, id: str = ""
    ) -> CommandResult:
        """As the driver does."""
        with self._within(name) as inner:
            return await self._driver.run(inner, command, output, id=id)

    def run_each(
        self, names: Sequence[str], commands: Sequence[Command], *, id: str = ""
    ) -> AsyncIterator[Sequence[Ran]]:
        """Run them side by side."""
        return side_by_side(partial(self.run, id=id), names, commands)

    async def capture(self, name: str, directory: Path, *, memory: bool, hold: bool = False) -> Captured:
        """As the driver does."""
        with self._within(name) as inner:
            return await self._driver.capture(inner, directory, memory=memory, hold=hold)

    async def go_on(self, name: str) -> None:
        """As the driver does."""
        with self._within(name) as inner:
            await self._driver.go_on(inner)

    def give_up(self, name: str, id: str) -> None:
        """As the driver does."""
        self._driver.give_up(self._given.get(name, name), id)

    def settle(self, name: str, ids: Sequence[str]) -> None:
        """As the driver does."""
        self._driver.settle(self._given.get(name, name), ids)

    async def write_file(
        self, name: str, path: str, data: bytes, *, offset: int = 0, mode: int = 0o644, id: str = ""
    ) -> int:
        """As the driver does."""
        with self._within(name) as inner:
            return await self._driver.write_file(inner, path, data, offset=offset, mode=mode, id=id)

    async def read_file(self, name: str, path: str, *, offset: int = 0, limit: int = 262_144) -> FileChunk:
        """As the driver does."""
        with self._within(name) as inner:
            return await self._driver.read_file(inner, path, offset=offset, limit=limit)

    async def manage_files(
        self, name: str, op: FileOp, path: str, *, to: str = "", recursive: bool = False, id: str = ""
    ) -> Found:
        """As the driver does."""
        with self._within(name) as inner:
            return await self._driver.manage_files(inner, op, path, to=to, recursive=recursive, id=id)

    async def destroy(self, names: Sequence[str]) -> None:
        """As the driver does."""
        try:
            await self._driver.destroy([self._given.get(name, name) for name in names])
        except NotEndedError as error:
            left = {self._called.get(inner, inner) for inner in error.names}
            self._forget_all(set(names) - left)
            raise NotEndedError(left, error.why) from error
        self._forget_all(names)

    def stands(self, name: str) -> bool:
        """As the driver does."""
        with self._within(name) as inner:
            return self._driver.stands(inner)

    async def list(self) -> list[str]:
        """Those that somebody has."""
        idle = {inner for names in self._ready.values() for inner in names}
        return [self._called.get(inner, inner) for inner in await self._driver.list() if inner not in idle]
