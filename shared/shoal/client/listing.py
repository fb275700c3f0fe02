"""What the log tells about rollouts and nodes: folds of its history, for people who ask."""

import asyncio
import heapq
import time
from collections.abc import AsyncGenerator
from typing import Final

from shoal.bus.protocol import Bus, Delivery
from shoal.client.feed import decoded, following, history
from shoal.client.fold import RolloutFold
from shoal.client.nodes import drained
from shoal.client.results import Event, NodeInfo, RolloutInfo
from shoal.wire import streams, subjects
from shoal.wire.codec import UndecodableError, decode
from shoal.wire.messages import ExecutorBeat, ExecutorJoined, ExecutorLeft, RolloutSubmitted

SILENT_AFTER_MS: Final = 10_000
"""What placement, too, takes for silence."""


def since(seconds: float | None) -> int | None:
    """Return the moment so many seconds ago, in ms since the epoch, by this machine's clock."""
    return None if seconds is None else int((time.time() - seconds) * 1000)


async def find(bus: Bus, cell: int, rollout: str, tenant: str, run: str = "*") -> tuple[RolloutFold, int] | None:
    """Return a rollout folded from its cell's log, and the sequence up to which it was; None when it is not there."""
    stream = streams.rollout(cell).name
    last = await bus.last_sequence(stream)
    fold: RolloutFold | None = None
    requests = subjects.rollout_filter(cell, tenant, run, "request")
    everything = subjects.rollout_filter(cell, tenant, run)
    async for delivery in history(bus, stream, until=last):
        if not streams.subjects_overlap(everything if fold else requests, delivery.subject):
            continue
        message = decoded(delivery)
        if fold is None and isinstance(message, RolloutSubmitted) and message.rollout == rollout:
            fold = RolloutFold(rollout, message.tenant, message.run, message.spec)
            everything = subjects.rollout_filter(cell, message.tenant, message.run)
        if fold is not None and message is not None:
            fold.handle(message, delivery.time_ms)
    return None if fold is None else (fold, last)


async def rollouts(bus: Bus, cells: int, tenant: str, run: str | None, since_ms: int | None) -> list[RolloutInfo]:
    """Return a tenant's rollouts submitted since then, oldest first."""
    per_cell = await asyncio.gather(*(_rollouts(bus, cell, tenant, run or "*", since_ms) for cell in range(cells)))
    return sorted((info for infos in per_cell for info in infos), key=lambda info: info.submitted_ms)


async def _rollouts(bus: Bus, cell: int, tenant: str, run: str, since_ms: int | None) -> list[RolloutInfo]:
    folds: dict[str, RolloutFold] = {}
    wanted = subjects.rollout_filter(cell, tenant, run)
    async for delivery in history(bus, streams.rollout(cell).name, since_ms=since_ms):
        if not streams.subjects_overlap(wanted, delivery.subject):
            continue
        message = decoded(delivery)
        if isinstance(message, RolloutSubmitted) and message.rollout not in folds:
            folds[message.rollout] = RolloutFold(message.rollout, message.tenant, message.run, message.spec)
        if message is not None and (fold := folds.get(getattr(message, "rollout", ""))) is not None:
            fold.handle(message, delivery.time_ms)
    return [info(fold) for fold in folds.values()]


def info(fold: RolloutFold) -> RolloutInfo:
    """Return a fold as an entry of a listing."""
    status = fold.status()
    values = {name: getattr(status, name) for name in type(status).__dataclass_fields__}
    return RolloutInfo(**values, submitted_ms=fold.submitted_ms or 0)


