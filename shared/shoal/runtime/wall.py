"""The wall between a log and a message that its core fails on: such a message stops no partition for good.

What a core failed on is noted before its process ends. Who fails on it once more, having begun after it was noted, has
it passed over (`shoal.machine.passing`), and ends, too: whoever begins from then on leaves it out.

Only the holder of the lease passes over, and only what nobody was done with; else others would go on from a state that
has the message. A holder that was paused meanwhile changes nothing: the record is replaced only as it was seen before
the lease was renewed, and whoever begins to lead changes a record that has a note.
"""

import asyncio
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

import structlog

from shoal.bus.protocol import Bus, Delivery
from shoal.machine import passing
from shoal.machine.passing import Failure, PassedOver, Record
from shoal.runtime.lease import Lease
from shoal.wire import VERSION
from shoal.wire.streams import CLUSTER_BUCKET, passed_key

_PATIENCE_TTLS: Final = 10
"""For how many times as long as a lease stands to wait for it, before ending without having passed over anything."""

log = structlog.get_logger()


class PassedOverError(Exception):
    """A message was passed over that this process has folded: its state is another than everybody's."""


class Wall:
    """That of one partition, for one life of its process. `state_version`: its core's."""

    def __init__(self, bus: Bus, name: str, lease: Lease, state_version: int) -> None:
        self._bus = bus
        self._name = name
        self._lease = lease
        self._state_version = state_version
        self._noted: Failure | None = None  # as it was when this life began
        self._failed: tuple[Delivery, Exception] | None = None
        self.passed = PassedOver()
        """What is left out, by sequence."""

    @property
    def fell(self) -> bool:
        """Whether the core failed: then its state is worth nothing."""
        return self._failed is not None

    async def begin(self) -> None:
        """Read what is left out, before anything is folded. Raises BusError; ValueError where that is unreadable."""
        record, _ = await self._read()
        self._noted = record.noted
        self.passed.learn(record)

    def reason(self, delivery: Delivery) -> str:
        """Return why a message is left out; "" where it is not."""
        return self.passed.reason(delivery.sequence, delivery.subject, delivery.payload, delivery.time_ms, delivery.id)

    async def claim(self, position: Callable[[], int]) -> None:
        """Having the lease, see that what was folded up to `position` is what everybody folds, before saying anything.

        Raises PassedOverError where it is not, BusError, ValueError.
        """
        while True:
            record, revision = await self._read()
            folded = [each.sequence for each in self.passed.learn(record) if each.sequence <= position()]
            if folded:
                await self._lease.release(self._lease.record.position)
                raise PassedOverError(
                    f"message {folded[0]} of the log of {self._name} is passed over and was folded here: another"
                    " version failed on it, or a core is not deterministic; beginning anew, without it"
                )
            if record.noted is None:
                return
            went_well = record.noted.sequence <= position() and not self.fell
            if went_well:
                log.warning("what a core failed on went well this time", partition=self._name, **_shown(record.noted))
            noted = None if went_well else record.noted
            if await self._replace(Record(noted, self._lease.record.epoch, record.passed), revision):
                return

    def failed(self, delivery: Delivery, error: Exception) -> None:
        """Note what the core failed on; `judge` says what follows."""
        log.critical("the core failed", reader=self._name, sequence=delivery.sequence, subject=delivery.subject)
        self._failed = delivery, error

    async def judge(self) -> None:
        """Note what the core failed on, or have it passed over, before the process ends. Raises nothing.

        Nothing happens where it did not fail.
        """
        if self._failed is None:
            return
        delivery, error = self._failed
        if isinstance(error, MemoryError):
            return  # that is the machine's
        try:
            digest = passing.digest_of(delivery.subject, delivery.payload, delivery.time_ms, delivery.id)
            made_by = f"shoal {version('shoal')}, state {self._state_version}, wire {VERSION}"
            found = Failure(delivery.sequence, digest, passing.why_of(error), made_by, time.time_ns() // 1_000_000)
            async with asyncio.timeout(_PATIENCE_TTLS * self._lease.ttl_s):
                await (self._pass(found) if found.same(self._noted) else self._note(found))
                if self._lease.held:
                    await self._lease.release(self._lease.record.position)
        except Exception as problem:  # whatever it is, it is not what the process ends for
            text = str(problem) or type(problem).__name__
            log.error("what the core failed on is not noted", partition=self._name, error=text)

    async def _note(self, found: Failure) -> None:
        await self._lease.look()
        if self._was_done(found):
            return
        while True:
            record, revision = await self._read()
            if found.same(record.noted) or await self._replace(Record(found, record.epoch, record.passed), revision):
                break
        log.critical(
            "noted what the core failed on: it is passed over if the core fails on it again, built anew",
            partition=self._name, **_shown(found),
        )  # fmt: skip

    async def _pass(self, found: Failure) -> None:
        while not self._lease.held:
            free = await self._lease.look()
            if self._was_done(found):
                return
            if not free or not await self._lease.take():
                await asyncio.sleep(self._lease.ttl_s / 8)
        if self._was_done(found):
            return
        record, revision = await self._read()
        if found.digest in (each.digest for each in record.passed):
            return
        if not found.same(record.noted):  # somebody came past it, or has lost the note
            await self._note(found)
            return
        await self._lease.renew(self._lease.record.position)
        if problem := passing.unheeded(record, found.version, found.at_ms):
            log.critical(
                "the core failed again, and the message is not passed over: the fault seems to be this version's",
                partition=self._name, because=problem, **_shown(found),
            )  # fmt: skip
        elif await self._replace(passing.passing(record, found), revision):
            log.critical("a message is passed over from now on", partition=self._name, **_shown(found))

    def _was_done(self, found: Failure) -> bool:
        """Return whether somebody was done with the message; then it is no longer for anybody to leave out."""
        if self._lease.position < found.sequence:
            return False
        log.critical(
            "the core failed on what was folded before, by this version or another: start the one that folded it",
            partition=self._name, **_shown(found),
        )  # fmt: skip
        return True

    async def _read(self) -> tuple[Record, int]:
        entry = await self._bus.get(CLUSTER_BUCKET, passed_key(self._name))
        if entry is None:
            return Record(), 0
        return passing.decoded(entry.value, self._name), entry.revision

    async def _replace(self, record: Record, revision: int) -> bool:
        value = passing.encoded(record)
        if await self._bus.replace(CLUSTER_BUCKET, passed_key(self._name), value, revision) is not None:
            return True
        entry = await self._bus.get(CLUSTER_BUCKET, passed_key(self._name))
        return entry is not None and entry.value == value  # it was stored, and only its confirmation was lost


def _shown(failure: Failure) -> dict[str, object]:
    return {"sequence": failure.sequence, "why": failure.why, "version": failure.version}
