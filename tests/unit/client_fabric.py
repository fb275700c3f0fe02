"""A scripted stand-in for scheduler and executor on a MemoryBroker, for tests of the client."""

import asyncio
import itertools
from collections.abc import Callable

from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.bus.protocol import Reader
from shoal.machine import ranges
from shoal.wire import streams, subjects
from shoal.wire.codec import decode, encode
from shoal.wire.messages import (
    AnyMessage,
    CommandFinished,
    CommandOutput,
    CommandRefused,
    CommandResult,
    EndReason,
    FileRead,
    FileWritten,
    ReadFile,
    RolloutConcluded,
    RolloutSubmitted,
    RunCommand,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesReady,
    SandboxResult,
    WriteFile,
)

EXECUTOR = "e1"
Script = Callable[["Fabric", RolloutSubmitted], None]


def job_result(index: int, stdout: bytes = b"", exit_code: int = 0) -> SandboxResult:
    return SandboxResult(index, CommandResult(exit_code, stdout), 1000)


class Fabric:
    """Says what a test tells it to; answers commands by itself, with files kept in memory."""

    def __init__(self, script: Script | None = None, cells: int = 1) -> None:
        self.broker = MemoryBroker()
        self.cells = cells
        self.script = script
        self.requests: dict[str, RolloutSubmitted] = {}
        self.heard: list[AnyMessage] = []
        self.commands: list[RunCommand] = []
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

    def ready(self, rollout: str, *indices: int, attempt: int = 0) -> None:
        self.say(rollout, SandboxesReady(rollout, attempt, ranges.collect(indices), "n1", EXECUTOR, "simulated"))

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
                assert isinstance(message, RunCommand | WriteFile | ReadFile)
                if isinstance(message, RunCommand):
                    self.commands.append(message)
                if not self.silent:
                    self._answer(message)
                self.arrived.set()

    def _answer(self, message: RunCommand | WriteFile | ReadFile) -> None:
        head = (message.id, message.rollout, message.index, message.attempt)
        subject = subjects.trajectory(message.cell, message.tenant, message.run)
        match message:
            case RunCommand(command=command):
                if message.stream:
                    for part in (0, 1, 1, 2):  # the second comes twice
                        channel = 2 if part == 2 else 1
                        output = CommandOutput(message.id, message.rollout, message.index, part, channel, b"%d" % part)
                        self.publish(subject, output)
                if command.line.startswith("gone"):
                    reason = EndReason(command.line.split()[1])
                    self.publish(subject, CommandRefused(*head, "sandbox_gone", "it is gone", reason))
                    return
                code = int(command.line.split()[1]) if command.line.startswith("exit") else 0
                said = (command.line or " ".join(command.argv)).encode()
                timed_out = command.line == "sleep"
                result = CommandResult(137 if timed_out else code, said, b"oops\n", 1500, timed_out)
                self.publish(subject, CommandFinished(*head, command, result))
            case WriteFile(path=path, data=data, offset=offset):
                key = (message.rollout, message.index, path)
                self.files[key] = (self.files.get(key, b"") if offset else b"")[:offset] + data
                self.pieces.append(len(data))
                self.publish(subject, FileWritten(*head, path, len(self.files[key])))
            case ReadFile(path=path, offset=offset, limit=limit):
                content = self.files.get((message.rollout, message.index, path))
                if content is None:
                    self.publish(subject, CommandRefused(*head, "file_error", "no such file"))
                    return
                data = content[offset : offset + limit]
                eof = offset + limit >= len(content)
                self.publish(subject, FileRead(*head, path, data, len(content), eof))


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
