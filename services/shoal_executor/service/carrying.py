"""Trainers' commands, file operations and snapshots, carried out in live sandboxes; each comes to one answer."""

from collections.abc import Callable
from typing import Final

import msgspec

from shoal.blobs.protocol import BlobError
from shoal.bus.protocol import BusError
from shoal.wire import subjects
from shoal.wire.messages import (
    Command,
    CommandFinished,
    CommandOutput,
    CommandResult,
    FileRead,
    FileWritten,
    Hibernate,
    Hibernated,
    ReadFile,
    RollBack,
    RolledBack,
    RunCommand,
    SnapshotTaken,
    TakeSnapshot,
    WriteFile,
)
from shoal_executor.core import Asked, Key, Refuse
from shoal_executor.drivers.protocol import (
    Driver,
    DriverError,
    NoSuchSandboxError,
    SandboxFileError,
    UnsupportedError,
)
from shoal_executor.service.answers import without_input
from shoal_executor.service.journal import Answer, Answered, AnyRecord
from shoal_executor.service.keeping import BusyError, Keeping
from shoal_executor.service.known import SLEEPS, Known, gone_text, refusal
from shoal_executor.service.names import name_of
from shoal_executor.service.outgoing import Outgoing

OUTPUT_LIMIT: Final = 256 * 1024
"""Bytes of each output stream that fit into one message, both together, with the broker's default limit."""


class Carrying:
    """See the module."""

    def __init__(
        self,
        driver: Driver,
        known: Known,
        loose: Outgoing,
        keeping: Keeping,
        happened: Callable[[AnyRecord], None],
    ) -> None:
        self._driver = driver
        self._known = known
        self._loose = loose
        self._keeping = keeping
        self._happened = happened

    async def carry_out(self, key: Key, asked: Asked) -> None:
        """Do it, and note the answer."""
        name = name_of(key, asked.index)
        async with self._keeping.entered(name) as rolled_back:
            try:
                answer = self._refused(asked) or await self._answer(name, key, asked)
            except NoSuchSandboxError as error:
                if rolled_back():
                    answer = refusal(asked, "rolled_back", "the sandbox was rolled back while this ran", None)
                else:
                    answer = refusal(asked, "sandbox_gone", gone_text(error.reason), error.reason)
            except SandboxFileError as error:
                answer = refusal(asked, "file_error", str(error), None)
            except UnsupportedError as error:
                answer = refusal(asked, "unsupported", str(error), None)
            except BusyError as error:
                answer = refusal(asked, "busy", str(error), None)
            except (DriverError, BlobError, BusError) as error:
                kept = isinstance(asked, TakeSnapshot | RollBack | Hibernate)
                answer = refusal(asked, "snapshot_failed" if kept else "bad_request", str(error), None)
        self._happened(Answered(asked.cell, asked.tenant, asked.run, answer))
        if isinstance(asked, RunCommand):
            self._driver.settle(name, [asked.id])
            await self._keeping.after_command(key, asked.index)
        if self._known.core.find(asked.rollout, asked.index, asked.attempt) is None:
            self._keeping.forget(name)

    def _refused(self, asked: Asked) -> Answer | None:
        """Return why it cannot be carried out any more, where the sandbox fell asleep since it was asked."""
        (effect, *_) = self._known.core.command(asked)
        return refusal(asked, "asleep", SLEEPS, None) if isinstance(effect, Refuse) and effect.asleep else None

    async def _answer(self, name: str, key: Key, asked: Asked) -> Answer:
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
                snapshot, stood_us = await self._keeping.take(key, asked.index, memory, asked.name)
                return SnapshotTaken(*head, snapshot, asked.name, stood_us)
            case RollBack(snapshot=snapshot):
                await self._keeping.return_to(asked, snapshot)
                return RolledBack(*head, snapshot.digest)
            case Hibernate():
                kept = await self._keeping.hibernate(key, asked.index, mine=1)
                return Hibernated(*head, kept.digest)

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


def bounded(command: Command) -> Command:
    """Return the command with its output limited to what a message holds."""
    if command.output_limit <= OUTPUT_LIMIT:
        return command
    return msgspec.structs.replace(command, output_limit=OUTPUT_LIMIT)
