"""The process of one role of the chain, or of its trainer: `python -m shoal_loadtest.floor.station`, for `chain`.

What it is to do comes as one JSON line on standard input, what it has to say goes as JSON lines to standard output. A
trainer begins when another line comes. All end when their standard input does.
"""

import asyncio
import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Final

import msgspec
import uvloop

from shoal.turns import take_turns
from shoal.wire import messages as m
from shoal.wire.codec import decode, encode
from shoal_loadtest.floor.channels import CHANNELS, Channel
from shoal_loadtest.floor.roles import INBOXES, ROLES, ROLLOUT_LOG, Said, released, request
from shoal_loadtest.floor.work import Lifecycle, Work

TRAINER: Final = "trainer"
LISTENER: Final = "listener"
"""Tells of every message that carries its moment as its rollout's id how many ms it took."""


class Order(msgspec.Struct, frozen=True):
    """What a station is to do. `after`: of which message on its inbox is read.

    A trainer with `idle` sends one group after the other, with a pause of so many ms before each, and tells how long
    each took until it was ready. A carrier has a sandbox of this `isolation`, and its driver a directory at `place`.
    """

    role: str
    url: str
    channel: str
    work: Work
    after: int = 0
    idle_ms: float = 0.0
    name: str = "g"
    isolation: str = ""
    place: str = ""


class Done(msgspec.Struct, frozen=True):
    """What a trainer has to say in the end: seconds of its processor time, and ms until ready where they were asked."""

    cpu_s: float
    ready_ms: tuple[float, ...] = ()


def used_s() -> float:
    """Return the processor time that this process used so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def tell(value: object) -> None:
    """Write a JSON line."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


async def serve(order: Order, channel: Channel) -> None:
    """Be a service: hear, say, for ever."""
    hear = ROLES[order.role](order.work)
    stream = INBOXES[order.role]
    await channel.open(order.url, stream, order.after)
    tell({"ready": True})
    while True:
        for sequence, payload in await channel.batch():
            for number, said in enumerate(hear(decode(payload))):
                await channel.publish(said.subject, encode(said.message), f"{stream}:{sequence}:{number}")


async def listen(order: Order, channel: Channel) -> None:
    """Tell how old each message is: the clock is one for all processes of a machine."""
    await channel.open(order.url, ROLLOUT_LOG, order.after)
    tell({"ready": True})
    while True:
        for _, payload in await channel.batch():
            match decode(payload):
                case m.RolloutSubmitted(rollout=moment):
                    tell((time.monotonic_ns() - int(moment)) / 1e6)


class Trainer:
    """Submits groups, so many at a time, releases each when it is ready, and counts those that are concluded."""

    def __init__(self, order: Order, channel: Channel) -> None:
        self._order = order
        self._work = order.work
        self._channel = channel
        self._asked: dict[str, float] = {}
        self._ready: dict[str, int] = {}
        self._next = 0
        self.ready_ms: list[float] = []

    async def run(self) -> None:
        """Do all the work."""
        concluded = 0
        for _ in range(min(1 if self._order.idle_ms else self._work.under_way, self._work.groups)):
            await self._submit()
        while concluded < self._work.groups:
            for _, payload in await self._channel.batch():
                match decode(payload):
                    case m.SandboxesReady(rollout=rollout, indices=indices):
                        await self._started(rollout, sum(count for _, count in indices))
                    case m.RolloutConcluded():
                        concluded += 1
                        if self._next < self._work.groups:
                            await self._submit()
        await self._channel.settled()

    async def _submit(self) -> None:
        if self._order.idle_ms:
            await self._channel.settled()
            await asyncio.sleep(self._order.idle_ms / 1000)
        rollout = f"{self._order.name}{self._next:014}"
        self._next += 1
        self._asked[rollout] = time.perf_counter()
        await self._say(request(rollout, self._work), f"{rollout}:submitted")

    async def _started(self, rollout: str, count: int) -> None:
        count += self._ready.pop(rollout, 0)
        if count < self._work.group:
            self._ready[rollout] = count
            return
        self.ready_ms.append((time.perf_counter() - self._asked.pop(rollout)) * 1000)
        if self._work.lifecycle is Lifecycle.HELD:
            await self._say(released(rollout, self._work), f"{rollout}:released")

    async def _say(self, said: Said, id: str) -> None:
        await self._channel.publish(said.subject, encode(said.message), id)


async def _work(order: Order, go: asyncio.Event) -> None:
    channel = CHANNELS[order.channel]()
    turns = asyncio.create_task(take_turns(), name="turns")  # as the services do whose floor this is
    try:
        if order.role != TRAINER:
            await (listen if order.role == LISTENER else serve)(order, channel)
        trainer = Trainer(order, channel)
        await channel.open(order.url, ROLLOUT_LOG, order.after)
        tell({"ready": True})
        await go.wait()
        before = used_s()
        await trainer.run()
        tell(Done(used_s() - before, tuple(trainer.ready_ms) if order.idle_ms else ()))
    finally:
        turns.cancel()
        await channel.close()


async def main(work: Callable[[Order, asyncio.Event], Coroutine[None, None, None]]) -> None:
    """Read the order, and do the work until there is nobody any more who gave it."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    loop, go = asyncio.get_running_loop(), asyncio.Event()
    working = loop.create_task(work(order, go))

    def hear() -> None:
        if os.read(sys.stdin.fileno(), 1):
            go.set()
        else:
            loop.remove_reader(sys.stdin.fileno())  # an end stays readable: once is enough, or it could not close
            working.cancel()

    loop.add_reader(sys.stdin.fileno(), hear)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await working
    finally:
        loop.remove_reader(sys.stdin.fileno())


if __name__ == "__main__":
    uvloop.run(main(_work))
