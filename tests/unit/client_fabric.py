"""A scripted stand-in for scheduler and executor on a MemoryBroker, for tests of the client."""

import asyncio
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable

from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.bus.protocol import Reader
from shoal.machine import ranges
from shoal.wire import streams, subjects
from shoal.wire.asked import Asked, blob_of, path_of, word
from shoal.wire.codec import decode, encode
from shoal.wire.messages import (
    AnyMessage,
    Blob,
    BlobRead,
    CommandFinished,
    CommandOutput,
    CommandRefused,
    CommandResult,
    EndReason,
    FileEntry,
    FileManaged,
    FileOp,
    FileRead,
    FileWritten,
    GiveUp,
    Hibernate,
    Hibernated,
    ManageFile,
    Ranges,
    ReadBlob,
    ReadFile,
    RollBack,
    RolledBack,
    RolloutConcluded,
    RolloutSubmitted,
    RunCommand,
    SandboxesBegan,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesReady,
    SandboxResult,
    SandboxSaved,
    SandboxSlept,
    Snapshot,
    SnapshotTaken,
    Step,
    StepBegun,
    TakeSnapshot,
    WriteFile,
)
from shoal.wire.values import APPEND

EXECUTOR = "e1"
Script = Callable[["Fabric", RolloutSubmitted], None]


def job_result(index: int, stdout: bytes = b"", exit_code: int = 0) -> SandboxResult:
    return SandboxResult(index, CommandResult(exit_code, stdout), 1000)


