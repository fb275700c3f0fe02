"""The executor's life: join, take orders, carry them out through the driver, report, leave."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog

from shoal.bus.protocol import Bus, Delivery, Reader
from shoal.machine import ranges
from shoal.machine.core import Cause
from shoal.runtime.dead import dead_letter
from shoal.wire import streams, subjects
from shoal.wire.codec import UndecodableError, decode
from shoal.wire.messages import (
    Command,
    CommandFinished,
    CommandOutput,
    CommandRefused,
    CommandResult,
    DestroySandboxes,
    EndReason,
    ExecutorBeat,
    ExecutorJoined,
    ExecutorLeft,
    FileRead,
    FileWritten,
    NodeSpec,
    ReadFile,
    RunCommand,
    Snapshot,
    StartSandboxes,
    WriteFile,
)
from shoal_executor.core import (
    Asked,
    CarryOut,
    Destroy,
    Effect,
    ExecutorCore,
    Key,
    Refuse,
    RunJob,
    Start,
)
from shoal_executor.drivers.protocol import (
    Driver,
    DriverError,
    NoSuchSandboxError,
    SandboxFileError,
    Started,
    StartSpec,
)
from shoal_executor.service.answers import Answer, Answers, without_input
from shoal_executor.service.outgoing import Outgoing
from shoal_executor.service.reports import Reports

BEAT_S: Final = 1.0
JOIN_EVERY_BEATS: Final = 5
DEADLINE_GRACE_S: Final = 2.0
"""The scheduler ends a rollout whose time is up; the executor does it only if no word comes."""
OUTPUT_LIMIT: Final = 256 * 1024
"""Bytes of each output stream that fit into one message, both together, with the broker's default limit."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Offer:
    """What an executor brings into a cluster. `warm`: snapshots made ready before it joins."""

    executor: str
    cell: int
    nodes: tuple[NodeSpec, ...]
    warm: tuple[Snapshot, ...] = ()