async def nodes(bus: Bus, cells: int, since_ms: int, now_ms: int) -> list[NodeInfo]:
    """Return the nodes whose executors said anything since then, by name."""
    found: list[NodeInfo] = []
    draining = await drained(bus)
    for cell in range(cells):
        joined: dict[str, ExecutorJoined] = {}
        beats: dict[str, ExecutorBeat] = {}
        seen: dict[str, int] = {}
        left: set[str] = set()
        past: set[tuple[str, str]] = set()  # boots that placement knows no more, whatever they say
        async for delivery in history(bus, streams.placement(cell).name, since_ms=since_ms):
            if delivery.subject != subjects.placement_node(cell):
                continue
            match decoded(delivery):
                case ExecutorJoined(executor=executor, boot=boot) as message:
                    if (executor, boot) in past:
                        continue
                    if executor in joined and joined[executor].boot != boot:
                        past.add((executor, joined[executor].boot))
                    joined[executor] = message
                    left.discard(executor)
                case ExecutorBeat(executor=executor, boot=boot) as message:
                    if (executor, boot) in past:
                        continue
                    beats[executor] = message
                case ExecutorLeft(executor=executor) as message:
                    if executor in joined and joined[executor].boot != message.boot:
                        continue
                    left.add(executor)
                    past.add((executor, message.boot))
                case _:
                    continue
            seen[executor] = delivery.time_ms
        for executor, message in joined.items():
            silent = now_ms - seen[executor] > SILENT_AFTER_MS
            state = "left" if executor in left else "silent" if silent else "alive"
            beat = beats.get(executor)
            live, starting = (beat.live, beat.starting) if beat and beat.boot == message.boot else (0, 0)
            emptied = "draining" if live + starting else "drained"
            # An executor leaves by itself when all its nodes are drained and empty, and comes back when one is not.
            states = {
                node.node: emptied if state in ("alive", "left") and node.node in draining else state
                for node in message.nodes
            }
            found += [
                NodeInfo(
                    node.node, executor, message.isolation, states[node.node], node.slots, node.memory, live, starting,
                    seen[executor], node.labels, message.unenforced,
                )
                for node in message.nodes
            ]  # fmt: skip
    return sorted(found, key=lambda node: node.node)


async def events(
    bus: Bus, cells: int, tenant: str, run: str | None, since_ms: int | None, follow: bool
) -> AsyncGenerator[Event, None]:
    """Yield what the cluster's streams keep, merged by time; with follow, go on with what comes.

    With a run: what is said of that run of the tenant's. Following without since_ms: only what comes from now on.
    """
    wanted: dict[str, str | None] = {}
    for cell in range(cells):
        wanted[streams.rollout(cell).name] = subjects.rollout_filter(cell, tenant, run) if run else None
        wanted[streams.trajectory(cell).name] = subjects.trajectory(cell, tenant, run) if run else None
        if not run:
            wanted[streams.placement(cell).name] = None
    if not run:
        wanted |= {streams.snapshot().name: None, streams.dead().name: None}
    until = {stream: await bus.last_sequence(stream) for stream in wanted}
    if not follow or since_ms is not None:
        parts = [_part(bus, stream, only, since_ms, until[stream]) for stream, only in wanted.items()]
        try:
            async for event in _merged(parts):
                yield event
        finally:
            for part in parts:
                await part.aclose()
    if follow:
        coming = _coming(bus, wanted, until)
        try:
            async for event in coming:
                yield event
        finally:
            await coming.aclose()


async def _part(
    bus: Bus, stream: str, only: str | None, since_ms: int | None, until: int
) -> AsyncGenerator[Event, None]:
    found = history(bus, stream, since_ms=since_ms, until=until)
    try:
        async for delivery in found:
            if only is None or streams.subjects_overlap(only, delivery.subject):
                yield event_of(stream, delivery)
    finally:
        await found.aclose()


async def _merged(parts: list[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event]:
    heads: list[tuple[int, int, Event]] = []
    for number, part in enumerate(parts):
        first = await anext(part, None)
        if first is not None:
            heads.append((first.time_ms, number, first))
    heapq.heapify(heads)
    while heads:
        _, number, event = heads[0]
        yield event
        following = await anext(parts[number], None)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following.time_ms, number, following))


async def _coming(bus: Bus, wanted: dict[str, str | None], after: dict[str, int]) -> AsyncGenerator[Event, None]:
    queue: asyncio.Queue[Event | BaseException] = asyncio.Queue(4096)

    async def pump(stream: str, only: str | None) -> None:
        reader = await bus.reader(stream, after=after[stream], filters=[only] if only else [])
        try:
            while True:
                for delivery in await following(reader):
                    await queue.put(event_of(stream, delivery))
        except Exception as error:
            await queue.put(error)
        finally:
            await reader.close()

    pumps = [asyncio.create_task(pump(stream, only), name=f"shoal events {stream}") for stream, only in wanted.items()]
    try:
        while True:
            event = await queue.get()
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def event_of(stream: str, delivery: Delivery) -> Event:
    """Return a message of the log as people are given it."""
    try:
        message = decode(delivery.payload)
    except UndecodableError:
        message = None
    return Event(stream, delivery.sequence, delivery.time_ms, delivery.subject, delivery.id, message)