class Fabric:
    """Says what a test tells it to; answers commands by itself, each id once, with files kept in memory."""

    def __init__(self, script: Script | None = None, cells: int = 1) -> None:
        self.broker = MemoryBroker()
        self.cells = cells
        self.script = script
        self.requests: dict[str, RolloutSubmitted] = {}
        self.heard: list[AnyMessage] = []
        self.commands: list[RunCommand] = []
        self.given_up: list[GiveUp] = []
        self.ran: Counter[str] = Counter()  # how often each step was really done
        self.blobs: dict[Blob, bytes] = {}
        self.asked: list[Asked] = []
        self.spoiled: set[str] = set()  # files that are read as something else
        self.held: dict[str, tuple[RunCommand, str, Step]] = {}  # commands that end when another has, by its line
        self.result: Callable[[str], CommandResult] | None = None
        self.told: dict[tuple[str, int, int, str], AnyMessage] = {}  # answers, by sandbox, attempt and id
        self.files: dict[tuple[str, int, str], bytes] = {}
        self.pieces: list[int] = []
        self.silent = False
        self.arrived = asyncio.Event()
        self._numbers = itertools.count()
        for stream in (*streams.cluster(cells), streams.executor(EXECUTOR)):
            self.broker.ensure(stream)
        self.broker.put(streams.CLUSTER_BUCKET, "cells", str(cells).encode())
        self._tasks: list[asyncio.Task[None]] = []

    def connect(self) -> MemoryBus:
        return self.broker.connect()

    async def __aenter__(self) -> "Fabric":
        bus = self.connect()
        for cell in range(self.cells):
            reader = await bus.reader(streams.rollout(cell).name)
            self._tasks.append(asyncio.create_task(self._schedule(reader)))
        reader = await bus.reader(streams.executor(EXECUTOR).name)
        self._tasks.append(asyncio.create_task(self._execute(reader)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        done = await asyncio.gather(*self._tasks, return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the fabric has heard what makes the condition true."""
        while not condition():
            self.arrived.clear()
            await self.arrived.wait()

    def publish(self, subject: str, message: AnyMessage) -> None:
        self.broker.store(subject, encode(message), f"fabric:{next(self._numbers)}")

    def say(self, rollout: str, message: AnyMessage) -> None:
        """Report something in a rollout's log."""
        request = self.requests[rollout]
        cell = subjects.cell_of(rollout, self.cells)
        self.publish(subjects.rollout_sandbox(cell, request.tenant, request.run), message)

    def tell(self, rollout: str, message: AnyMessage) -> None:
        """Say something in a rollout's trajectory."""
        request = self.requests[rollout]
        cell = subjects.cell_of(rollout, self.cells)
        self.publish(subjects.trajectory(cell, request.tenant, request.run), message)

    def ready(self, rollout: str, *indices: int, attempt: int = 0, digest: str = "host") -> None:
        them = ranges.collect(indices)
        where = ("n1", EXECUTOR, "simulated")
        if attempt:
            self.tell(rollout, SandboxesBegan(rollout, attempt, them, *where, digest))
        self.say(rollout, SandboxesReady(rollout, attempt, them, *where, "" if attempt else digest))

    def saved(self, rollout: str, index: int, digest: str, steps: Ranges, *, attempt: int = 0) -> None:
        saved = SandboxSaved(rollout, attempt, index, Snapshot(digest, "host"), ranges.count(steps), steps)
        self.tell(rollout, saved)
        self.say(rollout, saved)

    def slept(self, rollout: str, index: int, digest: str, *, attempt: int = 0) -> None:
        slept = SandboxSlept(rollout, attempt, index, "n1", Snapshot(digest, "host"))
        self.tell(rollout, slept)
        self.say(rollout, slept)

    def finished(self, rollout: str, *results: SandboxResult, attempt: int = 0) -> None:
        self.say(rollout, SandboxesFinished(rollout, attempt, "n1", EXECUTOR, "simulated", results))

    def ended(self, rollout: str, *indices: int, reason: EndReason = EndReason.NODE_LOST, attempt: int = 0) -> None:
        self.say(rollout, SandboxesEnded(rollout, attempt, ranges.collect(indices), "n1", reason, "scripted"))

    def concluded(self, rollout: str, reason: str = "finished") -> None:
        self.say(rollout, RolloutConcluded(rollout, (), reason))

    async def _schedule(self, reader: Reader) -> None:
        while True:
            for delivery in await reader.batch():
                message = decode(delivery.payload)
                self.heard.append(message)
                if isinstance(message, RolloutSubmitted):
                    self.requests[message.rollout] = message
                    if self.script is not None:
                        self.script(self, message)
                self.arrived.set()

    async def _execute(self, reader: Reader) -> None:
        while True:
            for delivery in await reader.batch():
                message = decode(delivery.payload)
                if isinstance(message, RunCommand):
                    self.commands.append(message)
                if isinstance(message, GiveUp):
                    self.given_up.append(message)
                elif isinstance(message, ReadBlob):
                    self._serve(message)
                elif not self.silent:
                    assert isinstance(message, Asked)
                    self.asked.append(message)
                    self._answer(message, delivery.sequence, delivery.time_ms)
                self.arrived.set()

    def _serve(self, message: ReadBlob) -> None:
        piece = self.blobs.get(message.blob, b"")[message.offset : message.offset + message.limit]
        told = BlobRead(message.id, piece, message.blob.size, "" if message.blob in self.blobs else "it is not here")
        self.publish(subjects.blob(message.cell, message.tenant, message.run), told)

    def _answer(self, message: Asked, sequence: int, time_ms: int) -> None:
        subject = subjects.trajectory(message.cell, message.tenant, message.run)
        key = (message.rollout, message.index, message.attempt, message.id)
        if key in self.told:
            self.publish(subject, self.told[key])
            return
        self.ran[message.id] += 1
        number = sum(known[:3] == key[:3] for known in self.told) + 1
        idempotent = getattr(message, "idempotent", True)
        beside = ranges.collect(step.number for _, _, step in self.held.values())
        number += len(self.held)
        step = Step(number, time_ms, EXECUTOR, sequence, idempotent, beside)
        if not idempotent:
            command = message.command if isinstance(message, RunCommand) else None
            path = path_of(message)
            head = (message.id, message.rollout, message.index, message.attempt)
            self.publish(subject, StepBegun(*head, step, word(message), command, path))
        self._carry_out(message, subject, step)

    def _carry_out(self, message: Asked, subject: str, step: Step) -> None:
        head = (message.id, message.rollout, message.index, message.attempt)

        def say(answer: AnyMessage) -> None:
            self.told[(message.rollout, message.index, message.attempt, message.id)] = answer
            self.publish(subject, answer)

        match message:
            case RunCommand(command=command) if command.line.startswith("hold until") and step.number:
                line = command.line.removeprefix("hold until ")
                if line not in self.held:
                    self.held[line] = (message, subject, step)
                    return
                self._finish(message, step, say)
            case RunCommand(command=command):
                if message.stream:
                    for part in (0, 1, 1, 2):  # the second comes twice
                        channel = 2 if part == 2 else 1
                        output = CommandOutput(message.id, message.rollout, message.index, part, channel, b"%d" % part)
                        self.publish(subject, output)
                if command.line == "queue":
                    why = "it waited 32 s for its turn, which command b, 'sleep 9', still has"
                    say(CommandRefused(*head, "busy", why, None, step, "run", command))
                    return
                if command.line.startswith("gone"):
                    reason = EndReason(command.line.split()[1])
                    say(CommandRefused(*head, "sandbox_gone", "it is gone", reason))
                    return
                self._finish(message, step, say)
                if command.line in self.held:
                    self._carry_out(*self.held[command.line])
                    del self.held[command.line]
            case WriteFile(path=path, data=data, offset=offset, mode=mode):
                key = (message.rollout, message.index, path)
                known = self.files.get(key, b"")
                self.files[key] = known + data if offset == APPEND else known[:offset] + data
                self.pieces.append(len(data))
                size = len(self.files[key])
                say(FileWritten(*head, path, size, step, data[:65536], offset, mode, blob_of(data)))
            case ReadFile(path=path, offset=offset, limit=limit):
                content = self.files.get((message.rollout, message.index, path))
                if content is None:
                    say(CommandRefused(*head, "file_error", "no such file", None, step, "read", None, path))
                    return
                content = b"spoiled" if path in self.spoiled else content
                data = content[offset : offset + limit]
                eof = offset + limit >= len(content)
                say(FileRead(*head, path, data, len(content), eof, step, offset))
            case ManageFile(op=op, path=path, to=to, recursive=recursive):
                place = (message.rollout, message.index)
                if op in (FileOp.REMOVE, FileOp.RENAME) and (*place, path) not in self.files:
                    say(
                        CommandRefused(
                            *head, "file_error", f"{path}: no such file", None, step, word(message), None, path
                        )
                    )
                    return
                found = sorted(each[2] for each in self.files if each[:2] == place)
                if op is FileOp.STAT:
                    found = [each for each in found if each == path]
                elif op is FileOp.REMOVE:
                    del self.files[*place, path]
                elif op is FileOp.RENAME:
                    self.files[*place, to] = self.files.pop((*place, path))
                time_ms = step.asked_ms
                entries = tuple(
                    FileEntry(
                        each, "file", 7 if each in self.spoiled else len(self.files[*place, each]), 0o644, time_ms
                    )
                    for each in (() if op.changes else found)
                )
                say(FileManaged(*head, op, path, step, to, recursive, entries))
            case TakeSnapshot(name=name, memory=memory):
                digest = hashlib.sha256(message.id.encode()).hexdigest()
                self.saved(message.rollout, message.index, digest, ((1, step.number),), attempt=message.attempt)
                say(SnapshotTaken(*head, Snapshot(digest, "host", seal="5ea1"), name, 1000, step, memory))
            case RollBack(snapshot=snapshot):
                say(RolledBack(*head, snapshot.digest, step))
            case Hibernate():
                digest = hashlib.sha256(message.id.encode()).hexdigest()
                self.saved(message.rollout, message.index, digest, ((1, step.number),), attempt=message.attempt)
                self.slept(message.rollout, message.index, digest, attempt=message.attempt)
                say(Hibernated(*head, digest, step))

    def _finish(self, message: RunCommand, step: Step, say: Callable[[AnyMessage], None]) -> None:
        command = message.command
        code = int(command.line.split()[1]) if command.line.startswith("exit") else 0
        said = (command.line or " ".join(command.argv)).encode()
        timed_out = command.line == "sleep"
        result = CommandResult(137 if timed_out else code, said, b"oops\n", 1500, timed_out)
        if self.result is not None:
            result = self.result(command.line)
        stdin = blob_of(command.stdin) if command.stdin else None
        say(CommandFinished(message.id, message.rollout, message.index, message.attempt, command, result, step, stdin))


def all_ready(fabric: Fabric, request: RolloutSubmitted) -> None:
    fabric.ready(request.rollout, *range(request.spec.n))


def all_run(fabric: Fabric, request: RolloutSubmitted) -> None:
    """Finish in reverse order; each says its command and its index."""
    spec = request.spec
    for index in reversed(range(spec.n if spec.commands else 0)):
        one = spec.commands[index if len(spec.commands) > 1 else 0]
        fabric.finished(request.rollout, job_result(index, one.line.encode()))
    if spec.commands:
        fabric.concluded(request.rollout)
