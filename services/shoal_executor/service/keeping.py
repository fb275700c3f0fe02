"""Sandboxes kept as snapshots: when they are asked for, by themselves, and to sleep."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from shoal.blobs.cache import Cache
from shoal.blobs.protocol import BlobError
from shoal.bus.protocol import Bus, BusError
from shoal.machine import ranges
from shoal.machine.lineage import grown
from shoal.runtime.sealing import Seals
from shoal.wire import subjects
from shoal.wire.codec import encode
from shoal.wire.messages import (
    EndReason,
    ManageFile,
    Ranges,
    ReadFile,
    RunCommand,
    SandboxSaved,
    Snapshot,
    SnapshotAdded,
    SnapshotHeld,
    StartSandboxes,
    Step,
    WriteFile,
)
from shoal.wire.quantities import BadValueError
from shoal_executor.core import Asked, Key, Phase
from shoal_executor.core.names import name_of
from shoal_executor.drivers.each import start_one
from shoal_executor.drivers.layers import DEEPEST
from shoal_executor.drivers.protocol import (
    Captured,
    Driver,
    DriverError,
    NoSuchSandboxError,
    StartSpec,
    UnsupportedError,
)
from shoal_executor.service.accepting import check_given
from shoal_executor.service.announcing import announced
from shoal_executor.service.clock import now_ms
from shoal_executor.service.journal import AnyRecord, Exited, Returned, Slept
from shoal_executor.service.known import Known
from shoal_executor.service.outgoing import Outgoing
from shoal_executor.service.settling import Settling
from shoal_executor.service.waits import Waits

_NO_STORE: Final = "this executor has no blob store to keep snapshots in: start it with --blobs"

_QUIET_S: Final = 5.0
"""How long a snapshot that nobody asked for waits for a moment when no command is under way."""
_BUSY_PAUSE_S: Final = 0.1
"""How often a sandbox that is to make room is looked at while a command is under way in it."""

log = structlog.get_logger()


class BusyError(DriverError):
    """A sandbox cannot sleep while a command is under way in it."""


class Keeping:
    """See the module. `exited` is told when a sandbox could not be brought back by a rollback."""

    def __init__(
        self,
        bus: Bus,
        driver: Driver,
        known: Known,
        loose: Outgoing,
        cache: Cache | None,
        happened: Callable[[AnyRecord], None],
        exited: Callable[[str, EndReason, str], None],
    ) -> None:
        self._bus = bus
        self._driver = driver
        self._known = known
        self._loose = loose
        self._cache = cache
        self._happened = happened
        self._exited = exited
        self._closed: dict[str, asyncio.Event] = {}  # those that no command may enter now
        self._returning: set[str] = set()
        self._returns: dict[str, int] = {}
        self._busy: dict[str, int] = {}
        self._filing: dict[
            str, int
        ] = {}  # of those within, how many do something with a file: they are done in a moment
        self._left = asyncio.Event()
        self.settling = Settling(driver)
        self.waits = Waits()
        self._used: dict[str, float] = {}
        self._known_seals: Seals | None = None

    def go(self, seals: Seals) -> None:
        """Seal and accept with these from now on, before anything is carried out."""
        self._known_seals = seals

    @property
    def _seals(self) -> Seals:
        assert self._known_seals is not None
        return self._known_seals

    # --- commands and what happens to the sandbox meanwhile

    @asynccontextmanager
    async def entered(self, name: str, asked: Asked) -> AsyncIterator[Callable[[], bool]]:
        """Enter a sandbox with a command, once none is kept out; yields what tells whether it was rolled back since."""
        await self.open(name)
        before = self._returns.get(name, 0)
        _count(self._busy, name, 1)
        filing = int(isinstance(asked, ReadFile | WriteFile | ManageFile))
        _count(self._filing, name, filing)
        try:
            yield lambda: name in self._returning or self._returns.get(name, 0) != before
        finally:
            _count(self._busy, name, -1)
            _count(self._filing, name, -filing)
            self._left.set()
            self._left = asyncio.Event()
            self._used[name] = asyncio.get_running_loop().time()

    async def open(self, name: str) -> None:
        """Wait until commands may enter it."""
        while name in self._closed:
            await self._closed[name].wait()

    def gone(self, key: Key, indices: Ranges) -> None:
        """Nothing is left of these."""
        self.waits.gone(key, indices)
        for index in ranges.indices(self._known.used(key, indices)):
            self.forget(name_of(key, index))

    def forget(self, name: str) -> None:
        """It is gone, and so is what was asked of it."""
        self._returns.pop(name, None)
        self._used.pop(name, None)
        self.settling.forget(name)

    # --- snapshots

    async def take(
        self, key: Key, index: int, memory: bool, called: str = "", *, automatic: bool = False, step: Step | None = None
    ) -> tuple[Snapshot, int]:
        """Take a snapshot and make it known, once its bytes are stored; returns it, and how long it stood still in us.

        `step`: the one that asked for it, which is in it, too. Raises DriverError, BlobError, BusError.
        """
        order = self._order(key, index)
        self._must_grow(key, index)
        with self._cache_().scratch() as place:
            captured, commands, steps = await self._captured(key, index, Path(place), memory)
            snapshot = await self._stored(key, index, captured, called, automatic=automatic)
        saved = SandboxSaved(order.rollout, order.attempt, index, snapshot, commands, _and(steps, step))
        await self._tell(order, saved)
        self._loose.send(subjects.rollout_sandbox(order.cell, order.tenant, order.run), saved)
        return snapshot, captured.stood_us

    async def _captured(
        self, key: Key, index: int, place: Path, memory: bool
    ) -> tuple[Captured, int, Ranges]:  # fmt: skip
        """Capture a sandbox that goes on; returns how many commands are surely in that, and which steps are."""
        order, name = self._order(key, index), name_of(key, index)
        sandbox = (order.rollout, index, order.attempt)
        async with self._apart(name):
            while self._filing.get(name):
                await self._left.wait()
            commands, done = self._known.commands(*sandbox), self._known.answers.done(sandbox)
            under_way = self._known.answers.under_way_in(sandbox)
            numbers = {asked.id: step.number for asked, step in under_way if isinstance(asked, RunCommand)}
            with self.settling.held(name):
                captured = await self._driver.capture(name, place, memory=memory)
        finished = ranges.collect(numbers[id] for id in captured.finished if id in numbers)
        # Whoever hears of the snapshot must know what came of all that is in it.
        await self._known.outgoing.until(lambda: self._answered(sandbox, finished))
        return captured, commands + ranges.count(finished), ranges.union(done, finished)

    def _answered(self, sandbox: tuple[str, int, int], steps: Ranges) -> bool:
        under_way = ranges.collect(step.number for _, step in self._known.answers.under_way_in(sandbox))
        return not ranges.intersect(under_way, steps)

    async def _tell(self, order: StartSandboxes, saved: SandboxSaved) -> None:
        """Say in the trajectory what a snapshot has behind it, after all of that; the rest follows from this."""
        outgoing, subject = self._known.outgoing, subjects.trajectory(order.cell, order.tenant, order.run)
        before = outgoing.under_way(subject)  # of other logs, one that takes nothing would hold this up
        await outgoing.until(lambda: all(map(outgoing.is_stored, before)))
        number = self._loose.send(subject, saved)
        await self._loose.until(lambda: self._loose.is_stored(number))

    async def hibernate(
        self, key: Key, index: int, step: Step | None = None, *, preempted: bool = False
    ) -> Snapshot:  # fmt: skip
        """Keep all of a sandbox and let it sleep; `step`: the one that asked for it.

        Raises BusyError, DriverError, BlobError, BusError: it goes on then as it was.
        """
        order, name = self._order(key, index), name_of(key, index)
        self._must_grow(key, index)
        if self._busy.get(name, 0) > (step is not None) or name in self._closed:
            raise BusyError("a command is under way in it: wait for its end, then let it sleep")
        sandbox = (order.rollout, index, order.attempt)
        async with self._apart(name):
            with self._cache_().scratch() as place:
                memory = self._driver.keeps_memory
                captured = await self._driver.capture(name, Path(place), memory=memory, hold=True)
                try:
                    snapshot = await self._stored(key, index, captured, "", automatic=True)
                except BaseException:
                    await self._driver.go_on(name)
                    raise
            steps = _and(self._known.answers.done(sandbox), step)
            commands = self._known.commands(*sandbox)
            await self._tell(order, SandboxSaved(order.rollout, order.attempt, index, snapshot, commands, steps))
            self._happened(Slept(key, index, snapshot, preempted))
        return snapshot

    async def return_to(self, asked: Asked, snapshot: Snapshot) -> None:
        """Make a live sandbox what a snapshot holds. Raises DriverError, also for a snapshot that cannot be one."""
        try:
            check_given(snapshot, asked.tenant, self._seals)
        except BadValueError as error:
            raise DriverError(str(error)) from error
        key = self._known.core.find(asked.rollout, asked.index, asked.attempt)
        if key is None:
            raise NoSuchSandboxError(asked.rollout)
        name, order = name_of(key, asked.index), self._order(key, asked.index)
        await self._hold(order, snapshot, asked.id)
        await self._driver.prepare(snapshot)  # what cannot be started from is found out while the sandbox still lives
        async with self._apart(name):
            self._order(key, asked.index)  # it may have been released meanwhile
            self._returning.add(name)
            try:
                await self._driver.destroy([name])
                self.settling.forget(name)  # what takes its place never ran those commands
                spec = StartSpec(snapshot, order.resources, (), order.env, order.user)
                await start_one(self._driver, name, spec)
                self._returns[name] = self._returns.get(name, 0) + 1
            except DriverError as error:
                self._exited(name, EndReason.NODE_LOST, f"it could not be rolled back: {error}")
                raise NoSuchSandboxError(name, EndReason.NODE_LOST) from error
            finally:
                self._returning.discard(name)
            self._happened(Returned(asked.rollout, asked.index, asked.attempt, snapshot))

    async def _hold(self, order: StartSandboxes, snapshot: Snapshot, id: str) -> None:
        """Have the catalogue keep a snapshot, perhaps another rollout's, for as long as this rollout may need it."""
        if snapshot.blobs:
            held = SnapshotHeld(order.tenant, snapshot.digest, order.rollout, order.deadline_ms)
            told = f"held:{order.tenant}:{order.rollout}:{snapshot.digest}:{id}"
            await self._bus.publish(subjects.snapshot(order.tenant, "held"), encode(held), told)

    def returning(self, names: Sequence[str]) -> Collection[str]:
        """Return those of these that are being rolled back: the driver does not know them to be ended meanwhile."""
        return self._returning.intersection(names) if self._returning else ()

    async def returned(self, name: str) -> None:
        """Wait until it is not being rolled back any more."""
        while name in self._returning:
            await self._closed[name].wait()

    @asynccontextmanager
    async def _apart(self, name: str) -> AsyncIterator[None]:
        await self.open(name)
        done = self._closed[name] = asyncio.Event()
        try:
            yield
        finally:
            del self._closed[name]
            done.set()

    def _must_grow(self, key: Key, index: int) -> None:
        """Raise UnsupportedError where nothing could start from one more layer on what a sandbox stands on."""
        origin = self._known.origin(key[0], index, key[1])
        if origin is not None and len(origin.disks) + len(origin.layers) >= DEEPEST:
            what = f"it stands on {len(origin.layers)} layers and {len(origin.disks)} disks, of {DEEPEST} at most"
            raise UnsupportedError(f"{what}: begin again from a snapshot of fewer, or copy its files into a fresh one")

    def _cache_(self) -> Cache:
        if self._cache is None:
            raise UnsupportedError(_NO_STORE)
        return self._cache

    async def _stored(self, key: Key, index: int, captured: Captured, called: str, *, automatic: bool) -> Snapshot:
        order, name, cache = self._order(key, index), name_of(key, index), self._cache_()
        origin = self._known.origin(order.rollout, index, order.attempt)
        if origin is None:
            raise NoSuchSandboxError(name)
        with announced(self._loose, order.tenant, cache) as stored:
            for path in filter(None, (captured.layer, captured.memory)):
                stored.note(await cache.add(path))
            layer, image = stored.blobs[0], stored.blobs[1] if captured.memory is not None else None
            snapshot = self._seals.sealed(order.tenant, grown(origin, layer, image, self._driver.isolation))
            whose = f"{order.rollout}-{index}"
            added = SnapshotAdded(order.tenant, snapshot, called, whose, order.deadline_ms, automatic)
            # Known to the catalogue before anybody can ask it for this one.
            told = f"snapshot:{order.tenant}:{snapshot.digest}:{called}:{name}:{order.attempt}"
            await self._bus.publish(subjects.snapshot(order.tenant, "added"), encode(added), told)
        return snapshot

    def _order(self, key: Key, index: int) -> StartSandboxes:
        group = self._known.core.groups.get(key)
        if group is None or group.phase(index) is not Phase.LIVE:
            raise NoSuchSandboxError(name_of(key, index))
        return group.order

    # --- by themselves

    async def after_command(self, key: Key, index: int) -> None:
        """Take a snapshot where so many commands were asked for."""
        group = self._known.core.groups.get(key)
        if group is None or not group.order.checkpoint_commands:
            return
        if self._known.commands(key[0], index, key[1]) % group.order.checkpoint_commands == 0:
            await self._checkpoint(key, index)

    async def checkpoint_every(self, key: Key, index: int, order: StartSandboxes) -> None:
        """Take a snapshot of a sandbox again and again, for as long as it lives."""
        while self._lives(key, index):
            await self.waits.sleep(key, index, order.checkpoint_every_ms / 1000)
            if self._lives(key, index):
                await self._checkpoint(key, index)

    async def hibernate_when_idle(self, key: Key, index: int, order: StartSandboxes) -> None:
        """Let a sandbox sleep that nobody has used for a while; one that cannot is asked again after as long."""
        loop = asyncio.get_running_loop()
        name, idle_s = name_of(key, index), order.idle_after_ms / 1000
        since, told = loop.time(), False
        while self._lives(key, index):
            since = max(since, self._used.get(name, since))
            if self._busy.get(name):
                since = loop.time()
            if (left := since + idle_s - loop.time()) > 0:
                await self.waits.sleep(key, index, left)
                continue
            try:
                await self.hibernate(key, index)
            except NoSuchSandboxError:
                return
            except (DriverError, BlobError, BusError) as error:
                since = loop.time()
                if not told and not isinstance(error, BusyError):
                    log.warning("a sandbox cannot sleep", sandbox=name, error=str(error))
                    told = True

    async def end_at(self, key: Key, index: int, end_ms: int) -> None:
        """End a sandbox when its lifetime is up, in ms as `clock` counts them."""
        if self._lives(key, index):
            await self.waits.sleep(key, index, (end_ms - now_ms()) / 1000)
        if self._lives(key, index):
            self._happened(Exited(key, index, EndReason.TIMED_OUT, "its lifetime was up"))

    async def make_room(self, key: Key, index: int) -> None:
        """Let a sandbox sleep as soon as no command is under way in it; it stays if something of it would be lost."""
        name = name_of(key, index)
        while self._lives(key, index):
            try:
                await self.hibernate(key, index, preempted=True)
            except BusyError:
                await asyncio.sleep(_BUSY_PAUSE_S)
            except NoSuchSandboxError:
                return
            except (DriverError, BlobError, BusError) as error:
                log.info("a sandbox stays", sandbox=name, error=str(error))
                return

    def _lives(self, key: Key, index: int) -> bool:
        group = self._known.core.groups.get(key)
        return group is not None and group.phase(index) is Phase.LIVE

    async def _checkpoint(self, key: Key, index: int) -> None:
        """Take a snapshot, at a moment when no command is under way if there is one soon: that would be half done."""
        name = name_of(key, index)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_S):
                while self._busy.get(name):
                    await self._left.wait()
        try:
            await self.take(key, index, self._driver.keeps_memory, automatic=True)
        except NoSuchSandboxError:
            return
        except (DriverError, BlobError, BusError) as error:
            log.warning("a sandbox could not be kept", sandbox=name, error=str(error))


def _count(counts: dict[str, int], name: str, change: int) -> None:
    counts[name] = counts.get(name, 0) + change
    if not counts[name]:
        del counts[name]


def _and(steps: Ranges, step: Step | None) -> Ranges:
    return ranges.union(steps, ((step.number, 1),)) if step is not None and step.number else steps
