"""Trainers' commands, file operations and snapshots, carried out in live sandboxes; each comes to one answer."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from shoal.blobs.cache import Cache
from shoal.blobs.protocol import BlobError
from shoal.bus.protocol import Bus, BusError
from shoal.machine.lineage import grown
from shoal.wire import subjects
from shoal.wire.codec import encode
from shoal.wire.messages import (
    Command,
    CommandFinished,
    CommandOutput,
    CommandResult,
    EndReason,
    FileRead,
    FileWritten,
    ReadFile,
    RollBack,
    RolledBack,
    RunCommand,
    SandboxSaved,
    Snapshot,
    SnapshotAdded,
    SnapshotTaken,
    StartSandboxes,
    TakeSnapshot,
    WriteFile,
)
from shoal_executor.core import Asked, Key
from shoal_executor.drivers.protocol import (
    Driver,
    DriverError,
    NoSuchSandboxError,
    SandboxFileError,
    StartFailed,
    StartSpec,
    UnsupportedError,
)
from shoal_executor.service.answers import without_input
from shoal_executor.service.journal import Answer, Answered, AnyRecord, Returned
from shoal_executor.service.known import Known, gone_text, refusal
from shoal_executor.service.names import name_of
from shoal_executor.service.outgoing import Outgoing

OUTPUT_LIMIT: Final = 256 * 1024
"""Bytes of each output stream that fit into one message, both together, with the broker's default limit."""

log = structlog.get_logger()


