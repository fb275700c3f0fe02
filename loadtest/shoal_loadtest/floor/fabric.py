"""Brokers of one's own for a floor, with Shoal's streams on them, and the processes that a floor consists of."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

import shoal_loadtest
from shoal.broker import EmbeddedBroker, EmbeddedCluster, wait_until_whole
from shoal.bus.api import Api
from shoal.bus.connection import Connection
from shoal.bus.ending import end
from shoal.bus.jetstream import JetStreamBus
from shoal.cli.exits import Exit, Failure
from shoal.cli.processes import tied
from shoal.turns import used_s
from shoal.wire import messages as m, streams
from shoal.wire.codec import decode
from shoal_loadtest.floor.roles import EXECUTOR, PLACEMENT_LOG, ROLLOUT_LOG
from shoal_loadtest.floor.station import Order

READY_S: Final = 30.0
_QUIET_S: Final = 0.3
_SETTLE_S: Final = 120.0
_PACKAGES: Final = Path(shoal_loadtest.__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Brokers:
    """How many servers there are, and when they sync to disk: as NATS writes it, or `always`."""

    servers: int = 1
    sync: str = "10s"

    @property
    def name(self) -> str:
        """As people read it."""
        count = "one server" if self.servers == 1 else "three servers, R3"
        return f"{count}, sync {self.sync}"


@dataclass(frozen=True, slots=True)
class Span:
    """When the first request was stored and when the last slot came free, by the broker's clock; how many slots did."""

    began_ms: int
    ended_ms: int
    sandboxes: int

    @property
    def seconds(self) -> float:
        """Its length: at least a millisecond, which is the clock's."""
        return max(self.ended_ms - self.began_ms, 1) / 1000


@contextlib.asynccontextmanager
async def running(brokers: Brokers) -> AsyncIterator[EmbeddedBroker | EmbeddedCluster]:
    """Have brokers with a cluster's streams on them."""
    with tempfile.TemporaryDirectory(prefix="shoal-floor-") as place:
        broker = (
            EmbeddedBroker(Path(place) / "broker", port=0, sync_interval=brokers.sync)
            if brokers.servers == 1
            else EmbeddedCluster(Path(place) / "brokers", sync_interval=brokers.sync)
        )
        async with broker:
            bus = await JetStreamBus.connect(broker.url, name="floor", replicas=brokers.servers)
            try:
                await bus.ensure([*streams.cluster(1), *([streams.executor(EXECUTOR)])])
            finally:
                await bus.close()
            if brokers.servers > 1:
                await wait_until_whole(broker.url)
            yield broker


class Process:
    """One station: told what to do, heard line by line, ended with the context."""

    def __init__(self, process: asyncio.subprocess.Process, role: str) -> None:
        self._process = process
        self._role = role

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def hear(self, within_s: float) -> Any:
        """Return the next thing it says. Raises Failure when it says nothing, or has ended."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise Failure(Exit.TIMEOUT, f"the floor's {self._role} said nothing for {within_s:g} s") from None
        if not line:
            raise Failure(Exit.INFRASTRUCTURE, f"the floor's {self._role} ended: {await self._last_word()}")
        return msgspec.json.decode(line)

    async def _last_word(self) -> str:
        assert self._process.stderr is not None
        words = (await self._process.stderr.read()).decode(errors="replace").strip().splitlines()
        return words[-1] if words else f"with status {await self._process.wait()}"

    async def ended(self) -> None:
        """Wait for its end, which nobody asked for. Raises Failure with its last word."""
        await self._process.wait()
        raise Failure(Exit.INFRASTRUCTURE, f"the floor's {self._role} ended: {await self._last_word()}")

    async def go(self) -> None:
        """Have it begin, where it waits for that."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        await self._process.stdin.drain()

    async def end(self, within_s: float) -> None:
        """End it: its standard input does, and if that is not enough it is killed."""
        process = self._process
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(within_s):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        # What is left in its pipes is read to the end, or the transport stays.
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                await pipe.read()


async def heard(trainer: Process, services: Sequence[Process], within_s: float) -> Any:
    """Have a trainer begin, and return what it says in the end. Raises Failure, also where a service ends before."""
    await trainer.go()
    hearing = asyncio.create_task(trainer.hear(within_s))
    watching = [asyncio.create_task(service.ended()) for service in services]
    try:
        done, _ = await asyncio.wait([hearing, *watching], return_when=asyncio.FIRST_COMPLETED)
        return (hearing if hearing in done else done.pop()).result()
    finally:
        await end(hearing, *watching)


@contextlib.asynccontextmanager
async def station(
    order: Order, module: str = "shoal_loadtest.floor.station", *, end_s: float = 5.0
) -> AsyncIterator[Process]:
    """Have a station that reads its inbox. `end_s`: how long it may take to come to its end."""
    path = os.pathsep.join(filter(None, (str(_PACKAGES), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        limit=64 * 1024**2, start_new_session=True, preexec_fn=tied(signal.SIGKILL), env=environment,
    )  # fmt: skip
    found = Process(process, order.role)
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        await process.stdin.drain()
        await found.hear(READY_S)
        yield found
    finally:
        await found.end(end_s)


def cpu_s(pid: int) -> float:
    """Return the processor time a process used so far, in seconds; 0 for one that is gone."""
    with contextlib.suppress(OSError):
        return used_s(pid)
    return 0.0


@dataclass(frozen=True, slots=True)
class Mark:
    """Where the logs of rollouts and placement ended at some moment."""

    rollout: int
    placement: int


async def mark(url: str) -> Mark:
    """Return where the logs end now."""
    bus = await JetStreamBus.connect(url, name="floor")
    try:
        return Mark(await bus.last_sequence(ROLLOUT_LOG), await bus.last_sequence(PLACEMENT_LOG))
    finally:
        await bus.close()


async def span(url: str, since: Mark, sandboxes: int) -> Span:
    """Return how long the work since then took, once so many sandboxes' slots came free.

    Nothing is read before the log has been still for a moment: reading would slow down what is measured. Raises
    Failure when they do not come.
    """
    await still(url)
    bus = await JetStreamBus.connect(url, name="floor")
    try:
        began = (await (await bus.reader(ROLLOUT_LOG, after=since.rollout)).batch(1))[0].time_ms
        slots = await bus.reader(PLACEMENT_LOG, after=since.placement)
        count, last = 0, began
        try:
            async with asyncio.timeout(_SETTLE_S):
                while count < sandboxes:
                    for delivery in await slots.batch():
                        match decode(delivery.payload):
                            case m.SlotsReleased(indices=indices):
                                count += sum(number for _, number in indices)
                                last = delivery.time_ms
        except TimeoutError:
            raise Failure(
                Exit.INFRASTRUCTURE, f"of {sandboxes} sandboxes only {count} were destroyed {_SETTLE_S:g} s later"
            ) from None
        return Span(began, last, count)
    finally:
        await bus.close()


async def still(url: str) -> None:
    """Wait until the log of placement grows no longer."""
    connection = Connection(url, "floor", None, 5.0)
    await connection.dial()
    try:
        api, last = Api(connection), -1
        async with asyncio.timeout(_SETTLE_S):
            while (now := (await api.ask(f"STREAM.INFO.{PLACEMENT_LOG}"))["state"]["last_seq"]) != last:
                last = now
                await asyncio.sleep(_QUIET_S)
    finally:
        await connection.close()
