"""A connection to a `MemoryBroker` on which everything goes wrong that may go wrong with a real one."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from shoal.bus.memory import MemoryBroker, MemoryBus, MemoryReader
from shoal.bus.protocol import BusError, Delivery, Entry, PublishTimeoutError, Stored, StreamFullError, UnreachableError

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Probabilities per call, and the longest delay in seconds."""

    delay_s: float = 0.005
    slow: float = 0.0
    """A call takes up to three seconds."""
    unconfirmed: float = 0.0
    """A message is stored, and its publisher is told that it was not confirmed."""
    refused: float = 0.0
    """A message is not stored, and its publisher is told that the stream is full."""
    failing: float = 0.0
    """A call on a bucket, or a look at one message, fails, whether it was carried out or not."""
    deadly: float = 0.0
    """A process is killed just when it has replaced a value: it has said how far it is, and does nothing more."""

    @classmethod
    def draw(cls, source: random.Random) -> "Trouble":
        """Draw rates: each trouble is absent, rare or frequent."""
        rates = [source.choice((0.0, 0.01, 0.1)) for _ in range(5)]
        return cls(source.choice((0.0005, 0.005, 0.05)), *rates)


class FaultyBus(MemoryBus):
    """Messages keep their order; what is said of them comes late, wrong or not at all. `die` is as kill -9."""

    def __init__(
        self,
        broker: MemoryBroker,
        source: random.Random,
        trouble: Trouble,
        died: Callable[[], object] = lambda: None,
    ) -> None:
        """`died` is called when trouble has killed the process whose connection this is."""
        super().__init__(broker)
        self._source = source
        self.trouble = trouble
        self._died = died
        self._dead = False
        self._sent = 0.0
        self._frozen = asyncio.Event()
        self._frozen.set()

    def die(self) -> None:
        """Nothing that was not stored yet ever will be."""
        self._dead = True

    def freeze(self) -> None:
        """Nothing gets through in either direction, as for a process that is stopped."""
        self._frozen.clear()

    def thaw(self) -> None:
        """Go on as if nothing had happened."""
        self._frozen.set()

    def _delay(self) -> float:
        if self._source.random() < self.trouble.slow:
            return self._source.uniform(0, 3)
        return self._source.uniform(0, self.trouble.delay_s)

    def publish(self, subject: str, payload: bytes, id: str) -> "asyncio.Future[Stored]":
        """Store a message in a while, or not; tell its publisher in another while, or wrongly."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Stored] = loop.create_future()
        refused = self._source.random() < self.trouble.refused
        self._sent = max(self._sent, loop.time() + self._delay())  # in order, as over one connection

        def arrive() -> None:
            if self._dead:
                return
            if not self._frozen.is_set():
                loop.call_later(0.1, arrive)
                return
            outcome: Stored | BusError
            if refused:
                outcome = StreamFullError(f"the stream of {subject} is full for a moment")
            else:
                try:
                    outcome = super(FaultyBus, self).publish(subject, payload, id).result()
                except BusError as error:
                    outcome = error
                if self._source.random() < self.trouble.unconfirmed:
                    outcome = PublishTimeoutError(f"the broker did not confirm a message on {subject}")
            loop.call_later(self._delay(), self._tell, future, outcome)

        loop.call_at(self._sent, arrive)
        return future

    def _tell(self, future: "asyncio.Future[Stored]", outcome: Stored | BusError) -> None:
        if self._dead or future.done():
            return
        if isinstance(outcome, BusError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    async def _through(self) -> None:
        await asyncio.sleep(self._delay())
        await self._frozen.wait()
        if self._dead:
            await asyncio.get_running_loop().create_future()

    async def _carefully(self, work: Callable[..., Awaitable[R]], *args: Any) -> R:
        await self._through()
        found = await work(*args)
        if self._source.random() < self.trouble.failing:
            raise UnreachableError("the broker did not answer")
        await self._through()
        return found

    async def put(self, bucket: str, key: str, value: bytes) -> int:
        """Store a value, unless it fails."""
        return await self._carefully(super().put, bucket, key, value)

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        """Replace a value, unless it fails, or seems to."""
        return await self._carefully(self._replace, bucket, key, value, revision)

    async def _replace(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        found = await super().replace(bucket, key, value, revision)
        if found is not None and self._source.random() < self.trouble.deadly:
            self.die()
            self._died()
        return found

    async def get(self, bucket: str, key: str) -> Entry | None:
        """Return a value, unless it fails."""
        return await self._carefully(super().get, bucket, key)

    async def stored_ms(self, stream: str, sequence: int) -> int | None:
        """Return when a message was stored (ms since 1970), unless it fails. Raises NoStreamError, UnreachableError."""
        return await self._carefully(super().stored_ms, stream, sequence)

    async def reader(
        self, stream: str, *, after: int | None = 0, since_ms: int | None = None, filters: Sequence[str] = ()
    ) -> "FaultyReader":
        """Follow a stream, in pieces and late."""
        inner = await super().reader(stream, after=after, since_ms=since_ms, filters=filters)
        return FaultyReader(self, inner)


class FaultyReader(MemoryReader):
    """A reader that lags."""

    def __init__(self, bus: FaultyBus, inner: MemoryReader) -> None:
        self._bus = bus
        self._inner = inner

    async def batch(self, limit: int = 1024) -> Sequence[Delivery]:
        """Return the next messages, some time after they came, and seldom all of them."""
        found = await self._inner.batch(self._bus._source.randint(1, limit))
        await self._bus._through()
        return found

    async def close(self) -> None:
        """Stop following."""
        await self._inner.close()