class Carrying:
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
        self._returning: dict[str, asyncio.Event] = {}
        self._returns: dict[str, int] = {}
        self._commands: dict[str, int] = {}

    async def carry_out(self, asked: Asked) -> None:
        """Do it, and note the answer."""
        name = name_of((asked.rollout, asked.attempt, ""), asked.index)
        while name in self._returning:
            await self._returning[name].wait()
        before = self._returns.get(name, 0)
        try:
            answer = await self._answer(name, asked)
        except NoSuchSandboxError as error:
            if name in self._returning or self._returns.get(name, 0) != before:
                answer = refusal(asked, "rolled_back", "the sandbox was rolled back while this ran", None)
            else:
                answer = refusal(asked, "sandbox_gone", gone_text(error.reason), error.reason)
        except SandboxFileError as error:
            answer = refusal(asked, "file_error", str(error), None)
        except UnsupportedError as error:
            answer = refusal(asked, "unsupported", str(error), None)
        except (DriverError, BlobError, BusError) as error:
            kept = isinstance(asked, TakeSnapshot | RollBack)
            answer = refusal(asked, "snapshot_failed" if kept else "bad_request", str(error), None)
        self._happened(Answered(asked.cell, asked.tenant, asked.run, answer))
        if isinstance(asked, RunCommand):
            self._driver.settle(name, [asked.id])
            await self._checkpoint_after(name, asked)

    async def _answer(self, name: str, asked: Asked) -> Answer:
        head = (asked.id, asked.rollout, asked.index, asked.attempt)
        match asked:
            case RunCommand(command=command):
                return without_input(CommandFinished(*head, command, await self._run(name, asked)))
            case WriteFile(path=path):
                size = await self._driver.write_file(name, path, asked.data, offset=asked.offset, mode=asked.mode)
                return FileWritten(*head, path, size)
            case ReadFile(path=path):
                limit = min(asked.limit, OUTPUT_LIMIT)
                chunk = await self._driver.read_file(name, path, offset=asked.offset, limit=limit)
                return FileRead(*head, path, chunk.data, chunk.size, chunk.eof)
            case TakeSnapshot():
                memory = asked.memory == "yes" or (not asked.memory and self._driver.keeps_memory)
                owner = (asked.cell, asked.tenant, asked.run)
                snapshot, stood_us = await self._keep(name, asked.rollout, asked.index, asked.attempt, owner, memory,
                                                      asked.name)  # fmt: skip
                return SnapshotTaken(*head, snapshot, asked.name, stood_us)
            case RollBack(snapshot=snapshot):
                await self._return_to(name, asked, snapshot)
                return RolledBack(*head, snapshot.digest)

    async def _run(self, name: str, asked: RunCommand) -> CommandResult:
        if not asked.stream:
            return await self._driver.run(name, bounded(asked.command), id=asked.id)
        part = 0
        subject = subjects.trajectory(asked.cell, asked.tenant, asked.run)

        def publish(channel: int, data: bytes) -> None:
            nonlocal part
            output = CommandOutput(asked.id, asked.rollout, asked.index, part, channel, data)
            self._loose.send(subject, output)
            part += 1

        return await self._driver.run(name, bounded(asked.command), publish, id=asked.id)

    # --- snapshots

    async def _keep(
        self, name: str, rollout: str, index: int, attempt: int, owner: tuple[int, str, str], memory: bool, called: str
    ) -> tuple[Snapshot, int]:
        """Take a snapshot and make it known, once its bytes are stored; returns it, and how long it took to capture."""
        cell, tenant, run = owner
        if self._cache is None:
            raise UnsupportedError("this executor has no blob store to keep snapshots in: start it with --blobs")
        origin = self._known.origin(rollout, index, attempt)
        if origin is None:
            raise NoSuchSandboxError(name)
        with self._cache.scratch() as place:
            captured = await self._driver.capture(name, Path(place), memory=memory)
            layer = await self._cache.add(captured.layer)
            image = await self._cache.add(captured.memory) if captured.memory is not None else None
        snapshot = grown(origin, layer, image, self._driver.isolation)
        added = SnapshotAdded(tenant, snapshot, called, f"{rollout}-{index}")
        # Known to the catalogue before anybody can ask it for this one.
        told = f"snapshot:{tenant}:{snapshot.digest}:{called}:{rollout}:{index}:{attempt}"
        await self._bus.publish(subjects.snapshot(tenant, "added"), encode(added), told)
        saved = SandboxSaved(rollout, attempt, index, snapshot, self._commands.get(name, 0))
        self._loose.send(subjects.rollout_sandbox(cell, tenant, run), saved)
        return snapshot, captured.stood_us

    async def _return_to(self, name: str, asked: RollBack, snapshot: Snapshot) -> None:
        key = self._known.core.find(asked.rollout, asked.index, asked.attempt)
        if key is None or name not in await self._driver.list():
            raise NoSuchSandboxError(name)
        order = self._known.core.groups[key].order
        await self._driver.prepare(snapshot)  # what cannot be started from is found out while the sandbox still lives
        done = self._returning[name] = asyncio.Event()
        try:
            await self._driver.destroy([name])
            spec = StartSpec(name, snapshot, order.resources, (), order.env, order.user)
            failed = [each.detail async for each in self._driver.start([spec]) if isinstance(each, StartFailed)]
            self._returns[name] = self._returns.get(name, 0) + 1
            if failed:
                self._exited(name, EndReason.NODE_LOST, f"it could not be rolled back: {failed[0]}")
                raise NoSuchSandboxError(name, EndReason.NODE_LOST)
            self._happened(Returned(asked.rollout, asked.index, asked.attempt, snapshot))
        finally:
            del self._returning[name]
            done.set()

    # --- snapshots by themselves

    async def _checkpoint_after(self, name: str, asked: RunCommand) -> None:
        """Count a command; take a snapshot where so many were asked for."""
        key = self._known.core.find(asked.rollout, asked.index, asked.attempt)
        if key is None:
            self._commands.pop(name, None)
            self._returns.pop(name, None)
            return
        order = self._known.core.groups[key].order
        if not (order.checkpoint_commands or order.checkpoint_every_ms):
            return
        count = self._commands[name] = self._commands.get(name, 0) + 1
        if order.checkpoint_commands and count % order.checkpoint_commands == 0:
            await self._checkpoint(name, order, asked.index)

    async def checkpoint_every(self, key: Key, index: int, order: StartSandboxes) -> None:
        """Take a snapshot of a sandbox again and again, for as long as it lives."""
        name = name_of(key, index)
        while True:
            await asyncio.sleep(order.checkpoint_every_ms / 1000)
            if self._known.core.find(order.rollout, index, order.attempt) is None:
                return
            await self._checkpoint(name, order, index)

    async def _checkpoint(self, name: str, order: StartSandboxes, index: int) -> None:
        owner = (order.cell, order.tenant, order.run)
        try:
            await self._keep(name, order.rollout, index, order.attempt, owner, self._driver.keeps_memory, "")
        except NoSuchSandboxError:
            return
        except (DriverError, BlobError, BusError) as error:
            log.warning("a sandbox could not be kept", sandbox=name, error=str(error))


def bounded(command: Command) -> Command:
    """Return the command with its output limited to what a message holds."""
    if command.output_limit <= OUTPUT_LIMIT:
        return command
    return msgspec.structs.replace(command, output_limit=OUTPUT_LIMIT)