class ExecutorService:
    """One executor in one life."""

    def __init__(self, bus: Bus, driver: Driver, offer: Offer, boot: str) -> None:
        self._bus = bus
        self._driver = driver
        self._offer = offer
        self._boot = boot
        self._core = ExecutorCore(boot)
        self._outgoing = Outgoing(bus, f"{offer.executor}:{boot}")
        self._reports = Reports(self._outgoing, offer.executor, boot, driver.isolation, offer.cell)
        self._answers = Answers()
        self._tasks: set[asyncio.Task[None]] = set()
        self._deadlines: dict[Key, asyncio.TimerHandle] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until stop is set, then leave nothing behind. Raises DriverError when isolation does not work here."""
        try:
            report = await self._driver.open(self._exited)
            for snapshot in self._offer.warm:
                await self._driver.prepare(snapshot)
            for limit in report.unenforced:
                log.warning("a limit is not enforced here", limit=limit)
            joined = ExecutorJoined(
                self._offer.executor,
                self._boot,
                self._driver.isolation,
                self._offer.nodes,
                report.starts_per_s,
                report.unenforced,
            )
            await self._serve(joined, stop)
        finally:
            for handle in self._deadlines.values():
                handle.cancel()
            await _cancel(self._tasks)
            await self._driver.close()

    async def _serve(self, joined: ExecutorJoined, stop: asyncio.Event) -> None:
        inbox = streams.executor(self._offer.executor)
        await self._bus.ensure([inbox])
        # What was said to an earlier life is nothing to this one: placement gives all of it up when this one joins.
        reader = await self._bus.reader(inbox.name, after=None)
        nodes = subjects.placement_node(self._offer.cell)
        self._outgoing.send(nodes, joined)
        log.info("joined", executor=joined.executor, boot=self._boot, nodes=len(joined.nodes), driver=joined.isolation)
        working = {
            asyncio.create_task(self._beat(joined), name="beat"),
            asyncio.create_task(self._follow(reader, inbox.name), name="inbox"),
        }
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait({stopped, *working}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()  # raises: neither of them ends by itself
        finally:
            await _cancel({stopped, *working})
            await reader.close()
            self._outgoing.send(nodes, ExecutorLeft(joined.executor, self._boot))
            await asyncio.wait({asyncio.create_task(self._outgoing.drain())}, timeout=5.0)

    async def _beat(self, joined: ExecutorJoined) -> None:
        nodes = subjects.placement_node(self._offer.cell)
        beats = 0
        while True:
            await asyncio.sleep(BEAT_S)
            beats += 1
            beat = ExecutorBeat(joined.executor, self._boot, self._core.live, self._core.starting)
            self._outgoing.send(nodes, joined if beats % JOIN_EVERY_BEATS == 0 else beat)

    async def _follow(self, reader: Reader, stream: str) -> None:
        while True:
            for delivery in await reader.batch():
                await self._take(delivery, stream)

    async def _take(self, delivery: Delivery, stream: str) -> None:
        try:
            message = decode(delivery.payload)
        except UndecodableError as error:
            await self._bury(delivery, stream, f"cannot be decoded: {error}")
            return
        match message:
            case StartSandboxes():
                self._apply(self._core.start(message))
            case DestroySandboxes():
                self._apply(self._core.destroy(message))
            case RunCommand() | WriteFile() | ReadFile():
                self._command(message)
            case _:
                await self._bury(delivery, stream, f"{type(message).__name__} is nothing an executor is told")

    async def _bury(self, delivery: Delivery, stream: str, reason: str) -> None:
        log.error("dead letter", subject=delivery.subject, sequence=delivery.sequence, reason=reason)
        cause = Cause(stream, delivery.sequence, delivery.time_ms)
        await dead_letter(self._bus, delivery, cause, f"executor.{self._offer.executor}", reason)

    # --- carrying out what the core decides

    def _apply(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Start(group=key, order=order, indices=indices):
                    self._set_deadline(key, order)
                    self._spawn(self._start(key, order, tuple(ranges.indices(indices))))
                case RunJob(group=key, index=index, command=command):
                    self._spawn(self._run_job(key, index, command))
                case Destroy(group=key, indices=indices):
                    self._spawn(self._destroy(key, tuple(ranges.indices(indices))))
                case CarryOut(asked=asked):
                    self._spawn(self._carry_out(asked))
                case Refuse(asked=asked, reason=reason):
                    self._answer(asked, _refusal(asked, "sandbox_gone", _gone_text(reason), reason))
                case _:
                    self._reports.add(effect)

    async def _start(self, key: Key, order: StartSandboxes, indices: tuple[int, ...]) -> None:
        names = {_name(key, index): index for index in indices}
        try:
            await self._driver.prepare(order.snapshot)
            specs = [
                StartSpec(name, order.snapshot, order.resources, order.files, order.env, order.user) for name in names
            ]
            async for outcome in self._driver.start(specs):
                index = names.pop(outcome.name)
                if isinstance(outcome, Started):
                    self._apply(self._core.started(key, index))
                else:
                    self._apply(self._core.start_failed(key, index, outcome.detail))
            problem = "the driver gave no outcome"
        except DriverError as error:
            problem = str(error)
        except Exception as error:
            log.exception("the driver broke its protocol while starting", rollout=order.rollout)
            problem = f"the driver failed: {error!r}"
        if names:
            log.warning("start failed", rollout=order.rollout, node=order.node, sandboxes=len(names), error=problem)
        for index in names.values():
            self._apply(self._core.start_failed(key, index, problem))

    async def _run_job(self, key: Key, index: int, command: Command) -> None:
        began = time.monotonic_ns()
        try:
            result = await self._driver.run(_name(key, index), _bounded(command))
        except NoSuchSandboxError:
            return  # its end was ordered or reported, and says why
        run_us = (time.monotonic_ns() - began) // 1000
        self._apply(self._core.job_done(key, index, result, run_us))

    async def _destroy(self, key: Key, indices: tuple[int, ...]) -> None:
        await self._driver.destroy([_name(key, index) for index in indices])
        for index in indices:
            self._answers.forget((key[0], index, key[1]))
        self._apply(self._core.destroyed(key, ranges.collect(indices)))
        if key not in self._core.groups:
            handle = self._deadlines.pop(key, None)
            if handle is not None:
                handle.cancel()

    def _exited(self, name: str, reason: EndReason, detail: str) -> None:
        rollout, index, attempt = _parse(name)
        key = self._core.find(rollout, index, attempt)
        if key is not None:
            log.warning("a sandbox ended by itself", sandbox=name, reason=reason, detail=detail)
            self._apply(self._core.exited(key, index, reason, detail))

    def _set_deadline(self, key: Key, order: StartSandboxes) -> None:
        if key not in self._deadlines:
            remaining = order.deadline_ms / 1000 - time.time() + DEADLINE_GRACE_S
            loop = asyncio.get_running_loop()
            self._deadlines[key] = loop.call_later(max(remaining, 0.0), self._expire, key)

    def _expire(self, key: Key) -> None:
        self._deadlines.pop(key, None)
        self._apply(self._core.expire(key))

    # --- trainers' commands

    def _command(self, asked: Asked) -> None:
        sandbox = (asked.rollout, asked.index, asked.attempt)
        effects = self._core.command(asked)
        if isinstance(effects[0], CarryOut) and not self._answers.begin(sandbox, asked.id):
            recorded = self._answers.recorded(asked.id)
            if recorded is not None:
                self._answer(asked, recorded)
            elif not self._answers.running(asked.id):
                text = "it was carried out before; its result is in the trajectory, no longer here"
                self._answer(asked, _refusal(asked, "answer_gone", text, None))
            return  # else it is under way, and its answer will come
        self._apply(effects)

    async def _carry_out(self, asked: Asked) -> None:
        name = _name((asked.rollout, asked.attempt, ""), asked.index)
        answer: Answer
        head = (asked.id, asked.rollout, asked.index, asked.attempt)
        try:
            match asked:
                case RunCommand(command=command):
                    result = await self._run(name, asked)
                    answer = without_input(CommandFinished(*head, command, result))
                case WriteFile(path=path):
                    size = await self._driver.write_file(name, path, asked.data, offset=asked.offset, mode=asked.mode)
                    answer = FileWritten(*head, path, size)
                case ReadFile(path=path):
                    limit = min(asked.limit, OUTPUT_LIMIT)
                    chunk = await self._driver.read_file(name, path, offset=asked.offset, limit=limit)
                    answer = FileRead(*head, path, chunk.data, chunk.size, chunk.eof)
        except NoSuchSandboxError as error:
            answer = _refusal(asked, "sandbox_gone", _gone_text(error.reason), error.reason)
        except SandboxFileError as error:
            answer = _refusal(asked, "file_error", str(error), None)
        except DriverError as error:
            answer = _refusal(asked, "bad_request", str(error), None)
        self._answers.record(asked.id, answer)
        self._answer(asked, answer)

    async def _run(self, name: str, asked: RunCommand) -> CommandResult:
        if not asked.stream:
            return await self._driver.run(name, _bounded(asked.command))
        part = 0
        subject = subjects.trajectory(asked.cell, asked.tenant, asked.run)

        def publish(channel: int, data: bytes) -> None:
            nonlocal part
            output = CommandOutput(asked.id, asked.rollout, asked.index, part, channel, data)
            self._outgoing.send(subject, output)
            part += 1

        return await self._driver.run(name, _bounded(asked.command), publish)

    def _answer(self, asked: Asked, answer: Answer) -> None:
        self._outgoing.send(subjects.trajectory(asked.cell, asked.tenant, asked.run), answer)

    # ---

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the executor failed to carry something out", exc_info=error)


def _name(key: Key, index: int) -> str:
    rollout, attempt, _ = key
    return f"{rollout}-{index}.{attempt}" if attempt else f"{rollout}-{index}"


def _parse(name: str) -> tuple[str, int, int]:
    rollout, _, rest = name.rpartition("-")
    index, _, attempt = rest.partition(".")
    return rollout, int(index), int(attempt or 0)


def _bounded(command: Command) -> Command:
    if command.output_limit <= OUTPUT_LIMIT:
        return command
    return msgspec.structs.replace(command, output_limit=OUTPUT_LIMIT)


def _gone_text(reason: EndReason | None) -> str:
    return f"the sandbox is gone: {reason}" if reason else "no such sandbox lives here"


def _refusal(asked: Asked, code: str, detail: str, reason: EndReason | None) -> CommandRefused:
    return CommandRefused(asked.id, asked.rollout, asked.index, asked.attempt, code, detail, reason)


async def _cancel(tasks: "set[asyncio.Task[None]] | set[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
