"""Partitions shared among a service's processes: each leads about as many, and stands by for the rest.

Every process keeps a record of its own in the lease bucket, `member.<service>.<owner>`, with how many partitions it
leads. A member whose record stays as it is counts for nothing; nobody compares clocks. The sharing is a courtesy: the
lease alone decides who leads, and a partition that nobody with fewer wants is taken by whoever is there.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from shoal.bus.ending import end
from shoal.bus.protocol import Bus, BusError
from shoal.runtime.lease import TTL_S, Owner, Turns
from shoal.runtime.shell import Shell
from shoal.wire.streams import LEASE_BUCKET

_FORGOTTEN_S: Final = 60.0

log = structlog.get_logger()


class Member(msgspec.Struct, frozen=True):
    """What a process says of itself; `beat` changes each time."""

    beat: int
    leads: int


@dataclass(slots=True)
class _Seen:
    member: Member
    at: float


class Spread(Turns):
    """This process among the others of its service. `partitions`: how many there are to share."""

    def __init__(self, bus: Bus, service: str, owner: Owner, partitions: int, *, ttl_s: float = TTL_S) -> None:
        self._bus = bus
        self._prefix = f"member.{service}"
        self._owner = owner
        self._partitions = partitions
        self._ttl_s = ttl_s
        self._beat = 0
        self._led: set[str] = set()
        self._others: dict[str, _Seen] = {}
        self._wanted_since: dict[str, float] = {}
        self._yielded_at: dict[str, float] = {}

    async def run(self) -> None:
        """Say that we are there and hear of the others, until cancelled; then say that we leave."""
        key = f"{self._prefix}.{self._owner.id}"
        try:
            while True:
                try:
                    await self._meet(key)
                except BusError as error:
                    log.warning("the other processes are not heard of", error=str(error))
                await asyncio.sleep(self._ttl_s / 4)
        finally:
            try:
                async with asyncio.timeout(1.0):
                    await self._bus.delete(LEASE_BUCKET, key)
            except (BusError, TimeoutError):
                log.info("left without saying so")

    async def _meet(self, key: str) -> None:
        self._beat += 1
        await self._bus.put(LEASE_BUCKET, key, msgspec.json.encode(Member(self._beat, len(self._led))))
        known = [each for each in await self._bus.keys(LEASE_BUCKET, self._prefix) if each != key]
        now = self._now()
        for other in known:
            entry = await self._bus.get(LEASE_BUCKET, other)
            if entry is None:
                continue
            member = msgspec.json.decode(entry.value, type=Member)
            seen = self._others.get(other)
            if seen is None or seen.member != member:
                self._others[other] = _Seen(member, now)
            elif now - seen.at > _FORGOTTEN_S:
                await self._bus.delete(LEASE_BUCKET, other)
        self._others = {other: self._others[other] for other in known if other in self._others}

    def _live(self) -> list[Member]:
        """Return the others that were heard of lately."""
        return [seen.member for seen in self._others.values() if self._now() - seen.at <= self._ttl_s]

    def may_take(self, name: str) -> bool:
        """Return whether to take a partition that nobody serves: at once if we lead few, else when nobody else does."""
        now = self._now()
        if now - self._yielded_at.get(name, -self._ttl_s) < self._ttl_s:
            return False  # it is left to the others for a moment
        since = self._wanted_since.setdefault(name, now)
        return len(self._led) < math.ceil(self._partitions / (1 + len(self._live()))) or now - since >= self._ttl_s

    def should_yield(self, name: str) -> bool:
        """Return whether another process leads fewer than its share while we lead more than ours."""
        live = self._live()
        fair = self._partitions // (1 + len(live))
        if len(self._led) <= math.ceil(self._partitions / (1 + len(live))) or name != max(self._led):
            return False
        if not any(member.leads < fair for member in live):
            return False
        if self._now() - max(self._yielded_at.values(), default=-self._ttl_s) < self._ttl_s / 2:
            return False  # what the others say of themselves may be older than the last hand-over
        self._yielded_at[name] = self._now()
        return True

    def leads(self, name: str, leading: bool) -> None:
        """Note that we lead a partition, or no longer do."""
        self._wanted_since.pop(name, None)
        if leading:
            self._led.add(name)
        else:
            self._led.discard(name)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def run_together(shells: Sequence[Shell], spread: Spread, stop: asyncio.Event) -> None:
    """Run a process's shells until stop is set, or one of them fails: then its error is raised."""
    meeting = asyncio.create_task(spread.run(), name="spread")
    running = [asyncio.create_task(shell.run(stop), name="shell") for shell in shells]
    try:
        await asyncio.gather(*running)
    finally:
        await end(*running)
        await end(meeting)
