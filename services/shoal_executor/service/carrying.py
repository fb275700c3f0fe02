"""Trainers' commands, file operations and snapshots, carried out in live sandboxes; each comes to one answer."""

from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from shoal.blobs.protocol import BlobError
from shoal.bus.protocol import BusError
from shoal.wire import subjects
from shoal.wire.asked import Answer, blob_of, path_of, word
from shoal.wire.messages import (
    Command,
    CommandFinished,
    CommandOutput,
    CommandResult,
    EndReason,
    FileManaged,
    FileRead,
    FileWritten,
    Hibernate,
    Hibernated,
    ManageFile,
    ReadFile,
    RollBack,
    RolledBack,
    RunCommand,
    SnapshotTaken,
    Step,
    StepBegun,
    TakeSnapshot,
    WriteFile,
)
from shoal.wire.outputs import IN_MESSAGE, LARGEST
from shoal_executor.core import Asked, Key, Refuse
from shoal_executor.core.names import name_of
from shoal_executor.drivers.protocol import (
    Driver,
    DriverError,
    NoSuchSandboxError,
    NotRunError,
    SandboxFileError,
    SettledError,
    UnsupportedError,
)
from shoal_executor.service.accepting import unfit
from shoal_executor.service.journal import Answered, AnyRecord
from shoal_executor.service.keeping import BusyError, Keeping
from shoal_executor.service.known import ANSWERED, SLEEPS, Known, gone_text, refusal, without_input
from shoal_executor.service.outgoing import Outgoing
from shoal_executor.service.outputs import Outputs

_INPUT: Final = 64 * 1024
"""Bytes of a standard input, or of a piece of a file, that the trajectory has whole; of more, it tells the digest."""
_LARGE: Final = 64 * 1024
"""Bytes of output with which a sandbox forgets a result at once: until then they are in its memory."""

log = structlog.get_logger()


