"""A small core for tests of what runs cores, and the bench they run on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType

import msgspec

from shoal.bus.memory import MemoryBroker, MemoryBus
from shoal.bus.protocol import Bus
from shoal.machine.core import Cause, Effect, Inspect, LawBrokenError, Publish, cause_of
from shoal.machine.versions import Upgrade
from shoal.runtime.lease import Record
from shoal.runtime.shell import Shell
from shoal.wire import streams, subjects
from shoal.wire.codec import decode
from shoal.wire.messages import (
    AnyMessage,
    EndReason as Reason,
    ReleaseRequested,
    ResolveTemplate,
    RolloutCancelled,
    RolloutReleased,
    SandboxesEnded,
    TemplateInspected,
    TemplateResolved,
    Tick,
)

INBOX = "SHOAL_ROLLOUT_0"
OUT = "SHOAL_PLACEMENT_0"
REQUEST = subjects.rollout_request(0, "t", "r")
SYSTEM = subjects.rollout_system(0)


async def acknowledge(bus: MemoryBus, position: int) -> None:
    """An earlier leader was done up to there."""
    await bus.put(streams.LEASE_BUCKET, "toy.0", msgspec.json.encode(Record(position=position)))


class Toy:
    """Answers a release with two messages, a cancellation with a broken law, and asks for a Tick after an end."""

    state_version = 1
    upgrades: Mapping[int, Upgrade] = MappingProxyType({})

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.asked: dict[str, None] = {}
        self.due: int | None = None

    def handle(self, message: AnyMessage, cause: Cause) -> Sequence[Effect]:
        match message:
            case RolloutReleased(rollout=rollout):
                if rollout in self.seen:
                    return ()
                self.seen.append(rollout)
                place = subjects.placement_request(0)
                return [
                    Publish(place, ReleaseRequested(f"{rollout}-{n}", ((0, cause.sequence),), Reason.RELEASED))
                    for n in range(2)
                ]
            case RolloutCancelled(rollout=rollout):
                raise LawBrokenError(f"nobody may cancel {rollout}")
            case SandboxesEnded(attempt=due):
                self.due = due
            case Tick(due_ms=due):
                if self.due is not None and cause.time_ms >= self.due:
                    self.due = None
                    return [Publish(subjects.placement_request(0), ReleaseRequested("tick", (), Reason.TIMED_OUT))]
            case ResolveTemplate(template=template):
                self.asked[template] = None
                return [Inspect(template)]
            case TemplateInspected(template=template):
                self.asked.pop(template, None)
                return [
                    Publish(subjects.placement_request(0), ReleaseRequested(template, (), Reason.RELEASED)),
                ]
            case TemplateResolved():
                raise RuntimeError("a bug of the core")
            case _:
                raise LawBrokenError("what is this?")
        return ()

    def wake_at_ms(self) -> int | None:
        return self.due

    def outstanding(self) -> Sequence[Effect]:
        return [Inspect(template) for template in self.asked]

    def dump(self) -> bytes:
        return msgspec.msgpack.encode((self.seen, list(self.asked), self.due))

    def load(self, state: bytes) -> None:
        self.seen, asked, self.due = msgspec.msgpack.decode(state, type=tuple[list[str], list[str], int | None])
        self.asked = dict.fromkeys(asked)

    def check(self) -> None:
        assert len(set(self.seen)) == len(self.seen)


def shell_of(bus: Bus, core: Toy, **options: object) -> Shell:
    options = {"name": "toy.0", "stream": INBOX, "tick_subject": SYSTEM, "ttl_s": 0.2, **options}
    return Shell(bus, core, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def running(shell: Shell) -> AsyncIterator[Shell]:
    """The shell at work; told to stop at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(shell.run(stop))
    try:
        yield shell
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await task


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def out(broker: MemoryBroker) -> list[tuple[str, str]]:
    """Id, without the time of its cause, and rollout of each message that came out."""
    found = []
    for delivery in broker.messages(OUT):
        message, cause = decode(delivery.payload), cause_of(delivery.id)
        assert isinstance(message, ReleaseRequested)
        assert cause is not None, delivery.id
        found.append((":".join(map(str, cause)), message.rollout))
    return found
