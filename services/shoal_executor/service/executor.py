"""The executor's life: find what an earlier process left, join, take orders, carry them out, report, leave."""

import asyncio
import secrets
import time
from collections.abc import Coroutine
from typing import Any, Final

import structlog

from shoal.blobs.cache import Cache
from shoal.bus.ending import end
from shoal.bus.protocol import Bus, Delivery
from shoal.machine import ranges
from shoal.runtime.cluster import cells_of
from shoal.runtime.sealing import seals_of
from shoal.runtime.steady import SteadyPublisher
from shoal.wire import subjects
from shoal.wire.messages import (
    AnyMessage,
    Command,
    CommandResult,
    DestroySandboxes,
    EndReason,
    ExecutorDismissed,
    ExecutorJoined,
    ExecutorLeft,
    ExecutorReplaced,
    GiveUp,
    PreemptSandboxes,
    PrefetchSnapshot,
    Ranges,
    ReadBlob,
    SandboxResult,
    Snapshot,
    StartSandboxes,
)
from shoal.wire.outputs import IN_MESSAGE
from shoal.wire.quantities import BadValueError
from shoal_executor.core import (
    Asked,
    CarryOut,
    CutShort,
    Destroy,
    Group,
    Key,
    LetSleep,
    Phase,
    RunJobs,
    Start,
)
from shoal_executor.core.names import Names, indices_of, left_of, name_of
from shoal_executor.drivers.protocol import (
    Driver,
    DriverError,
    NoSuchSandboxError,
    NotEndedError,
    StartFailed,
    StartSpec,
    why_not_started,
)
from shoal_executor.service.accepting import Accepting
from shoal_executor.service.announcing import give_up_left
from shoal_executor.service.beating import beat
from shoal_executor.service.carrying import Carrying, bounded
from shoal_executor.service.clock import now_ms
from shoal_executor.service.deadlines import Deadlines
from shoal_executor.service.exits import Exits
from shoal_executor.service.gathering import Gathering
from shoal_executor.service.giving_way import GivingWay
from shoal_executor.service.inbox import Inbox
from shoal_executor.service.journal import (
    VERSION,
    AnyRecord,
    Began,
    Exited,
    Expired,
    Failed,
    Gone,
    Journal,
    Took,
    Up,
    machine,
)
from shoal_executor.service.keeping import Keeping
from shoal_executor.service.known import Known, ToDo
from shoal_executor.service.leaving import ReplacedError
from shoal_executor.service.offer import Offer
from shoal_executor.service.outgoing import Outgoing
from shoal_executor.service.outputs import Outputs
from shoal_executor.service.pace import Pace
from shoal_executor.service.preparing import prepared

_LAST_WORDS_S: Final = 5.0
_JOB: Final = "job"
"""The id of the one command that travels with a rollout."""
AGAIN_S: Final = 1.0
"""Seconds until what could not be ended is tried again, then twice as many, and so on up to `MOST_S`."""
MOST_S: Final = 60.0
_UNTOLD: Final = (EndReason.NODE_LOST, "it was gone when its executor came back")

log = structlog.get_logger()