class Carrying:
    """See the module."""

    def __init__(
        self,
        driver: Driver,
        known: Known,
        loose: Outgoing,
        keeping: Keeping,
        outputs: Outputs,
        happened: Callable[[AnyRecord], None],
    ) -> None:
        self._driver = driver
        self._known = known
        self._loose = loose
        self._keeping = keeping
        self._outputs = outputs
        self._happened = happened

    async def carry_out(self, key: Key, asked: Asked) -> None:
        """Do it, and note the answer."""
        name, step = name_of(key, asked.index), self._known.answers.step(asked)
        async with self._keeping.entered(name, asked) as rolled_back:
            try:
                answer = self._refused(asked) or await self._answer(name, key, asked, step)
            except NoSuchSandboxError as error:
                if rolled_back():
                    answer = refusal(asked, "rolled_back", "the sandbox was rolled back while this ran", None, step)
                else:
                    reason = self._why_gone(asked) or error.reason
                    answer = refusal(asked, "sandbox_gone", gone_text(reason), reason, step)
            except NotRunError as error:
                code = "given_up" if self._known.answers.given_up(asked) else "busy"
                answer = refusal(asked, code, str(error), None, step)
            except SettledError:
                answer = refusal(asked, "answer_gone", ANSWERED, None)
            except SandboxFileError as error:
                answer = refusal(asked, "file_error", str(error), None, step)
            except UnsupportedError as error:
                answer = refusal(asked, "unsupported", str(error), None, step)
            except BusyError as error:
                answer = refusal(asked, "busy", str(error), None, step)
            except (DriverError, BlobError, BusError) as error:
                kept = isinstance(asked, TakeSnapshot | RollBack | Hibernate)
                answer = refusal(asked, "snapshot_failed" if kept else "bad_request", str(error), None, step)
            except Exception as error:  # whoever asked must hear of it: nobody else answers
                log.exception("the executor failed to carry something out", sandbox=name, id=asked.id)
                kept = isinstance(asked, TakeSnapshot | RollBack | Hibernate)
                what = f"its executor failed: {error!r}"
                answer = refusal(asked, "snapshot_failed" if kept else "bad_request", what, None, step)
        self._happened(Answered(asked.cell, asked.tenant, asked.run, answer))
        if isinstance(asked, RunCommand):
            self._keeping.settling.settle(name, asked.id, now=_is_large(answer))
            await self._keeping.after_command(key, asked.index)
        if self._known.core.find(asked.rollout, asked.index, asked.attempt) is None:
            self._keeping.forget(name)

    async def cut_short(self, name: str, id: str) -> None:
        """Have the driver end a command that nobody waits for, once the sandbox is not being kept or rolled back."""
        await self._keeping.open(name)
        self._driver.give_up(name, id)

    def _refused(self, asked: Asked) -> Answer | None:
        """Return why it cannot be carried out at all, or any more, where the sandbox fell asleep since it was asked."""
        if isinstance(asked, RunCommand) and (problem := unfit(asked.command)) is not None:
            return refusal(asked, "bad_request", problem, None, self._known.answers.step(asked))
        (effect, *_) = self._known.core.command(asked)
        return refusal(asked, "asleep", SLEEPS, None) if isinstance(effect, Refuse) and effect.asleep else None

    def _why_gone(self, asked: Asked) -> EndReason | None:
        """Return why its sandbox ended, as the rollout's log has it: the driver knows only that it was told to."""
        (effect, *_) = self._known.core.command(asked)
        return effect.reason if isinstance(effect, Refuse) else None

    async def _answer(self, name: str, key: Key, asked: Asked, step: Step) -> Answer:
        head = (asked.id, asked.rollout, asked.index, asked.attempt)
        if not step.idempotent:
            await self._tell_before(asked, step)
        match asked:
            case RunCommand(command=command):
                stdin = blob_of(command.stdin) if command.stdin else None
                if self._known.answers.given_up(asked):  # before it came, or before it could enter the sandbox
                    self._driver.give_up(name, asked.id)
                bare = command if len(command.stdin) <= _INPUT else without_input(command)
                result = await self._run(name, asked)
                return await self._outputs.fitted(CommandFinished(*head, bare, result, step, stdin), asked.tenant)
            case WriteFile(path=path, data=data, offset=offset, mode=mode):
                size = await self._driver.write_file(name, path, data, offset=offset, mode=mode, id=asked.id)
                shown = data if len(data) <= _INPUT else b""
                return FileWritten(*head, path, size, step, shown, offset, mode, blob_of(data))
            case ReadFile(path=path, offset=offset):
                limit = min(asked.limit, IN_MESSAGE)
                chunk = await self._driver.read_file(name, path, offset=offset, limit=limit)
                return FileRead(*head, path, chunk.data, chunk.size, chunk.eof, step, offset)
            case ManageFile(op=op, path=path, to=to, recursive=recursive):
                found = await self._driver.manage_files(name, op, path, to=to, recursive=recursive, id=asked.id)
                return FileManaged(*head, op, path, step, to, recursive, found.entries, found.more)
            case TakeSnapshot():
                memory = asked.memory == "yes" or (not asked.memory and self._driver.keeps_memory)
                snapshot, stood_us = await self._keeping.take(key, asked.index, memory, asked.name, step=step)
                return SnapshotTaken(*head, snapshot, asked.name, stood_us, step, asked.memory)
            case RollBack(snapshot=snapshot):
                await self._keeping.return_to(asked, snapshot)
                return RolledBack(*head, snapshot.digest, step)
            case Hibernate():
                kept = await self._keeping.hibernate(key, asked.index, step)
                return Hibernated(*head, kept.digest, step)

    async def _tell_before(self, asked: Asked, step: Step) -> None:
        """Have the log say that something is begun which must not be done twice, before it is."""
        command = without_input(asked.command) if isinstance(asked, RunCommand) else None
        head = (asked.id, asked.rollout, asked.index, asked.attempt)
        begun = StepBegun(*head, step, word(asked), command, path_of(asked))
        number = self._loose.send(subjects.trajectory(asked.cell, asked.tenant, asked.run), begun)
        await self._loose.until(lambda: self._loose.is_stored(number))

    async def _run(self, name: str, asked: RunCommand) -> CommandResult:
        if not asked.stream:
            return await self._driver.run(name, bounded(asked.command, LARGEST), id=asked.id)
        part = self._known.first_part
        subject = subjects.trajectory(asked.cell, asked.tenant, asked.run)

        def publish(channel: int, data: bytes) -> None:
            nonlocal part
            output = CommandOutput(asked.id, asked.rollout, asked.index, part, channel, data, asked.attempt)
            self._loose.send(subject, output)
            part += 1

        return await self._driver.run(name, bounded(asked.command, LARGEST), publish, id=asked.id)


def _is_large(answer: Answer) -> bool:
    """Return whether a command wrote much."""
    return isinstance(answer, CommandFinished) and len(answer.result.stdout) + len(answer.result.stderr) > _LARGE


def bounded(command: Command, most: int) -> Command:
    """Return the command with its output limited to so many bytes of each stream."""
    if command.output_limit <= most:
        return command
    return msgspec.structs.replace(command, output_limit=most)
