"""The story of a node: when it joined, what was started there and what became of it, silence, loss, draining."""

from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from shoal.archive.happenings import Happening, happening, linked
from shoal.archive.planning import cells_of
from shoal.archive.source import History
from shoal.archive.stories import Story, Tell, gather_from, quiet
from shoal.bus.protocol import Delivery
from shoal.wire import streams
from shoal.wire.messages import (
    DestroySandboxes,
    ExecutorBeat,
    ExecutorJoined,
    ExecutorLeft,
    NodeDrained,
    PreemptSandboxes,
    SandboxesEnded,
    SandboxesFinished,
    SandboxesReady,
    SandboxSlept,
    SlotsReleased,
    StartSandboxes,
)

SILENT_AFTER_MS: Final = 10_000
"""What placement takes for silence."""
_THERE: Final = (StartSandboxes, SandboxesReady, SandboxesFinished, SandboxesEnded, SandboxSlept, SlotsReleased)
_TOLD: Final = (DestroySandboxes, PreemptSandboxes)
_TAG_WITHIN: Final = 24  # bytes of a message's beginning


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing was heard of a node's executor for so long."""

    since_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class NodeStory(Story):
    """The story of a node. `executors`: which ones served it; `silences`: when none of them was heard.

    `heard_ms`: when one was for the last time.
    """

    executors: tuple[str, ...] = ()
    silences: tuple[Silence, ...] = ()
    heard_ms: int = 0


async def tell_node(
    history: History, name: str, *, since_ms: int | None = None, until_ms: int | None = None, tell: Tell = quiet
) -> NodeStory | None:
    """Return the story of a node within a time; None where nothing was heard of one of that name."""
    life = _Life(name)
    for cell in range(await cells_of(history)):
        await life.follow(history, streams.placement(cell).name, since_ms, until_ms, tell)
    if not life.executors:
        return None
    names = [stream for stream in await history.streams() if stream.startswith("SHOAL_ROLLOUT_")]
    inboxes = [streams.executor(executor).name for executor in life.executors]
    needle = name.encode()

    def wanted(delivery: Delivery) -> bool:
        return needle in delivery.payload or _is(delivery, *_TOLD)

    found = await gather_from(history, [*names, *inboxes], wanted, since_ms, until_ms, tell)
    there = [each for each in found if isinstance(each.message, _THERE) and each.message.node == name]
    started = {each.message.rollout for each in there if isinstance(each.message, StartSandboxes)}
    there += [each for each in found if isinstance(each.message, _TOLD) and each.message.rollout in started]
    told = linked([*life.told, *there])
    return NodeStory(
        "node", name, told, executors=tuple(life.executors), silences=tuple(life.silences), heard_ms=life.last_ms
    )


def _is(delivery: Delivery, *kinds: type) -> bool:
    """Return whether a message is of one of these kinds, by its first bytes."""
    head = delivery.payload[:_TAG_WITHIN]
    return any(kind.__name__.encode() in head for kind in kinds)


class _Life:
    """What a placement log tells of a node itself. What an executor says again and again is told once."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._boots: dict[str, str] = {}
        self._heard_ms = 0
        self.last_ms = 0
        self.executors: dict[str, None] = {}
        self.silences: list[Silence] = []
        self.told: list[Happening] = []

    async def follow(
        self, history: History, stream: str, since_ms: int | None, until_ms: int | None, tell: Tell
    ) -> None:
        """Read a placement log."""
        needle = self._node.encode()
        async with aclosing(history.read(stream, since_ms=since_ms)) as messages:
            async for delivery in messages:
                if delivery.sequence % 1024 == 0:
                    tell(stream, delivery.sequence)
                if until_ms is not None and delivery.time_ms > until_ms:
                    return
                if needle in delivery.payload or (self.executors and _is(delivery, ExecutorBeat, ExecutorLeft)):
                    each = happening(stream, delivery)
                    if each is not None:
                        self._take(each)

    def _take(self, each: Happening) -> None:
        match each.message:
            case ExecutorJoined(executor=executor, boot=boot, nodes=nodes):
                if any(node.node == self._node for node in nodes):
                    if self._boots.get(executor) != boot:
                        self._boots[executor] = boot
                        self.told.append(each)
                    self.executors[executor] = None
                    self._hear(each.time_ms)
            case ExecutorBeat(executor=executor) if executor in self._boots:
                self._hear(each.time_ms)
            case ExecutorLeft(executor=executor) if executor in self._boots:
                self._boots.pop(executor)
                self._heard_ms = 0
                self.told.append(each)
            case NodeDrained(node=self._node) | SlotsReleased(node=self._node):
                self.told.append(each)

    def _hear(self, time_ms: int) -> None:
        if self._heard_ms and time_ms - self._heard_ms > SILENT_AFTER_MS:
            self.silences.append(Silence(self._heard_ms, time_ms))
        self._heard_ms = self.last_ms = time_ms