class ExecutorService:
    """One executor. With a `journal` it continues what an earlier process of it began, sandboxes included."""

    def __init__(
        self, bus: Bus, driver: Driver, offer: Offer, boot: str, journal: Journal | None = None,
        cache: Cache | None = None,
    ) -> None:  # fmt: skip
        """`boot`: what it goes by, unless it continues an earlier process. Snapshots are kept by way of `cache`."""
        self._bus = bus
        self._driver = driver
        self._offer = offer
        began = Began(offer.executor, offer.cell, boot, machine(), driver.isolation, offer.nodes, VERSION)
        publisher = SteadyPublisher(bus, f"executor.{offer.executor}")
        self._known = Known(publisher, began, journal)
        self._core = self._known.core
        self._loose = Outgoing(publisher, "")  # beats and the like: nothing that another process would repeat
        self._cache = cache
        self._exits = Exits(self._happened)
        self._keeping = Keeping(bus, driver, self._known, self._loose, cache, self._happened, self._exits.told)
        self._outputs = Outputs(cache, self._loose)
        self._carrying = Carrying(driver, self._known, self._loose, self._keeping, self._outputs, self._happened)
        self._inbox = Inbox(bus, offer.executor, self._known, self._take)
        self._gathering = Gathering(self._take_up)
        self._pace = Pace()
        self._giving_way = GivingWay(lambda key, indices: self._spawn(self._destroy(key, indices)))
        self._dismissed = asyncio.Event()
        self._tasks: dict[asyncio.Task[None], None] = {}  # in their order
        self._deadlines = Deadlines(lambda key: self._happened(Expired(key)))

    async def run(self, stop: asyncio.Event) -> bool:
        """Serve until stop is set, or the cluster has no use for it any more; then leave nothing behind.

        Returns whether it was sent away, because all its nodes are drained (`shoal_executor.service.leaving`). Raises
        DriverError when isolation does not work here, JournalError when another executor has its place, ReplacedError
        when another has its name; all its sandboxes have ended then.
        """
        left = False
        try:
            continued = await asyncio.to_thread(self._known.recover)
            self._core = self._known.core
            wanted = [
                name_of(key, index)
                for key, group in self._core.groups.items()
                for index, phase in group.phases()
                if phase is Phase.LIVE  # one that was only starting may lack its input files: it is started anew
            ]
            report = await self._driver.open(self._exits.told, wanted)
            self._giving_way.at_once = report.starts_at_once
            for snapshot in self._offer.warm:
                await self._driver.prepare(snapshot)
            for limit in report.unenforced:
                log.warning("a limit is not enforced here", limit=limit)
            offer, isolation = self._offer, self._driver.isolation
            joined = ExecutorJoined(
                offer.executor, self._known.boot, isolation, offer.nodes, report.starts_per_s, report.unenforced
            )
            await self._serve(joined, stop, continued)
            left = True
            return self._dismissed.is_set()
        finally:
            try:
                self._deadlines.close()
                self._giving_way.close()
                await end(*self._tasks)
                self._keeping.settling.close()
                await self._driver.close()
            finally:
                self._known.close(forget=left)

    async def _serve(self, joined: ExecutorJoined, stop: asyncio.Event, continued: bool) -> None:
        await self._inbox.open(continued=continued)
        seals = await seals_of(self._bus)
        self._keeping.go(seals)
        self._accepting = Accepting(joined.executor, await cells_of(self._bus) or 1, seals)
        nodes = subjects.placement_node(self._offer.cell)
        self._loose.go(f"{joined.executor}:{joined.boot}:{secrets.token_hex(4)}")
        self._loose.send(nodes, joined)
        self._spawn(give_up_left(self._loose, self._cache))
        log.info("joined", executor=joined.executor, boot=joined.boot, nodes=len(joined.nodes), driver=joined.isolation)
        self._known.go()
        if continued:
            await self._adopt()
        self._exits.go(self._core)
        beating = beat(self._offer.cell, joined, self._known, self._pace, self._cache, self._loose)
        working = [  # in their order, not by their addresses
            asyncio.create_task(beating, name="beat"),
            asyncio.create_task(self._inbox.follow(), name="inbox"),
        ]
        ending = [
            asyncio.create_task(stop.wait(), name="stop"),
            asyncio.create_task(self._dismissed.wait(), name="dismissed"),
        ]
        try:
            done, _ = await asyncio.wait([*ending, *working], return_when=asyncio.FIRST_COMPLETED)
            for task in done.intersection(working):
                task.result()  # raises: neither of them ends by itself
        finally:
            await end(*ending, *working)
            await self._inbox.close()
        if stop.is_set() or self._dismissed.is_set():
            await self._known.outgoing.drain(_LAST_WORDS_S)  # what was done is known before placement gives up the rest
            self._known.leave()
            self._loose.send(nodes, ExecutorLeft(joined.executor, joined.boot))
            await self._loose.drain(_LAST_WORDS_S)

    async def _adopt(self) -> None:
        """Go on with the sandboxes of an earlier process: those that live, those that do not, and what was begun."""
        live = set(await self._driver.list())
        for key, group in list(self._core.groups.items()):
            self._deadlines.set(key, group.due_ms)
            again: list[int] = []
            ending: list[int] = []
            running: list[int] = []
            for index, phase in list(group.phases()):
                name = name_of(key, index)
                if phase is Phase.STARTING:
                    again.append(index)  # nothing ran in it yet
                elif phase is Phase.ENDING:
                    ending.append(index)
                elif (why := self._exits.before(name)) or name not in live:
                    self._happened(Exited(key, index, *(why or _UNTOLD)))
                elif group.runs_jobs:
                    running.append(index)
                else:
                    self._keep_saving(key, group, ((index, 1),))
            for index in again:
                self._carry_on(Start(key, group.order_of(index), ((index, 1),)))
            if ending:
                self._carry_on(Destroy(key, ranges.collect(ending)))
            if running:
                jobs = ranges.collect(running)
                self._carry_on(RunJobs(key, jobs, group.commands_of(ranges.mask(jobs))))
        for asked in self._known.answers.under_way():
            key = self._core.find(asked.rollout, asked.index, asked.attempt) or (asked.rollout, asked.attempt, "")
            self._spawn(self._carrying.carry_out(key, asked))
        log.info("sandboxes adopted", live=self._core.live, starting=self._core.starting)

    async def _prefetch(self, snapshot: Snapshot) -> None:
        try:
            await self._driver.prepare(snapshot)
            log.info("prefetched", snapshot=snapshot.digest[:12], bytes=sum(blob.size for blob in snapshot.blobs))
        except DriverError as error:
            log.warning("a snapshot cannot be prefetched", snapshot=snapshot.digest[:12], error=str(error))

    async def _take(self, message: AnyMessage, delivery: Delivery) -> None:
        try:
            self._accepting.check(message, delivery.subject)
        except BadValueError as error:
            await self._inbox.bury(delivery, f"{type(message).__name__}: {error}")
            return
        if isinstance(message, StartSandboxes | DestroySandboxes | PreemptSandboxes | Asked | GiveUp):
            self._happened(Took(delivery.sequence, message, delivery.time_ms, now_ms()))
            return
        match message:
            case ExecutorDismissed(boot=boot):
                if boot == self._known.boot and not self._core.groups:
                    log.info("all nodes are drained and empty: leaving", executor=self._offer.executor)
                    self._dismissed.set()
            case ExecutorReplaced(boot=boot):
                if boot == self._known.boot:
                    self._known.leave()  # no other process goes on with it
                    raise ReplacedError(self._offer.executor)
            case ReadBlob():
                self._spawn(self._outputs.serve(message))
            case PrefetchSnapshot(snapshot=snapshot):
                self._spawn(self._prefetch(snapshot))
            case _:
                await self._inbox.bury(delivery, f"{type(message).__name__} is nothing an executor is told")

    # --- carrying out what follows from what happens

    def _happened(self, record: AnyRecord) -> None:
        self._gathering.flush()  # it was before this
        self._take_up(record)

    def _take_up(self, record: AnyRecord) -> None:
        if isinstance(record, Gone):
            self._keeping.gone(record.group, record.indices)  # while it is known of which anything was asked
        for todo in self._known.happened(record):
            self._carry_on(todo)
        if isinstance(record, Gone | Failed) and record.group not in self._core.groups:
            self._deadlines.drop(record.group)
        elif isinstance(record, Up):
            self._pace.started += ranges.count(record.indices)
            group = self._core.groups.get(record.group)
            if group is not None:
                self._keep_saving(record.group, group, record.indices)
        if isinstance(record, Up | Failed):
            self._exits.outcome(record)

    def _carry_on(self, todo: ToDo) -> None:
        match todo:
            case Start(group=key, order=order, indices=indices):
                group = self._core.groups[key]
                self._deadlines.set(key, group.due_ms)
                self._spawn(self._start(key, order, indices, group.due_ms, group.here_ms(order.ready_by_ms)))
            case RunJobs(group=key, indices=indices, commands=commands):
                self._spawn(self._run_jobs(key, indices, commands))
            case Destroy(group=key, indices=indices):
                self._giving_way.add(key, indices)
            case LetSleep(group=key, index=index):
                self._spawn(self._keeping.make_room(key, index))
            case CarryOut(group=key, asked=asked):
                self._spawn(self._carrying.carry_out(key, asked))
            case CutShort(group=key, index=index, id=id):
                self._spawn(self._carrying.cut_short(name_of(key, index), id))

    async def _start(self, key: Key, order: StartSandboxes, indices: Ranges, due_ms: int, by_ms: int) -> None:
        names, left, why = Names(key, indices), indices, EndReason.START_FAILED
        try:
            await prepared(self._driver, order.snapshot, due_ms, by_ms)
            spec = StartSpec(order.snapshot, order.resources, order.files, order.env, order.user)
            with self._pace.busy(), self._giving_way.starting(len(names)) as done:
                async for outcome in self._driver.start(names, spec):
                    those = (outcome.name,) if isinstance(outcome, StartFailed) else outcome.names
                    told = indices if those is names else indices_of(those)
                    left = left_of(left, told)
                    done(len(those))
                    if isinstance(outcome, StartFailed):
                        self._gathering.failed(key, told, outcome.detail, outcome.reason)
                    else:
                        self._gathering.up(key, told)
            problem = "the driver gave no outcome"
        except DriverError as error:
            problem, why = str(error), why_not_started(error)
        except Exception as error:
            log.exception("the driver broke its protocol while starting", rollout=order.rollout)
            problem = f"the driver failed: {error!r}"
        if left:
            log.warning(
                "start failed", rollout=order.rollout, node=order.node, sandboxes=ranges.count(left), error=problem
            )
            self._gathering.failed(key, left, problem, why)

    def _keep_saving(self, key: Key, group: Group, indices: Ranges) -> None:
        order = group.order
        saves = order.checkpoint_every_ms and not order.commands
        sleeps = order.idle_after_ms and not order.commands
        for index in ranges.indices(indices) if saves or sleeps or order.lifetime_ms else ():
            if saves:
                self._spawn(self._keeping.checkpoint_every(key, index, order))
            if sleeps:
                self._spawn(self._keeping.hibernate_when_idle(key, index, order))
            if order.lifetime_ms and index in group.since_ms:
                self._spawn(self._keeping.end_at(key, index, group.since_ms[index] + order.lifetime_ms))

    async def _run_jobs(self, key: Key, indices: Ranges, commands: tuple[Command, ...]) -> None:
        began = time.monotonic_ns()
        each = [bounded(command, IN_MESSAGE) for command in commands]
        running = list(ranges.indices(indices))
        async for some in self._driver.run_each(Names(key, indices), each, id=_JOB):
            run_us = (time.monotonic_ns() - began) // 1000
            results = [
                SandboxResult(running[at], result, max(run_us, result.duration_us))  # begun before us?
                for at, result in some
                if isinstance(result, CommandResult)
            ]
            self._gathering.done(key, results)
            for at, result in some if len(results) < len(some) else ():
                if not isinstance(result, CommandResult | NoSuchSandboxError):  # the latter's end says why
                    index, name = running[at], name_of(key, running[at])
                    log.error("a job failed in its driver", sandbox=name, error=repr(result))
                    self._happened(Exited(key, index, EndReason.DIED, f"its command could not be run: {result}"))

    async def _destroy(self, key: Key, indices: Ranges, waited_s: float = 0.0) -> None:
        for name in self._keeping.returning(Names(key, indices)):
            if (one := indices_of((name,))) == indices:
                await self._keeping.returned(name)
            else:  # the others need not wait for it
                self._spawn(self._destroy(key, one))
                indices = ranges.without(indices, one)
        try:
            await self._driver.destroy(Names(key, indices))
        except NotEndedError as error:  # they keep their slots: something of them may still be running
            again_s = min(2 * waited_s, MOST_S) or AGAIN_S
            log.error("sandboxes could not be ended", rollout=key[0], node=key[2], error=str(error), again_s=again_s)
            left = indices_of(error.names)
            self._spawn(self._destroy_later(key, left, again_s))
            indices = ranges.without(indices, left)
        if indices:
            self._happened(Gone(key, indices))

    async def _destroy_later(self, key: Key, indices: Ranges, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        await self._destroy(key, indices, wait_s)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the executor failed to carry something out", exc_info=error)
